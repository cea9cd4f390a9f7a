package portmap

import (
	"fmt"
	"net/netip"
)

// Port is the port of the port mapper.
const Port = 111

// The transport protocols of mappings, the numbers of IP.
const (
	TCP = 6
	UDP = 17
)

// Mapping says that a version of a program listens on a port.
type Mapping struct {
	Program  uint32
	Version  uint32
	Protocol uint32 // TCP or UDP
	Port     uint16
}

// netid returns the protocol's name in rpcbind's versions 3 and 4.
func (m Mapping) netid() string {
	if m.Protocol == UDP {
		return "udp"
	}
	return "tcp"
}

// universal writes an address as rpcbind does (RFC 5665, section 5.2.3.3).
func universal(addr netip.Addr, port uint16) string {
	return fmt.Sprintf("%s.%d.%d", addr.Unmap().WithZone(""), port>>8, port&255)
}
