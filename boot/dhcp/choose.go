package dhcp

import (
	"bytes"
	"net"
	"net/netip"
	"time"
)

// offer is an address that a machine was offered and has not asked for yet.
type offer struct {
	mac    string
	until  time.Time
	probed bool
}

// pick is an address that a machine may be offered.
type pick struct {
	addr  netip.Addr
	probe bool // it has to be probed first
	fixed bool // it is the node's fixed one
}

// choice is all that the choice of an address depends on.
type choice struct {
	network   Network
	node      Node
	self      netip.Addr // this server's address
	mac       net.HardwareAddr
	requested netip.Addr // what the machine asks for; may be invalid
	leases    []Lease
	offers    map[netip.Addr]offer
	now       time.Time
}

// choose picks the address for a machine: its fixed one; the one that it has
// or had; the one that it was offered; the one that it asks for; one that
// nobody has had; the one whose lease expired first. It reports false if
// there is none.
func (c choice) choose() (pick, bool) {
	byAddr := make(map[netip.Addr]Lease, len(c.leases))
	for _, l := range c.leases {
		byAddr[l.Address] = l
	}
	if a := c.node.Address; a.IsValid() {
		if !c.network.Subnet.Contains(a) {
			return pick{}, false
		}
		l, ok := byAddr[a]
		had := ok && c.mine(l) && c.live(l)
		return pick{addr: a, fixed: true, probe: !had && !c.probed(a)}, true
	}
	usable := c.usable()
	free := func(a netip.Addr) bool {
		if l, ok := byAddr[a]; ok && c.live(l) && !(c.mine(l) && l.State != Declined) {
			return false
		}
		o, ok := c.offers[a]
		return !ok || o.mac == string(c.mac) || !o.until.After(c.now)
	}
	var own, oldest Lease
	for _, l := range c.leases {
		if !usable(l.Address) || !free(l.Address) {
			continue
		}
		if c.mine(l) && l.State != Declined && (!own.Address.IsValid() || l.Expires.After(own.Expires)) {
			own = l
		}
		if !c.live(l) && (!oldest.Address.IsValid() || l.Expires.Before(oldest.Expires)) {
			oldest = l
		}
	}
	if own.Address.IsValid() {
		return pick{addr: own.Address, probe: !c.live(own) && !c.probed(own.Address)}, true
	}
	for a, o := range c.offers {
		if o.mac == string(c.mac) && usable(a) && free(a) {
			return pick{addr: a, probe: !c.probed(a)}, true
		}
	}
	if a := c.requested; a.IsValid() && usable(a) && free(a) {
		return pick{addr: a, probe: true}, true
	}
	if c.network.First.IsValid() && c.network.Last.IsValid() {
		for a := c.network.First; a.IsValid() && !c.network.Last.Less(a); a = a.Next() {
			if _, ever := byAddr[a]; !ever && usable(a) && free(a) {
				return pick{addr: a, probe: true}, true
			}
		}
	}
	if oldest.Address.IsValid() {
		return pick{addr: oldest.Address, probe: true}, true
	}
	return pick{}, false
}

// usable returns a function that tells which addresses machines may get from
// the range.
func (c choice) usable() func(netip.Addr) bool {
	taken := map[netip.Addr]bool{c.self: true, c.network.Router: true, c.network.NextServer: true}
	for _, a := range c.network.DNS {
		taken[a] = true
	}
	for _, a := range c.network.Reserved {
		taken[a] = true
	}
	n := c.network
	if n.Subnet.Bits() < 31 {
		taken[n.Subnet.Masked().Addr()] = true
		taken[broadcast(n.Subnet)] = true
	}
	return func(a netip.Addr) bool {
		return n.First.IsValid() && n.Last.IsValid() && !a.Less(n.First) && !n.Last.Less(a) &&
			n.Subnet.Contains(a) && !taken[a]
	}
}

func (c choice) mine(l Lease) bool { return bytes.Equal(l.MAC, c.mac) }

// live tells whether nobody else may have the address of l: a bound or
// declined lease, before its end.
func (c choice) live(l Lease) bool { return l.State != Released && l.Expires.After(c.now) }

func (c choice) probed(a netip.Addr) bool {
	o, ok := c.offers[a]
	return ok && o.mac == string(c.mac) && o.probed && o.until.After(c.now)
}

// broadcast is the last address of a subnet.
func broadcast(p netip.Prefix) netip.Addr {
	raw := p.Masked().Addr().As4()
	for bit := p.Bits(); bit < 32; bit++ {
		raw[bit/8] |= 0x80 >> (bit % 8)
	}
	return netip.AddrFrom4(raw)
}
