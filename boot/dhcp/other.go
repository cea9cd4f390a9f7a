package dhcp

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

// ErrOtherServer is wrapped by the errors of a server in full mode that has
// found another DHCP server on its wire.
var ErrOtherServer = errors.New("another DHCP server answers on this network")

// FindServer looks for a DHCP server on the wire of an interface: it asks for
// an address as a new machine would, three times, and takes none. It returns
// the server's address, or the invalid one if none answers within wait; 0
// means 4.5 s, since some servers first ping for three seconds the address
// that they are about to offer. It needs CAP_NET_RAW. A server on this very
// machine is not found: it would be in the way of port 67.
func FindServer(ctx context.Context, ifname string, wait time.Duration) (netip.Addr, error) {
	if wait == 0 {
		wait = 4500 * time.Millisecond
	}
	ifi, err := net.InterfaceByName(ifname)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
	}
	f, err := packetSocket(ifi, unix.ETH_P_IP)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Now()) })()

	m, err := dhcpv4.NewDiscovery(ifi.HardwareAddr, dhcpv4.WithBroadcast(true))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
	}
	begun := time.Now()
	buf := make([]byte, 65536)
	for i := range 3 {
		if err := sendPacket(f, ifi, unix.ETH_P_IP, wrapUDP(m.ToBytes())); err != nil {
			return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
		}
		until := begun.Add(time.Duration(i+1) * wait / 6) // early tries: one may be lost
		if i == 2 {
			until = begun.Add(wait)
		}
		_ = f.SetReadDeadline(until)
		for ctx.Err() == nil {
			n, err := f.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return netip.Addr{}, fmt.Errorf("looking for another DHCP server: %w", err)
			}
			if server, ok := parseOffer(buf[:n], m.TransactionID); ok {
				return server, nil
			}
		}
		if err := ctx.Err(); err != nil {
			return netip.Addr{}, err
		}
		m.NumSeconds++
	}
	return netip.Addr{}, nil
}

// wrapUDP puts payload into an IP packet from 0.0.0.0:68 to
// 255.255.255.255:67.
func wrapUDP(payload []byte) []byte {
	p := make([]byte, 28, 28+len(payload))
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(payload)))
	p[8] = 64 // time to live
	p[9] = unix.IPPROTO_UDP
	copy(p[16:20], []byte{255, 255, 255, 255})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	binary.BigEndian.PutUint16(p[20:], clientPort)
	binary.BigEndian.PutUint16(p[22:], serverPort)
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(payload))) // the checksum may be 0: none
	return append(p, payload...)
}

// parseOffer returns which server has made the offer in an IP packet, if it
// is one that gives an address and answers xid.
func parseOffer(p []byte, xid dhcpv4.TransactionID) (netip.Addr, bool) {
	if len(p) < 20 || p[0]>>4 != 4 || p[9] != unix.IPPROTO_UDP {
		return netip.Addr{}, false
	}
	header := int(p[0]&15) * 4
	if header < 20 || len(p) < header+8 || binary.BigEndian.Uint16(p[header+2:]) != clientPort {
		return netip.Addr{}, false
	}
	source := netip.AddrFrom4([4]byte(p[12:16]))
	m, err := dhcpv4.FromBytes(p[header+8:])
	if err != nil || m.TransactionID != xid || m.MessageType() != dhcpv4.MessageTypeOffer || !addrOf(m.YourIPAddr).IsValid() {
		return netip.Addr{}, false
	}
	if id := addrOf(m.ServerIdentifier()); id.IsValid() {
		return id, true
	}
	return source, true
}
