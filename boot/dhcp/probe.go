package dhcp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// Prober finds out whether an address is in use.
type Prober interface {
	// Probe reports whether a machine on the wire has address a, and which, as
	// far as that can be known.
	Probe(ctx context.Context, subnet netip.Prefix, a netip.Addr) (owner net.HardwareAddr, used bool, err error)
}

// WireProber probes with ARP (RFC 5227) on the interface's own subnets, and
// with an ICMP echo request behind relays. It needs CAP_NET_RAW.
type WireProber struct {
	Interface string
	// Wait is how long an answer is waited for; 0 means 500 ms: machines wait
	// a second for their first offer.
	Wait time.Duration
}

// Probe implements Prober.
func (w WireProber) Probe(ctx context.Context, subnet netip.Prefix, a netip.Addr) (net.HardwareAddr, bool, error) {
	ifi, err := net.InterfaceByName(w.Interface)
	if err != nil {
		return nil, false, err
	}
	wait := w.Wait
	if wait == 0 {
		wait = 500 * time.Millisecond
	}
	deadline := time.Now().Add(wait)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return nil, false, err
	}
	for _, own := range addrs {
		if n, ok := own.(*net.IPNet); ok && n.Contains(a.AsSlice()) {
			return probeARP(ifi, a, wait, deadline)
		}
	}
	used, err := probeICMP(a, deadline)
	return nil, used, err
}

// probeARP sends two probes, the second after a third of the time.
func probeARP(ifi *net.Interface, a netip.Addr, wait time.Duration, deadline time.Time) (net.HardwareAddr, bool, error) {
	f, err := packetSocket(ifi, unix.ETH_P_ARP)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	request := arpProbe(ifi.HardwareAddr, a)
	buf := make([]byte, 1500)
	for _, until := range []time.Time{deadline.Add(-wait * 2 / 3), deadline} {
		if err := sendPacket(f, ifi, unix.ETH_P_ARP, request); err != nil {
			return nil, false, err
		}
		if err := f.SetReadDeadline(until); err != nil {
			return nil, false, err
		}
		for {
			n, err := f.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, false, err
			}
			if sender, addr, ok := parseARP(buf[:n]); ok && addr == a && !bytes.Equal(sender, ifi.HardwareAddr) {
				return sender, true, nil
			}
		}
	}
	return nil, false, nil
}

// arpProbe is an ARP request without a sender's address, so that it does not
// disturb anybody's tables (RFC 5227 2.1.1).
func arpProbe(from net.HardwareAddr, a netip.Addr) []byte {
	p := []byte{0, 1, 8, 0, 6, 4, 0, 1} // Ethernet, IPv4, lengths, request
	p = append(p, from...)
	p = append(p, 0, 0, 0, 0)
	p = append(p, make([]byte, 6)...)
	return append(p, a.AsSlice()...)
}

// parseARP returns who says in p that it has which address.
func parseARP(p []byte) (net.HardwareAddr, netip.Addr, bool) {
	if len(p) < 28 || !bytes.Equal(p[:6], []byte{0, 1, 8, 0, 6, 4}) {
		return nil, netip.Addr{}, false
	}
	a := netip.AddrFrom4([4]byte(p[14:18]))
	return bytes.Clone(p[8:14]), a, !a.IsUnspecified()
}

func probeICMP(a netip.Addr, deadline time.Time) (bool, error) {
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return false, err
	}
	defer conn.Close()
	echo := &icmp.Echo{ID: os.Getpid() & 0xffff, Seq: int(binary.BigEndian.Uint16(a.AsSlice()[2:])), Data: []byte("sidus")}
	raw, err := (&icmp.Message{Type: ipv4.ICMPTypeEcho, Body: echo}).Marshal(nil)
	if err != nil {
		return false, err
	}
	if _, err := conn.WriteTo(raw, &net.IPAddr{IP: a.AsSlice()}); err != nil {
		return false, fmt.Errorf("echo request to %s: %w", a, err)
	}
	if err := conn.SetReadDeadline(deadline); err != nil {
		return false, err
	}
	buf := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		m, err := icmp.ParseMessage(1, buf[:n])
		if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
			continue
		}
		if ip, ok := from.(*net.IPAddr); ok && addrOf(ip.IP) == a {
			return true, nil
		}
	}
}
