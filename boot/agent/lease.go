package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"
)

// A Keeper keeps a lease for as long as it runs.
type Keeper struct {
	// Facts is the lease as the boot script got it.
	Facts Facts
	// Log is told of every renewal and every trouble; nil means logrus'
	// standard logger.
	Log logrus.FieldLogger
	// Ready is called once, when the Keeper is at work; nil is fine.
	Ready func()

	// For tests: how one request is put, and the time since the kernel
	// started. nil means the real ones.
	ask    func(ctx context.Context, request *dhcpv4.DHCPv4, server netip.Addr) (*dhcpv4.DHCPv4, error)
	uptime func() (time.Duration, error)
}

// errRefused is returned by ask if a server has said no (DHCPNAK).
var errRefused = errors.New("the DHCP server refuses the address")

// lease is one answer of a server, or the boot script's facts.
type lease struct {
	server      netip.Addr // not valid: not known
	since       time.Time
	t1, t2, end time.Duration // after since; RFC 2131, section 4.4.5
}

func newLease(since time.Time, total, t1, t2 time.Duration) lease {
	// A server may leave the two times out, or say nonsense.
	if t2 <= 0 || t2 >= total {
		t2 = total - total/8
	}
	if t1 <= 0 || t1 >= t2 {
		t1 = min(total/2, t2)
	}
	return lease{since: since, t1: t1, t2: t2, end: total}
}

// again is how long to wait after an attempt at age that failed: half of what
// remains until the next state, and no less than a minute, or than a twentieth
// of a short lease.
func (l lease) again(age time.Duration) time.Duration {
	least := min(time.Minute, max(l.end/20, time.Second))
	switch {
	case age < l.t2:
		// Not beyond the moment from which every server may be asked.
		return min(max((l.t2-age)/2, least), max(l.t2-age, time.Second))
	case age < l.end:
		return max((l.end-age)/2, least)
	}
	return least
}

// Run keeps the lease until ctx ends. The server that gave the address is not
// known at first, since the boot script is not told, and so Run begins with a
// broadcast (REBINDING).
func (k *Keeper) Run(ctx context.Context) error {
	log := k.Log
	if log == nil {
		log = logrus.StandardLogger()
	}
	log = log.WithFields(logrus.Fields{"device": k.Facts.Device, "address": k.Facts.Address.String()})
	ask := k.ask
	if ask == nil {
		ask = k.askOnDevice
	}
	uptime := k.uptime
	if uptime == nil {
		uptime = Uptime
	}
	up, err := uptime()
	if err != nil {
		return err
	}
	l := newLease(time.Now().Add(k.Facts.LeaseUptime-up), k.Facts.Lease, 0, 0)
	if k.Ready != nil {
		k.Ready()
	}
	for wait := time.Duration(0); ; {
		if !sleep(ctx, wait) {
			return nil
		}
		asked := time.Now()
		server := l.server
		if asked.Sub(l.since) >= l.t2 {
			server = netip.Addr{}
		}
		answer, err := k.renew(ctx, ask, server)
		if ctx.Err() != nil {
			return nil
		}
		if err == nil {
			l = leaseOf(answer, asked)
			// Machines that booted together need not renew together.
			wait = time.Until(asked.Add(l.t1 - time.Duration(rand.Int64N(int64(l.t1/10)+1))))
			log.WithFields(logrus.Fields{"server": l.server.String(), "lease": l.end.String(), "next": wait.Round(time.Second).String()}).Info("the lease is renewed")
			continue
		}
		age := time.Since(l.since)
		wait = l.again(age)
		entry := log.WithError(err).WithField("next", wait.Round(time.Second).String())
		switch {
		case errors.Is(err, errRefused):
			entry.Error("this node may no longer have its address: it keeps it, because its root file system hangs on it; reboot the node, or give the address back to it")
		case age >= l.end:
			entry.Error("the lease has run out: the node keeps the address, because its root file system hangs on it; let the DHCP server answer before it gives the address to another")
		default:
			entry.WithField("left", (l.end - age).Round(time.Second).String()).Warn("the lease could not be renewed yet")
		}
	}
}

// renew puts one request: to the server in the state RENEWING, to all if the
// server is not valid (REBINDING).
func (k *Keeper) renew(ctx context.Context, ask func(context.Context, *dhcpv4.DHCPv4, netip.Addr) (*dhcpv4.DHCPv4, error), server netip.Addr) (*dhcpv4.DHCPv4, error) {
	// Neither a client identifier nor a requested address: the first because
	// the boot script's client sent none, the second because both states
	// forbid it (RFC 2131, table 5).
	request, err := dhcpv4.New(
		dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest),
		dhcpv4.WithHwAddr(k.Facts.MAC),
		dhcpv4.WithClientIP(k.Facts.Address.AsSlice()),
		dhcpv4.WithRequestedOptions(dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainNameServer),
	)
	if err != nil {
		return nil, err
	}
	answer, err := ask(ctx, request, server)
	if err != nil {
		return nil, err
	}
	if given, ok := netip.AddrFromSlice(answer.YourIPAddr.To4()); ok && given != k.Facts.Address && !given.IsUnspecified() {
		return nil, fmt.Errorf("%w: it gives %s instead", errRefused, given)
	}
	if answer.IPAddressLeaseTime(0) <= 0 {
		return nil, errors.New("the DHCP server's answer names no lease time")
	}
	return answer, nil
}

// leaseOf reads an answer to a request that was sent at asked.
func leaseOf(answer *dhcpv4.DHCPv4, asked time.Time) lease {
	l := newLease(asked, answer.IPAddressLeaseTime(0), answer.IPAddressRenewalTime(0), answer.IPAddressRebindingTime(0))
	l.server, _ = netip.AddrFromSlice(answer.ServerIdentifier().To4())
	return l
}

// sleep waits for d; it returns false if ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	if ctx.Err() != nil {
		return false
	}
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
