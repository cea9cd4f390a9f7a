package dhcp

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden files anew")

var (
	self  = netip.MustParseAddr("10.0.0.1")
	macA  = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0xa}
	macB  = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0xb}
	macC  = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0xc}
	other = net.HardwareAddr{0x52, 0x54, 0, 0, 0, 0xff}
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

// world is everything that an engine asks, under a test's control.
type world struct {
	*engine
	mu      sync.Mutex
	net     Network
	nodes   map[string]Node
	store   Memory
	onWire  map[netip.Addr]net.HardwareAddr
	probes  []netip.Addr
	clock   time.Time
	steps   []pxe.Progress
	putFail error
}

func newWorld(mode Mode) *world {
	w := &world{
		net: Network{
			Name: "lab", Mode: mode, Subnet: netip.MustParsePrefix("10.0.0.0/24"),
			First: addr("10.0.0.100"), Last: addr("10.0.0.102"),
			Router: addr("10.0.0.254"), DNS: []netip.Addr{addr("10.0.0.253"), addr("9.9.9.9")}, Domain: "lab.example",
			HTTP: "http://10.0.0.1:8080",
		},
		nodes:  map[string]Node{},
		onWire: map[netip.Addr]net.HardwareAddr{},
		clock:  time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC),
	}
	log := logrus.New()
	log.SetOutput(io.Discard)
	now := func() time.Time { return w.clock }
	w.engine = &engine{
		self: self, dir: w, leases: w, prober: w, steps: w, log: newRateLog(log, now), now: now,
		stats: &counters{}, offers: map[netip.Addr]offer{}, busy: map[string]bool{},
	}
	return w
}

func (w *world) Network(_ context.Context, at netip.Addr) (Network, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.net.Subnet.Contains(at) {
		return Network{}, fmt.Errorf("%s: %w", at, ErrNoNetwork)
	}
	return w.net, nil
}

func (w *world) Node(_ context.Context, _ string, mac net.HardwareAddr) (Node, error) {
	return w.nodes[mac.String()], nil
}

func (w *world) Probe(_ context.Context, _ netip.Prefix, a netip.Addr) (net.HardwareAddr, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.probes = append(w.probes, a)
	owner, ok := w.onWire[a]
	return owner, ok, nil
}

func (w *world) Leases(ctx context.Context, network string) ([]Lease, error) {
	return w.store.Leases(ctx, network)
}

func (w *world) PutLease(ctx context.Context, l Lease) error {
	if w.putFail != nil {
		return w.putFail
	}
	return w.store.PutLease(ctx, l)
}

func (w *world) Step(_ context.Context, p pxe.Progress) { w.steps = append(w.steps, p) }

type change func(*dhcpv4.DHCPv4)

func message(t dhcpv4.MessageType, mac net.HardwareAddr, changes ...change) *dhcpv4.DHCPv4 {
	m := &dhcpv4.DHCPv4{OpCode: dhcpv4.OpcodeBootRequest, HWType: iana.HWTypeEthernet, TransactionID: dhcpv4.TransactionID{1, 2, 3, 4}, ClientHWAddr: mac, Options: dhcpv4.Options{}}
	m.UpdateOption(dhcpv4.OptMessageType(t))
	for _, c := range changes {
		c(m)
	}
	return m
}

func option(code uint8, value ...byte) change {
	return func(m *dhcpv4.DHCPv4) { m.Options[code] = value }
}
func requested(a string) change { return option(50, addr(a).AsSlice()...) }
func chosen(a string) change    { return option(54, addr(a).AsSlice()...) }
func current(a string) change {
	return func(m *dhcpv4.DHCPv4) { m.ClientIPAddr = addr(a).AsSlice() }
}
func relayed(a string) change {
	return func(m *dhcpv4.DHCPv4) { m.GatewayIPAddr = addr(a).AsSlice() }
}

// firmware makes a message that of a PXE client, as RFC 4578 wants it.
func firmware(arch byte) change {
	return func(m *dhcpv4.DHCPv4) {
		option(60, fmt.Appendf(nil, "PXEClient:Arch:%05d:UNDI:002001", arch)...)(m)
		option(93, 0, arch)(m)
		option(94, 1, 2, 1)(m)
		option(97, append([]byte{0}, bytes.Repeat([]byte{0xab}, 16)...)...)(m)
		option(57, 4, 0xec)(m)
		m.SetBroadcast()
	}
}

func ipxe(m *dhcpv4.DHCPv4) {
	firmware(0)(m)
	option(77, []byte("iPXE")...)(m)
	option(175, 0x13, 1, 1, 0x21, 1, 1)(m)
}

func (w *world) tell(m *dhcpv4.DHCPv4) *answer {
	return w.handle(context.Background(), m, netip.MustParseAddrPort("0.0.0.0:68"), serverPort)
}

// ask sends m, and returns the type of the answer and the address in it.
func (w *world) ask(m *dhcpv4.DHCPv4) string {
	a := w.tell(m)
	if a == nil {
		return "silence"
	}
	text := a.packet.MessageType().String()
	if y := addrOf(a.packet.YourIPAddr); y.IsValid() {
		text += " " + y.String()
	}
	return text
}

func (w *world) want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %s, want %s", what, got, want)
	}
}

// acquire takes an address as a machine does.
func (w *world) acquire(t *testing.T, mac net.HardwareAddr) string {
	t.Helper()
	got := w.ask(message(dhcpv4.MessageTypeDiscover, mac))
	a, ok := strings.CutPrefix(got, "OFFER ")
	if !ok {
		t.Fatalf("%s was offered nothing: %s", mac, got)
	}
	w.want(t, "request", w.ask(message(dhcpv4.MessageTypeRequest, mac, requested(a), chosen("10.0.0.1"))), "ACK "+a)
	return a
}

// dump writes an answer byte by byte, with what each option is.
func dump(a *answer) string {
	if a == nil {
		return "silence\n"
	}
	p := a.packet
	var b strings.Builder
	raw := p.ToBytes()
	fmt.Fprintf(&b, "to %s\nhead   %x\nciaddr %s\nyiaddr %s\nsiaddr %s\ngiaddr %s\nfile   %q\n", a.to, raw[:12],
		net.IP(raw[12:16]), net.IP(raw[16:20]), net.IP(raw[20:24]), net.IP(raw[24:28]), strings.TrimRight(string(raw[108:236]), "\x00"))
	fmt.Fprintf(&b, "cookie %x\n", raw[236:240])
	for rest := raw[240:]; len(rest) > 0; {
		if rest[0] == 255 || rest[0] == 0 {
			fmt.Fprintf(&b, "%3d\n", rest[0])
			if rest[0] == 255 {
				break
			}
			rest = rest[1:]
			continue
		}
		v := rest[2 : 2+int(rest[1])]
		fmt.Fprintf(&b, "%3d %s", rest[0], hex.EncodeToString(v))
		if slices.Contains([]byte{12, 15, 56, 60, 67}, rest[0]) {
			fmt.Fprintf(&b, " %q", v)
		}
		b.WriteByte('\n')
		rest = rest[2+int(rest[1]):]
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
}

func TestGoldenProxy(t *testing.T) {
	discover := dhcpv4.MessageTypeDiscover
	for name, m := range map[string]*dhcpv4.DHCPv4{
		"proxy-bios":       message(discover, macA, firmware(0)),
		"proxy-efi":        message(discover, macA, firmware(7)),
		"proxy-ipxe":       message(discover, macA, ipxe),
		"proxy-relayed":    message(discover, macA, firmware(0), relayed("10.0.0.2"), option(82, 1, 2, 'e', '1')),
		"proxy-httpclient": message(discover, macA, option(60, []byte("HTTPClient:Arch:00016:UNDI:003001")...), option(93, 0, 16)),
		// Whom a proxy does not answer.
		"proxy-no-firmware": message(discover, macA),
		"proxy-arm64":       message(discover, macA, firmware(11)),
		"proxy-request":     message(dhcpv4.MessageTypeRequest, macA, firmware(0), requested("10.0.0.7"), chosen("10.0.0.9")),
		"proxy-inform":      message(dhcpv4.MessageTypeInform, macA, current("10.0.0.7")),
	} {
		a := newWorld(Proxy).tell(m)
		if a != nil && (!a.packet.YourIPAddr.IsUnspecified() && a.packet.YourIPAddr != nil || a.packet.Options.Has(dhcpv4.OptionIPAddressLeaseTime)) {
			t.Errorf("%s: a proxy gave an address", name)
		}
		golden(t, name, dump(a))
	}
}

func TestGoldenBootServer(t *testing.T) {
	from := netip.MustParseAddrPort("10.0.0.7:4011")
	for name, m := range map[string]*dhcpv4.DHCPv4{
		"boot-efi":      message(dhcpv4.MessageTypeRequest, macA, firmware(7), current("10.0.0.7")),
		"boot-bios":     message(dhcpv4.MessageTypeRequest, macA, firmware(0), current("10.0.0.7"), option(43, 71, 4, 0, 0, 0, 0, 255)),
		"boot-inform":   message(dhcpv4.MessageTypeInform, macA, firmware(9), current("10.0.0.7")),
		"boot-discover": message(dhcpv4.MessageTypeDiscover, macA, firmware(7), current("10.0.0.7")),
		"boot-no-pxe":   message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.7")),
	} {
		for _, mode := range []Mode{Proxy, Full} {
			golden(t, name, dump(newWorld(mode).handle(t.Context(), m, from, bootPort)))
		}
	}
}

func TestGoldenFull(t *testing.T) {
	w := newWorld(Full)
	w.nodes[macA.String()] = Node{Name: "node1", Address: addr("10.0.0.50")}
	discover := dhcpv4.MessageTypeDiscover
	golden(t, "full-offer-bios", dump(w.tell(message(discover, macA, firmware(0)))))
	golden(t, "full-ack-bios", dump(w.tell(message(dhcpv4.MessageTypeRequest, macA, firmware(0), requested("10.0.0.50"), chosen("10.0.0.1")))))
	golden(t, "full-offer-plain", dump(w.tell(message(discover, macB, option(61, 255, 1, 2, 3)))))
	golden(t, "full-offer-ipxe", dump(w.tell(message(discover, macC, ipxe))))
	golden(t, "full-offer-http", dump(w.tell(message(discover, macC, option(60, []byte("HTTPClient:Arch:00016")...), option(93, 0, 16)))))
	golden(t, "full-renew", dump(w.tell(message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.50")))))
	golden(t, "full-nak", dump(w.tell(message(dhcpv4.MessageTypeRequest, macA, requested("10.9.9.9")))))
	golden(t, "full-nak-relayed", dump(w.tell(message(dhcpv4.MessageTypeRequest, macA, requested("10.9.9.9"), relayed("10.0.0.2"), option(82, 1, 1, 9)))))
	golden(t, "full-inform", dump(w.tell(message(dhcpv4.MessageTypeInform, macA, current("10.0.0.50")))))
	if w.steps[0].Step != protocol.StepDHCP || w.steps[0].Client != addr("10.0.0.50") {
		t.Errorf("steps: %+v", w.steps)
	}
}

func TestOff(t *testing.T) {
	w := newWorld(Off)
	for _, port := range []int{serverPort, bootPort} {
		if a := w.handle(t.Context(), message(dhcpv4.MessageTypeDiscover, macA, firmware(0)), netip.AddrPort{}, port); a != nil {
			t.Errorf("port %d: %s", port, dump(a))
		}
	}
}

func TestLeaseLife(t *testing.T) {
	w := newWorld(Full)
	a := w.acquire(t, macA)
	w.want(t, "first", a, "10.0.0.100")
	// Firmware, initramfs and system have different client identifiers.
	w.want(t, "other identifier", w.ask(message(dhcpv4.MessageTypeDiscover, macA, option(61, 255, 9, 9))), "OFFER "+a)
	w.want(t, "same again", w.acquire(t, macA), a)
	if len(w.probes) != 1 {
		t.Errorf("probes: %v", w.probes)
	}
	w.want(t, "another", w.acquire(t, macB), "10.0.0.101")
	w.want(t, "INIT-REBOOT", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested(a))), "ACK "+a)
	w.want(t, "INIT-REBOOT, other's", w.ask(message(dhcpv4.MessageTypeRequest, macB, requested(a))), "NAK")
	w.want(t, "INIT-REBOOT, not mine", w.ask(message(dhcpv4.MessageTypeRequest, macB, requested("10.0.0.102"))), "NAK")
	w.want(t, "INIT-REBOOT, unknown", w.ask(message(dhcpv4.MessageTypeRequest, macC, requested("10.0.0.102"))), "silence")
	w.want(t, "INIT-REBOOT, other network", w.ask(message(dhcpv4.MessageTypeRequest, macC, requested("192.168.1.7"))), "NAK")
	w.want(t, "RENEW", w.ask(message(dhcpv4.MessageTypeRequest, macA, current(a))), "ACK "+a)
	w.want(t, "RENEW, other's", w.ask(message(dhcpv4.MessageTypeRequest, macC, current(a))), "NAK")
	w.want(t, "SELECTING, never offered", w.ask(message(dhcpv4.MessageTypeRequest, macC, requested("10.0.0.102"), chosen("10.0.0.1"))), "NAK")
	w.want(t, "SELECTING, other server", w.ask(message(dhcpv4.MessageTypeRequest, macC, requested("10.0.0.102"), chosen("10.0.0.9"))), "silence")

	// A restart: a new engine on the same store.
	again := newWorld(Full)
	again.store.leases = w.store.leases
	w.want(t, "after a restart", again.acquire(t, macB), "10.0.0.101")
	if len(again.probes) != 0 {
		t.Errorf("probes after a restart: %v", again.probes)
	}
}

// A machine that runs keeps its address, whatever was changed on the server.
func TestRenewKeepsTheRootAlive(t *testing.T) {
	w := newWorld(Full)
	w.want(t, "lease not on record", w.ask(message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.101"))), "ACK 10.0.0.101")
	w.nodes[macA.String()] = Node{Address: addr("10.0.0.50")}
	w.want(t, "fixed address changed", w.ask(message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.101"))), "ACK 10.0.0.101")
	w.want(t, "next boot", w.ask(message(dhcpv4.MessageTypeDiscover, macA)), "OFFER 10.0.0.50")
	w.want(t, "next boot, SELECTING the old", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested("10.0.0.101"), chosen("10.0.0.1"))), "NAK")
	w.net.First, w.net.Last = addr("10.0.0.200"), addr("10.0.0.201")
	w.want(t, "range changed", w.ask(message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.101"))), "ACK 10.0.0.101")
	w.clock = w.clock.Add(100 * time.Hour)
	w.want(t, "expired, nobody else's", w.ask(message(dhcpv4.MessageTypeRequest, macA, current("10.0.0.101"))), "ACK 10.0.0.101")
	w.want(t, "outside of the range and unknown", w.ask(message(dhcpv4.MessageTypeRequest, macB, current("10.0.0.9"))), "NAK")
	w.want(t, "the server's own", w.ask(message(dhcpv4.MessageTypeRequest, macB, current("10.0.0.1"))), "NAK")
}

func TestExpiredLast(t *testing.T) {
	w := newWorld(Full)
	w.acquire(t, macA) // .100
	w.clock = w.clock.Add(time.Hour)
	w.acquire(t, macB) // .101
	w.clock = w.clock.Add(24 * time.Hour)
	w.want(t, "never used first", w.acquire(t, macC), "10.0.0.102")
	w.want(t, "then the oldest", w.acquire(t, other), "10.0.0.100")
	w.want(t, "the one that lost it", w.acquire(t, macA), "10.0.0.101")
	w.want(t, "none is left", w.ask(message(dhcpv4.MessageTypeDiscover, macB)), "silence")
	w.want(t, "release", w.ask(message(dhcpv4.MessageTypeRelease, other, current("10.0.0.100"), chosen("10.0.0.1"))), "silence")
	w.want(t, "after the release", w.acquire(t, macB), "10.0.0.100")
}

func TestForeignReleaseAndDecline(t *testing.T) {
	w := newWorld(Full)
	a := w.acquire(t, macA)
	w.ask(message(dhcpv4.MessageTypeRelease, macB, current(a), chosen("10.0.0.1")))
	w.ask(message(dhcpv4.MessageTypeDecline, macB, requested(a), chosen("10.0.0.1")))
	w.ask(message(dhcpv4.MessageTypeDecline, macA, requested(a), chosen("10.0.0.9")))
	w.want(t, "INIT-REBOOT", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested(a))), "ACK "+a)
}

func TestDecline(t *testing.T) {
	w := newWorld(Full)
	a := w.acquire(t, macA)
	w.ask(message(dhcpv4.MessageTypeDecline, macA, requested(a), chosen("10.0.0.1")))
	b := w.acquire(t, macA)
	if a == b {
		t.Errorf("%s was given again after it was declined", a)
	}
	w.acquire(t, macB)
	w.want(t, "declined is kept", w.ask(message(dhcpv4.MessageTypeDiscover, macC)), "silence")
	w.clock = w.clock.Add(2 * time.Hour)
	w.want(t, "for an hour", w.acquire(t, macC), a)
}

func TestProbe(t *testing.T) {
	w := newWorld(Full)
	w.onWire[addr("10.0.0.100")] = other
	w.want(t, "used by another", w.acquire(t, macA), "10.0.0.101")
	if got := fmt.Sprint(w.probes); got != "[10.0.0.100 10.0.0.101]" {
		t.Errorf("probes: %s", got)
	}
	w.onWire[addr("10.0.0.102")] = macB
	w.want(t, "answered by the machine itself", w.acquire(t, macB), "10.0.0.102")

	w.nodes[macC.String()] = Node{Address: addr("10.0.0.60")}
	w.onWire[addr("10.0.0.60")] = other
	w.want(t, "fixed, and used by another", w.ask(message(dhcpv4.MessageTypeDiscover, macC)), "silence")
	delete(w.onWire, addr("10.0.0.60"))
	w.want(t, "fixed, and free again", w.ask(message(dhcpv4.MessageTypeDiscover, macC)), "OFFER 10.0.0.60")
}

func TestRequestedAddress(t *testing.T) {
	w := newWorld(Full)
	w.want(t, "free", w.ask(message(dhcpv4.MessageTypeDiscover, macA, requested("10.0.0.102"))), "OFFER 10.0.0.102")
	w.want(t, "offered to another", w.ask(message(dhcpv4.MessageTypeDiscover, macB, requested("10.0.0.102"))), "OFFER 10.0.0.100")
	w.want(t, "outside of the range", w.ask(message(dhcpv4.MessageTypeDiscover, macC, requested("10.0.0.9"))), "OFFER 10.0.0.101")
}

func TestNotFromTheRange(t *testing.T) {
	w := newWorld(Full)
	w.net.First, w.net.Last = addr("10.0.0.0"), addr("10.0.0.255")
	w.net.Reserved = []netip.Addr{addr("10.0.0.2")}
	w.net.NextServer = addr("10.0.0.3")
	w.want(t, "first", w.acquire(t, macA), "10.0.0.4")
	w.net.First = addr("10.0.0.253")
	w.want(t, "last: DNS, router and broadcast are none", w.ask(message(dhcpv4.MessageTypeDiscover, macB)), "silence")
	w.net.First, w.net.Last = netip.Addr{}, netip.Addr{}
	w.want(t, "no range", w.ask(message(dhcpv4.MessageTypeDiscover, macB)), "silence")
}

func TestNodeSwitches(t *testing.T) {
	w := newWorld(Full)
	w.nodes[macA.String()] = Node{NoBoot: true}
	w.nodes[macB.String()] = Node{NoAddress: true}
	a := w.tell(message(dhcpv4.MessageTypeDiscover, macA, firmware(0)))
	if a == nil || a.packet.BootFileName != "" || !a.packet.YourIPAddr.Equal(net.IP{10, 0, 0, 100}) {
		t.Errorf("NoBoot: %s", dump(a))
	}
	w.want(t, "NoAddress", w.ask(message(dhcpv4.MessageTypeDiscover, macB, firmware(0))), "silence")
	w.net.Mode = Proxy
	w.want(t, "NoBoot, proxy", w.ask(message(dhcpv4.MessageTypeDiscover, macA, firmware(0))), "silence")
	w.want(t, "NoAddress, proxy", w.ask(message(dhcpv4.MessageTypeDiscover, macB, firmware(0))), "OFFER")
}

// What cannot be recorded is not given.
func TestStoreFails(t *testing.T) {
	w := newWorld(Full)
	w.want(t, "discover", w.ask(message(dhcpv4.MessageTypeDiscover, macA)), "OFFER 10.0.0.100")
	w.putFail = errors.New("disk full")
	w.want(t, "request", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested("10.0.0.100"), chosen("10.0.0.1"))), "silence")
	w.putFail = nil
	w.want(t, "again", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested("10.0.0.100"), chosen("10.0.0.1"))), "ACK 10.0.0.100")
}

func TestOfferExpires(t *testing.T) {
	w := newWorld(Full)
	w.ask(message(dhcpv4.MessageTypeDiscover, macA))
	w.clock = w.clock.Add(2 * offerTime)
	w.want(t, "late request", w.ask(message(dhcpv4.MessageTypeRequest, macA, requested("10.0.0.100"), chosen("10.0.0.1"))), "NAK")
	w.want(t, "another", w.ask(message(dhcpv4.MessageTypeDiscover, macB)), "OFFER 10.0.0.100")
}

// Many machines at the same time never get one address twice.
func TestStorm(t *testing.T) {
	w := newWorld(Full)
	w.net.Last = addr("10.0.0.199")
	var wg sync.WaitGroup
	var mu sync.Mutex
	got := map[string]string{}
	for i := range 100 {
		wg.Go(func() {
			mac := net.HardwareAddr{2, 0, 0, 0, 1, byte(i)}
			a := w.acquire(t, mac)
			mu.Lock()
			defer mu.Unlock()
			if had, ok := got[a]; ok {
				t.Errorf("%s went to %s and to %s", a, had, mac)
			}
			got[a] = mac.String()
		})
	}
	wg.Wait()
	if len(got) != 100 {
		t.Errorf("%d addresses", len(got))
	}
}

func TestMalformedIsDropped(t *testing.T) {
	for name, c := range map[string]change{
		"a reply":           func(m *dhcpv4.DHCPv4) { m.OpCode = dhcpv4.OpcodeBootReply },
		"not Ethernet":      func(m *dhcpv4.DHCPv4) { m.HWType = 6 },
		"short address":     func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = m.ClientHWAddr[:3] },
		"long address":      func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make(net.HardwareAddr, 16) },
		"zero address":      func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = make(net.HardwareAddr, 6) },
		"multicast address": func(m *dhcpv4.DHCPv4) { m.ClientHWAddr = net.HardwareAddr{1, 0, 0, 0, 0, 1} },
		"BOOTP":             func(m *dhcpv4.DHCPv4) { delete(m.Options, 53) },
		"hops":              func(m *dhcpv4.DHCPv4) { m.HopCount = 17 },
	} {
		w := newWorld(Full)
		w.want(t, name, w.ask(message(dhcpv4.MessageTypeDiscover, macA, c)), "silence")
		if s := w.stats.read(); s.Malformed != 1 {
			t.Errorf("%s: %+v", name, s)
		}
	}
	w := newWorld(Full)
	w.want(t, "relay of an unknown network", w.ask(message(dhcpv4.MessageTypeDiscover, macA, relayed("10.7.0.1"))), "silence")
}

func TestIPXE(t *testing.T) {
	for name, c := range map[string]struct {
		changes []change
		want    bool
	}{
		"plain firmware":     {nil, false},
		"user class":         {[]change{option(77, []byte("iPXE")...)}, true},
		"user class, RFC":    {[]change{option(77, []byte("\x04iPXE")...)}, true},
		"other user class":   {[]change{option(77, []byte("gPXE")...)}, false},
		"features with HTTP": {[]change{option(175, 0x13, 1, 1)}, true},
		"features without":   {[]change{option(77, []byte("iPXE")...), option(175, 0x11, 1, 1)}, false},
		"broken features":    {[]change{option(175, 0x13, 200)}, false},
	} {
		m := message(dhcpv4.MessageTypeDiscover, macA, append([]change{firmware(0)}, c.changes...)...)
		if f, _ := firmwareOf(m); f.IPXE != c.want {
			t.Errorf("%s: %+v", name, f)
		}
	}
	m := message(dhcpv4.MessageTypeDiscover, macA, option(60, []byte("PXEClient:Arch:00007:UNDI:003016")...))
	if f, ok := firmwareOf(m); !ok || f.Arch != 7 {
		t.Errorf("architecture by class: %+v", f)
	}
}

// FuzzHandle throws bytes at every mode and port.
func FuzzHandle(f *testing.F) {
	for _, m := range []*dhcpv4.DHCPv4{
		message(dhcpv4.MessageTypeDiscover, macA, firmware(0)),
		message(dhcpv4.MessageTypeDiscover, macA, ipxe, relayed("10.0.0.2")),
		message(dhcpv4.MessageTypeRequest, macA, requested("10.0.0.100"), chosen("10.0.0.1"), option(43, 71, 4, 0, 0, 0, 0)),
		message(dhcpv4.MessageTypeInform, macA, current("10.0.0.7")),
	} {
		f.Add(m.ToBytes())
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := dhcpv4.FromBytes(raw)
		if err != nil {
			return
		}
		for _, mode := range []Mode{Proxy, Full, Off} {
			for _, port := range []int{serverPort, bootPort} {
				a := newWorld(mode).handle(context.Background(), m, netip.MustParseAddrPort("10.0.0.7:68"), port)
				if a == nil {
					continue
				}
				back, err := dhcpv4.FromBytes(a.packet.ToBytes())
				if err != nil {
					t.Fatalf("the answer cannot be read: %v", err)
				}
				if y := addrOf(back.YourIPAddr); y.IsValid() && (mode != Full || port == bootPort) {
					t.Fatalf("mode %s, port %d gave %s", mode, port, y)
				}
			}
		}
	})
}

func FuzzParsePackets(f *testing.F) {
	m := message(dhcpv4.MessageTypeOffer, macA)
	f.Add(wrapUDP(m.ToBytes()))
	f.Add(arpProbe(macA, self))
	f.Fuzz(func(t *testing.T, raw []byte) {
		parseOffer(raw, dhcpv4.TransactionID{1, 2, 3, 4})
		parseARP(raw)
	})
}

func TestRateLog(t *testing.T) {
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	now := time.Now()
	l := newRateLog(log, func() time.Time { return now })
	for range 1000 {
		l.warn("a", "trouble")
	}
	l.warn("b", "other trouble")
	now = now.Add(time.Minute)
	l.warn("a", "trouble")
	if n := strings.Count(out.String(), "\n"); n != 3 || !strings.Contains(out.String(), "hidden=999") {
		t.Errorf("%d lines:\n%s", n, out.String())
	}
}
