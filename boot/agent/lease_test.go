package agent

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	node   = netip.MustParseAddr("10.0.0.7")
	server = netip.MustParseAddr("10.0.0.1")
	mac    = net.HardwareAddr{2, 0, 0, 0, 0, 7}
)

// asked is one request that a Keeper put.
type asked struct {
	at time.Duration
	to netip.Addr
}

// keep runs a Keeper for d in a bubble whose clock is quick. answer gets each
// request.
func keep(t *testing.T, facts Facts, d time.Duration, answer func(n int, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error)) ([]asked, []*logrus.Entry) {
	t.Helper()
	var requests []asked
	log, hook := logtest.NewNullLogger()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), d)
		defer cancel()
		k := Keeper{
			Facts:  facts,
			Log:    log,
			uptime: func() (time.Duration, error) { return 30 * time.Second, nil },
			ask: func(_ context.Context, request *dhcpv4.DHCPv4, to netip.Addr) (*dhcpv4.DHCPv4, error) {
				requests = append(requests, asked{time.Since(start), to})
				return answer(len(requests)-1, request)
			},
		}
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	return requests, hook.AllEntries()
}

// ack is the answer of a good server.
func ack(t *testing.T, request *dhcpv4.DHCPv4, lease time.Duration, modifiers ...dhcpv4.Modifier) *dhcpv4.DHCPv4 {
	t.Helper()
	answer, err := dhcpv4.NewReplyFromRequest(request, append([]dhcpv4.Modifier{
		dhcpv4.WithMessageType(dhcpv4.MessageTypeAck),
		dhcpv4.WithYourIP(request.ClientIPAddr),
		dhcpv4.WithLeaseTime(uint32(lease.Seconds())),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server.AsSlice())),
	}, modifiers...)...)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

var hour = Facts{Device: "eth0", MAC: mac, Address: node, Lease: time.Hour, LeaseUptime: 20 * time.Second}

func TestKeeperRenews(t *testing.T) {
	requests, _ := keep(t, hour, 3*time.Hour, func(_ int, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
		if request.MessageType() != dhcpv4.MessageTypeRequest || request.ClientIPAddr.String() != node.String() ||
			request.ClientHWAddr.String() != mac.String() {
			t.Errorf("request: %s", request.Summary())
		}
		// RFC 2131, table 5: neither state may name these.
		for _, code := range []dhcpv4.OptionCode{dhcpv4.OptionRequestedIPAddress, dhcpv4.OptionServerIdentifier} {
			if request.Options.Has(code) {
				t.Errorf("the request has the option %s", code)
			}
		}
		return ack(t, request, time.Hour), nil
	})
	if len(requests) < 6 || len(requests) > 8 {
		t.Fatalf("in three hours, a lease of one hour is asked for %d times", len(requests))
	}
	if requests[0] != (asked{0, netip.Addr{}}) {
		t.Errorf("the first request: %+v", requests[0])
	}
	for i, r := range requests[1:] {
		if r.to != server {
			t.Errorf("request %d goes to %v", i+1, r.to)
		}
		if gap := r.at - requests[i].at; gap < 26*time.Minute || gap > 30*time.Minute {
			t.Errorf("request %d comes after %v", i+1, gap)
		}
	}
}

func TestKeeperFollowsTheServersTimes(t *testing.T) {
	requests, _ := keep(t, hour, 12*time.Minute, func(_ int, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
		return ack(t, request, time.Hour, dhcpv4.WithOption(dhcpv4.OptRenewTimeValue(5*time.Minute))), nil
	})
	if len(requests) != 3 {
		t.Errorf("with a renewal time of 5 minutes, there are %d requests in 12 minutes", len(requests))
	}
}

// TestKeeperWithoutServer: the one server goes away after the first answer and
// comes back after the lease has run out.
func TestKeeperWithoutServer(t *testing.T) {
	var back bool
	requests, entries := keep(t, hour, 2*time.Hour, func(n int, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
		back = back || n > 30
		if n == 0 || back {
			return ack(t, request, time.Hour), nil
		}
		return nil, errors.New("no answer")
	})
	var renewing, rebinding, expired int
	for _, r := range requests[1:] {
		switch {
		case r.at < 52*time.Minute+30*time.Second:
			renewing++
			if r.to != server {
				t.Errorf("at %v the request goes to %v", r.at, r.to)
			}
		case r.at < time.Hour:
			rebinding++
			if r.to.IsValid() {
				t.Errorf("at %v the request goes to %v", r.at, r.to)
			}
		default:
			expired++
		}
	}
	// Each time half of what remains is waited for, but a minute at least.
	if renewing < 4 || renewing > 8 || rebinding < 3 || rebinding > 6 || expired < 10 {
		t.Errorf("requests: %d renewing, %d rebinding, %d later: %v", renewing, rebinding, expired, requests)
	}
	loud := 0
	for _, e := range entries {
		if e.Level == logrus.ErrorLevel {
			loud++
		}
	}
	if loud == 0 {
		t.Error("nothing is said of the lease that ran out")
	}
	if last := entries[len(entries)-1]; last.Message != "the lease is renewed" || !back {
		t.Errorf("the last words: %s", last.Message)
	}
}

func TestKeeperIsRefused(t *testing.T) {
	for name, answer := range map[string]func(*dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error){
		"refusal": func(*dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) { return nil, errRefused },
		"another address": func(r *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
			return ack(t, r, time.Hour, dhcpv4.WithYourIP(net.IPv4(10, 0, 0, 9))), nil
		},
	} {
		requests, entries := keep(t, hour, time.Hour, func(_ int, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) { return answer(request) })
		if len(requests) < 3 || len(entries) != len(requests) {
			t.Errorf("%s: %d requests, %d messages", name, len(requests), len(entries))
		}
		for _, e := range entries {
			if e.Level != logrus.ErrorLevel {
				t.Errorf("%s: %s: %s", name, e.Level, e.Message)
			}
		}
	}
}

func TestLeaseTimes(t *testing.T) {
	const forever = 0xffffffff * time.Second // RFC 2131, section 3.3
	for _, c := range []struct{ total, t1, t2, want1, want2 time.Duration }{
		{time.Hour, 0, 0, 30 * time.Minute, 52*time.Minute + 30*time.Second},
		{2 * time.Minute, 0, 0, time.Minute, 105 * time.Second},
		{time.Hour, 50 * time.Minute, 40 * time.Minute, 30 * time.Minute, 40 * time.Minute},
		{time.Hour, 10 * time.Minute, 2 * time.Hour, 10 * time.Minute, 52*time.Minute + 30*time.Second},
		{time.Second, 0, 0, 500 * time.Millisecond, 875 * time.Millisecond},
		{forever, 0, 0, forever / 2, forever - forever/8},
	} {
		l := newLease(time.Time{}, c.total, c.t1, c.t2)
		if l.t1 != c.want1 || l.t2 != c.want2 {
			t.Errorf("%v, %v, %v: t1 %v, t2 %v", c.total, c.t1, c.t2, l.t1, l.t2)
		}
		for age := time.Duration(0); age < 2*c.total && age >= 0; age += c.total/100 + 1 {
			if again := l.again(age); again <= 0 {
				t.Errorf("%v: after %v, the next attempt is in %v", c.total, age, again)
			}
		}
	}
}

// TestExchange puts a request to a server on the loopback device that is
// deaf at first, talks of others, refuses, and agrees.
func TestExchange(t *testing.T) {
	listen := func() net.PacketConn {
		conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	peer, conn := listen(), listen()
	request, err := dhcpv4.New(dhcpv4.WithMessageType(dhcpv4.MessageTypeRequest), dhcpv4.WithHwAddr(mac), dhcpv4.WithClientIP(node.AsSlice()))
	if err != nil {
		t.Fatal(err)
	}
	nak := ack(t, request, 0, dhcpv4.WithMessageType(dhcpv4.MessageTypeNak), dhcpv4.WithOption(dhcpv4.OptMessage("not yours")))
	other := ack(t, request, time.Hour, dhcpv4.WithTransactionID(dhcpv4.TransactionID{1, 2, 3, 4}))
	stranger := ack(t, request, time.Hour, dhcpv4.WithHwAddr(net.HardwareAddr{2, 0, 0, 0, 0, 8}))
	good := ack(t, request, time.Hour)

	answers := func(packets ...[]byte) {
		go func() {
			buffer := make([]byte, 1500)
			_, from, err := peer.ReadFrom(buffer)
			if err != nil {
				return
			}
			for _, p := range packets {
				_, _ = peer.WriteTo(p, from)
			}
		}()
	}
	answers([]byte("nonsense"), other.ToBytes(), stranger.ToBytes(), request.ToBytes(), nak.ToBytes(), good.ToBytes())
	answer, err := exchange(t.Context(), conn, peer.LocalAddr(), request)
	if err != nil || answer.MessageType() != dhcpv4.MessageTypeAck || answer.TransactionID != request.TransactionID {
		t.Errorf("answer: %v, %v", answer, err)
	}
	answers(nak.ToBytes())
	if _, err := exchange(t.Context(), conn, peer.LocalAddr(), request); !errors.Is(err, errRefused) {
		t.Errorf("a refusal gives %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := exchange(ctx, conn, peer.LocalAddr(), request); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a cancelled request gives %v", err)
	}
}
