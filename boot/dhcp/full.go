package dhcp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"sidus/boot/protocol"
)

// address answers a machine of a network in full mode, as RFC 2131 4.3 says.
func (e *engine) address(ctx context.Context, q query) *answer {
	switch q.MessageType() {
	case dhcpv4.MessageTypeDiscover:
		return e.discover(ctx, q)
	case dhcpv4.MessageTypeRequest:
		return e.request(ctx, q)
	case dhcpv4.MessageTypeDecline:
		e.decline(ctx, q)
	case dhcpv4.MessageTypeRelease:
		e.release(ctx, q)
	case dhcpv4.MessageTypeInform:
		return e.inform(q)
	}
	return nil
}

func (e *engine) discover(ctx context.Context, q query) *answer {
	a, err := e.offer(ctx, q)
	if err != nil {
		e.log.error("offer", err, "dhcp: no address for %s in network %s", q.ClientHWAddr, q.network.Name)
		return nil
	}
	r := e.reply(q, dhcpv4.MessageTypeOffer)
	r.YourIPAddr = a.AsSlice()
	e.configure(q, r, true)
	e.stats.offers.Add(1)
	return e.send(q, r)
}

var errNoAddress = errors.New("every address of the range is taken")

// offer finds an address for the machine of q, and keeps it for a minute.
func (e *engine) offer(ctx context.Context, q query) (netip.Addr, error) {
	for range maxProbes {
		p, err := e.reserve(ctx, q)
		if err != nil {
			return netip.Addr{}, err
		}
		if !p.probe {
			return p.addr, nil
		}
		owner, used, err := e.prober.Probe(ctx, q.network.Subnet, p.addr)
		if err != nil {
			// Given all the same: a machine that cannot boot is worse.
			e.log.error("probe", err, "dhcp: cannot probe %s", p.addr)
		}
		if !used || bytes.Equal(owner, q.ClientHWAddr) {
			e.keep(p.addr, q.ClientHWAddr)
			return p.addr, nil
		}
		e.drop(p.addr)
		e.stats.conflicts.Add(1)
		e.log.warn("conflict", "dhcp: %s is used by %s, and not by %s, which was to have it", p.addr, owner, q.ClientHWAddr)
		if p.fixed {
			return netip.Addr{}, errors.New("its fixed address " + p.addr.String() + " is used by " + owner.String())
		}
		l := Lease{Network: q.network.Name, MAC: q.ClientHWAddr, Address: p.addr, State: Declined, Expires: e.now().Add(declineTime)}
		if err := e.leases.PutLease(ctx, l); err != nil {
			return netip.Addr{}, err
		}
	}
	return netip.Addr{}, errors.New("several free addresses turned out to be in use")
}

func (e *engine) reserve(ctx context.Context, q query) (pick, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	leases, err := e.leases.Leases(ctx, q.network.Name)
	if err != nil {
		return pick{}, err
	}
	now := e.now()
	for a, o := range e.offers {
		if !o.until.After(now) {
			delete(e.offers, a)
		}
	}
	p, ok := choice{
		network: q.network, node: q.node, self: e.self, mac: q.ClientHWAddr,
		requested: addrOf(q.RequestedIPAddress()), leases: leases, offers: e.offers, now: now,
	}.choose()
	if !ok {
		return pick{}, errNoAddress
	}
	e.offers[p.addr] = offer{mac: string(q.ClientHWAddr), until: now.Add(offerTime), probed: !p.probe}
	return p, nil
}

// keep notes that an address was probed for a machine.
func (e *engine) keep(a netip.Addr, mac net.HardwareAddr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.offers[a] = offer{mac: string(mac), until: e.now().Add(offerTime), probed: true}
}

func (e *engine) drop(a netip.Addr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.offers, a)
}

// request answers a REQUEST in each of its four meanings, RFC 2131 4.3.2.
func (e *engine) request(ctx context.Context, q query) *answer {
	server, requested, current := addrOf(q.ServerIdentifier()), addrOf(q.RequestedIPAddress()), addrOf(q.ClientIPAddr)
	switch {
	case q.Options.Has(dhcpv4.OptionServerIdentifier) && server != e.self:
		// SELECTING, and the machine has chosen another server.
		e.log.warn("other", "dhcp: %s takes an address from another DHCP server, %s: there must be only one in full mode", q.ClientHWAddr, server)
		e.forget(q.ClientHWAddr)
		return nil
	case server.IsValid(): // SELECTING
		if !requested.IsValid() {
			return nil
		}
		return e.grant(ctx, q, requested, selecting)
	case requested.IsValid() && !current.IsValid(): // INIT-REBOOT
		return e.grant(ctx, q, requested, rebooting)
	case current.IsValid(): // RENEWING, REBINDING
		return e.grant(ctx, q, current, renewing)
	}
	return nil
}

type meaning int

const (
	selecting meaning = iota
	rebooting
	renewing
)

// grant gives the machine of q address a if it may have it.
func (e *engine) grant(ctx context.Context, q query, a netip.Addr, why meaning) *answer {
	l, v, err := e.decide(ctx, q, a, why)
	switch {
	case err != nil:
		e.log.error("lease", err, "dhcp: cannot record the lease of %s for %s", a, q.ClientHWAddr)
		return nil
	case v == unknown:
		return nil
	case v == refused:
		e.stats.naks.Add(1)
		e.log.info("dhcp: %s may not have %s", q.ClientHWAddr, a)
		return e.nak(q)
	}
	r := e.reply(q, dhcpv4.MessageTypeAck)
	r.ClientIPAddr = q.ClientIPAddr
	r.YourIPAddr = a.AsSlice()
	e.configure(q, r, true)
	e.stats.acks.Add(1)
	e.log.info("dhcp: %s has %s until %s", q.ClientHWAddr, a, l.Expires.UTC().Format(time.RFC3339))
	if q.boots {
		e.step(ctx, q, a)
	}
	return e.send(q, r)
}

type verdict int

const (
	unknown verdict = iota // nothing is known: silence
	refused
	granted
)

// decide judges a request for an address, and records the lease if it is
// granted.
func (e *engine) decide(ctx context.Context, q query, a netip.Addr, why meaning) (Lease, verdict, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !q.network.Subnet.Contains(a) {
		return Lease{}, refused, nil // it has moved from another network
	}
	leases, err := e.leases.Leases(ctx, q.network.Name)
	if err != nil {
		return Lease{}, unknown, err
	}
	now := e.now()
	c := choice{network: q.network, node: q.node, self: e.self, mac: q.ClientHWAddr, leases: leases, offers: e.offers, now: now}
	var mine, others, known bool
	for _, l := range leases {
		if c.mine(l) && l.State != Declined {
			known = true
			mine = mine || l.Address == a
		} else if l.Address == a && c.live(l) {
			others = true
		}
	}
	o, offered := e.offers[a]
	offered = offered && o.until.After(now)
	fixed := q.node.Address.IsValid()
	if offered && o.mac != string(q.ClientHWAddr) {
		others = true
	}
	switch {
	case others:
		return Lease{}, refused, nil
	case why == renewing:
		// It runs with this address. Nothing else has it, so it keeps it, also
		// if the node's fixed address is another one by now (a changed address
		// kills its root; the next boot brings the new one), and also if its
		// lease is not on record any more.
		if !mine && !c.usable()(a) && q.node.Address != a {
			return Lease{}, refused, nil
		}
	case fixed && q.node.Address != a:
		return Lease{}, refused, nil
	case why == rebooting && !mine:
		if !known && !fixed {
			return Lease{}, unknown, nil // RFC 2131: MUST remain silent
		}
		if !fixed {
			return Lease{}, refused, nil
		}
	case why == selecting && !mine && !(offered && o.probed):
		return Lease{}, refused, nil // the offer is too old, or was never made
	case !fixed && !c.usable()(a):
		return Lease{}, refused, nil // the range was changed
	}
	l := Lease{Network: q.network.Name, MAC: q.ClientHWAddr, Address: a, Hostname: e.hostname(q), State: Bound, Expires: now.Add(leaseTime(q.network)).Truncate(time.Second)}
	if err := e.leases.PutLease(ctx, l); err != nil {
		return Lease{}, unknown, err
	}
	delete(e.offers, a)
	return l, granted, nil
}

func (e *engine) nak(q query) *answer {
	r := e.reply(q, dhcpv4.MessageTypeNak)
	r.UpdateOption(dhcpv4.OptMessage("that address is not for you"))
	return e.send(q, r)
}

// forget takes back what a machine was offered.
func (e *engine) forget(mac net.HardwareAddr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for a, o := range e.offers {
		if o.mac == string(mac) {
			delete(e.offers, a)
		}
	}
}

// decline believes a machine that the address which it was given is used by
// another.
func (e *engine) decline(ctx context.Context, q query) {
	a := addrOf(q.RequestedIPAddress())
	if addrOf(q.ServerIdentifier()) != e.self || !a.IsValid() {
		return
	}
	if e.change(ctx, q, a, Declined, e.now().Add(declineTime)) {
		e.forget(q.ClientHWAddr)
		e.stats.conflicts.Add(1)
		e.log.warn("declined", "dhcp: %s says that somebody else uses %s; it is left alone for %s", q.ClientHWAddr, a, declineTime)
	}
}

func (e *engine) release(ctx context.Context, q query) {
	a := addrOf(q.ClientIPAddr)
	if s := addrOf(q.ServerIdentifier()); a.IsValid() && (!s.IsValid() || s == e.self) {
		if e.change(ctx, q, a, Released, e.now()) {
			e.log.info("dhcp: %s gives %s back", q.ClientHWAddr, a)
		}
	}
}

// change changes the state of a lease, if it is one of the machine of q.
func (e *engine) change(ctx context.Context, q query, a netip.Addr, to State, expires time.Time) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	leases, err := e.leases.Leases(ctx, q.network.Name)
	if err == nil {
		for _, l := range leases {
			if l.Address != a || !bytes.Equal(l.MAC, q.ClientHWAddr) || l.State != Bound {
				continue
			}
			l.State, l.Expires = to, expires
			if err = e.leases.PutLease(ctx, l); err == nil {
				return true
			}
		}
	}
	if err != nil {
		e.log.error("lease", err, "dhcp: cannot change the lease of %s", a)
	}
	return false
}

// inform answers a machine that has an address and wants to know the rest.
func (e *engine) inform(q query) *answer {
	a := addrOf(q.ClientIPAddr)
	if !a.IsValid() || !q.network.Subnet.Contains(a) {
		return nil
	}
	r := e.reply(q, dhcpv4.MessageTypeAck)
	r.ClientIPAddr = q.ClientIPAddr
	e.configure(q, r, false) // RFC 2131 4.3.5: neither yiaddr nor lease time
	e.stats.acks.Add(1)
	return e.send(q, r)
}

// configure fills in what a machine has to know about its network, and what
// it shall boot.
func (e *engine) configure(q query, r *dhcpv4.DHCPv4, leased bool) {
	n := q.network
	r.UpdateOption(dhcpv4.OptSubnetMask(net.CIDRMask(n.Subnet.Bits(), 32)))
	r.UpdateOption(dhcpv4.OptBroadcastAddress(broadcast(n.Subnet).AsSlice()))
	if n.Router.IsValid() {
		r.UpdateOption(dhcpv4.OptRouter(n.Router.AsSlice()))
	}
	if len(n.DNS) > 0 {
		var ips []net.IP
		for _, a := range n.DNS {
			ips = append(ips, a.AsSlice())
		}
		r.UpdateOption(dhcpv4.OptDNS(ips...))
	}
	if n.Domain != "" {
		r.UpdateOption(dhcpv4.OptDomainName(n.Domain))
	}
	if q.node.Name != "" {
		r.UpdateOption(dhcpv4.OptHostName(q.node.Name))
	}
	if leased {
		d := leaseTime(n)
		r.UpdateOption(dhcpv4.OptIPAddressLeaseTime(d))
		r.UpdateOption(dhcpv4.OptRenewTimeValue(d / 2))
		r.UpdateOption(dhcpv4.OptRebindingTimeValue(d / 8 * 7))
	}
	file, ok := q.bootFile()
	if !ok {
		return
	}
	e.tell(q, r, file)
	// Option 60 would send a PXE client to port 4011; UEFI's HTTP boot takes
	// only offers that have it.
	if q.firmware.HTTP {
		e.class(q, r)
	}
}

func leaseTime(n Network) time.Duration {
	if n.Lease > 0 {
		return n.Lease
	}
	return DefaultLease
}

// hostname is what a lease's machine is called: the node's name, or what it
// calls itself if that can be a name.
func (e *engine) hostname(q query) string {
	if q.node.Name != "" {
		return q.node.Name
	}
	if name := q.HostName(); protocol.CheckHostname(name) == nil {
		return name
	}
	return ""
}
