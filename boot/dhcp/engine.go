package dhcp

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
)

const (
	serverPort = 67
	clientPort = 68
	bootPort   = 4011 // the boot server of PXE 2.1

	offerTime   = time.Minute // an offer is kept for so long
	declineTime = time.Hour   // an address that somebody else uses is left alone for so long
	maxProbes   = 6           // addresses that are tried for one machine at a time
)

// engine turns packets into answers.
type engine struct {
	self   netip.Addr // this server's address
	dir    Directory
	leases LeaseStore
	prober Prober
	steps  pxe.Stepper
	log    *rateLog
	now    func() time.Time
	stats  *counters
	// full is asked before an address is given on this server's own wire; nil
	// means always.
	full func() bool

	// mu guards the choice of addresses: whoever holds it may take the store's
	// leases for what they are.
	mu     sync.Mutex
	offers map[netip.Addr]offer
	busy   map[string]bool // machines that are being answered
}

// answer is a packet and where it goes.
type answer struct {
	packet *dhcpv4.DHCPv4
	to     netip.AddrPort
}

// query is a packet that was found to be in order, and what is known about it.
type query struct {
	*dhcpv4.DHCPv4
	from     netip.AddrPort
	port     int // of this server, at which it arrived
	network  Network
	node     Node
	firmware pxe.Firmware
	boots    bool
}

// handle answers one packet; nil is silence.
func (e *engine) handle(ctx context.Context, m *dhcpv4.DHCPv4, from netip.AddrPort, port int) *answer {
	if !wellFormed(m) {
		e.stats.malformed.Add(1)
		return nil
	}
	q := query{DHCPv4: m, from: from, port: port}
	var err error
	if q.network, err = e.dir.Network(ctx, e.locate(m)); err != nil {
		if !errors.Is(err, ErrNoNetwork) {
			e.log.error("network", err, "dhcp: cannot look up the network of %s", e.locate(m))
		}
		return e.silent()
	}
	if q.network.Mode == Off {
		return e.silent()
	}
	if !e.begin(m.ClientHWAddr) {
		return e.silent() // the answer to the packet before is on its way
	}
	defer e.end(m.ClientHWAddr)
	if q.node, err = e.dir.Node(ctx, q.network.Name, m.ClientHWAddr); err != nil {
		e.log.error("node", err, "dhcp: cannot look up %s", m.ClientHWAddr)
		return e.silent()
	}
	q.firmware, q.boots = firmwareOf(m)
	q.boots = q.boots && !q.node.NoBoot

	var a *answer
	switch {
	case port == bootPort:
		a = e.bootServer(ctx, q)
	case q.network.Mode == Full:
		// Behind a relay is another wire.
		if direct := !addrOf(m.GatewayIPAddr).IsValid(); direct && e.full != nil && !e.full() {
			return e.silent()
		}
		if q.node.NoAddress {
			return e.silent()
		}
		a = e.address(ctx, q)
	default:
		a = e.proxy(ctx, q)
	}
	if a == nil {
		return e.silent()
	}
	e.stats.answered.Add(1)
	return a
}

func (e *engine) silent() *answer {
	e.stats.ignored.Add(1)
	return nil
}

// locate is the address whose network a packet belongs to.
func (e *engine) locate(m *dhcpv4.DHCPv4) netip.Addr {
	if a := addrOf(m.GatewayIPAddr); a.IsValid() {
		return a
	}
	if a := addrOf(m.ClientIPAddr); a.IsValid() && m.MessageType() == dhcpv4.MessageTypeRequest {
		return a
	}
	return e.self
}

// wellFormed tells whether m is a request of a machine on an Ethernet.
func wellFormed(m *dhcpv4.DHCPv4) bool {
	return m.OpCode == dhcpv4.OpcodeBootRequest && m.HWType == iana.HWTypeEthernet &&
		len(m.ClientHWAddr) == 6 && m.ClientHWAddr[0]&1 == 0 && !bytes.Equal(m.ClientHWAddr, make([]byte, 6)) &&
		m.HopCount <= 16 && m.MessageType() != dhcpv4.MessageTypeNone
}

func (e *engine) begin(mac net.HardwareAddr) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.busy[string(mac)] {
		return false
	}
	e.busy[string(mac)] = true
	return true
}

func (e *engine) end(mac net.HardwareAddr) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.busy, string(mac))
}

// reply begins an answer to q.
func (e *engine) reply(q query, t dhcpv4.MessageType) *dhcpv4.DHCPv4 {
	r := &dhcpv4.DHCPv4{
		OpCode:        dhcpv4.OpcodeBootReply,
		HWType:        q.HWType,
		TransactionID: q.TransactionID,
		Flags:         q.Flags,
		GatewayIPAddr: q.GatewayIPAddr,
		ClientHWAddr:  q.ClientHWAddr,
		Options:       dhcpv4.Options{},
	}
	r.UpdateOption(dhcpv4.OptMessageType(t))
	r.UpdateOption(dhcpv4.OptServerIdentifier(e.self.AsSlice()))
	// The client identifier is copied by RFC 6842, the relay's option by
	// RFC 3046, the machine identifier by RFC 4578 (PXE clients insist).
	for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionClientIdentifier, dhcpv4.OptionRelayAgentInformation, optionUUID} {
		if v := q.Options.Get(code); v != nil && (code != optionUUID || q.boots) {
			r.UpdateOption(dhcpv4.OptGeneric(code, v))
		}
	}
	return r
}

// send addresses a reply as RFC 2131 4.1 says, but that it broadcasts to a
// machine without an address, whatever its broadcast flag: nobody would
// answer ARP for the address that it does not have yet.
func (e *engine) send(q query, r *dhcpv4.DHCPv4) *answer {
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{255, 255, 255, 255}), clientPort)
	nak := r.MessageType() == dhcpv4.MessageTypeNak
	if relay := addrOf(q.GatewayIPAddr); relay.IsValid() {
		to = netip.AddrPortFrom(relay, serverPort)
		if nak {
			r.SetBroadcast() // for the relay to know that it must
		}
	} else if client := addrOf(q.ClientIPAddr); client.IsValid() && !nak {
		to = netip.AddrPortFrom(client, clientPort)
	}
	return &answer{packet: r, to: to}
}

// bootFile is what the client of q shall load.
func (q query) bootFile() (string, bool) {
	if !q.boots {
		return "", false
	}
	return q.network.Loaders.BootFile(q.firmware, q.network.HTTP, q.ClientHWAddr)
}

// tell puts into r where to load file from.
func (e *engine) tell(q query, r *dhcpv4.DHCPv4, file string) {
	next := q.network.NextServer
	if !next.IsValid() {
		next = e.self
	}
	r.ServerIPAddr = next.AsSlice()
	if len(file) < 128 {
		r.BootFileName = file
	}
	if len(file) >= 128 || q.firmware.HTTP {
		r.UpdateOption(dhcpv4.OptBootFileName(file))
	}
}

func (e *engine) step(ctx context.Context, q query, client netip.Addr) {
	if e.steps != nil {
		e.steps.Step(ctx, pxe.Progress{Step: protocol.StepDHCP, MAC: q.ClientHWAddr, Client: client})
	}
}

// addrOf turns an address of a packet into a netip.Addr, 0.0.0.0 and others
// that no machine can have into the invalid one.
func addrOf(ip net.IP) netip.Addr {
	a, ok := netip.AddrFromSlice(ip)
	a = a.Unmap()
	if !ok || !a.Is4() || a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}
	}
	return a
}
