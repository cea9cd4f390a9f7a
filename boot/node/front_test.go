package node

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"sidus/boot/dhcp"
	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

func (s *site) booter(entryErr error) *Booter {
	return &Booter{
		Registry: s.Registry,
		Entry: func(_ context.Context, snapshot store.SnapshotID) (protocol.BootEntry, error) {
			return protocol.BootEntry{Protocol: 1, Kernel: "/boot/vmlinuz", Initrd: "/boot/initrd.img", CmdLine: "console=tty0"}, entryErr
		},
		HTTP: func(netip.Addr) string { return "http://10.0.0.1:8080" },
		NFS:  func(netip.Addr) netip.AddrPort { return netip.MustParseAddrPort("10.0.0.1:2049") },
	}
}

func TestBooter(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	if _, err := s.SetNetwork(ctx, by, "lab", NetworkChange{Args: ptr("console=ttyS0"), NFSOptions: ptr([]string{"nconnect=4", "nocto"})}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddNode(ctx, by, mac1, NodeChange{Name: ptr("n1"), Args: ptr(`dyndbg="file x +p"`)}); err != nil {
		t.Fatal(err)
	}
	c, err := s.booter(nil).Boot(ctx, mac1.HardwareAddr(), client1, pxe.IPXE)
	if err != nil {
		t.Fatal(err)
	}
	line, err := protocol.ParseCommandLine(c.CommandLine)
	if err != nil {
		t.Fatal(err)
	}
	if line.Session != c.Session || line.Snapshot != id(1) || c.Snapshot != id(1) || line.Hostname != "n1" ||
		line.MachineID != MachineID([32]byte{1, 2, 3}, mac1) || strings.Join(line.NFSOptions, " ") != "nconnect=4 nocto" ||
		line.Extra != `console=tty0 console=ttyS0 dyndbg="file x +p"` || c.Title != "debian@1" || c.Node != "n1" ||
		!strings.Contains(c.KernelURL, string(id(1))) || line.BootMAC.String() != mac1.String() {
		t.Errorf("%+v\n%+v", c, line)
	}
	if _, err := pxe.Render(pxe.IPXE, c); err != nil {
		t.Error(err)
	}
}

func TestBooterNothing(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	for _, c := range []struct {
		name   string
		client netip.Addr
		mac    MAC
		then   pxe.Then
	}{
		{"not served", addr("192.168.1.1"), mac1, pxe.ThenLocal},
		{"no card", client1, MAC{}, pxe.ThenLocal},
		{"missing channel", client1, mac2, pxe.ThenRetry},
	} {
		if c.mac == mac2 {
			if _, err := s.AddNode(ctx, by, mac2, NodeChange{Channel: ptr("nope")}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := s.booter(nil).Boot(ctx, c.mac.HardwareAddr(), c.client, pxe.IPXE)
		nothing, ok := errors.AsType[*pxe.Nothing](err)
		if !ok || nothing.Then != c.then || nothing.Reason == "" {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	broken := errors.New("unreadable")
	if _, err := s.booter(broken).Boot(ctx, mac1.HardwareAddr(), client1, pxe.IPXE); !errors.Is(err, broken) {
		t.Errorf("without an entry: %v", err)
	}
}

func TestDirectory(t *testing.T) {
	s := newSite(t)
	ctx := t.Context()
	if _, err := s.SetNetwork(ctx, by, "lab", NetworkChange{
		Range: ptr(mustRange("10.0.0.100-10.0.0.200")), Router: ptr(addr("10.0.0.2")), Domain: ptr("lab"), Lease: ptr(2 * time.Minute),
	}); err != nil {
		t.Fatal(err)
	}
	s.network("other", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.1.0.0/24"))})
	if _, err := s.AddNode(ctx, by, mac1, NodeChange{Name: ptr("n1"), Address: ptr(addr("10.0.0.150"))}); err != nil {
		t.Fatal(err)
	}
	d := &Directory{Registry: s.Registry, HTTP: func(p netip.Prefix) string { return "http://10.0.0.1:80" }}
	n, err := d.Network(ctx, client1)
	if err != nil || n.Name != "lab" || n.Mode != dhcp.Proxy || n.First != addr("10.0.0.100") || len(n.Reserved) != 1 ||
		n.Lease != 2*time.Minute || n.HTTP == "" || n.Domain != "lab" || n.Router != addr("10.0.0.2") {
		t.Errorf("%+v, %v", n, err)
	}
	d.Mode = ModeOff
	if n, err = d.Network(ctx, client1); err != nil || n.Mode != dhcp.Off {
		t.Errorf("%+v, %v", n, err)
	}
	if _, err := d.Network(ctx, addr("192.168.0.1")); !errors.Is(err, dhcp.ErrNoNetwork) {
		t.Error(err)
	}
	for network, want := range map[string]netip.Addr{"lab": addr("10.0.0.150"), "other": {}} {
		if got, err := d.Node(ctx, network, mac1.HardwareAddr()); err != nil || got.Name != "n1" || got.Address != want {
			t.Errorf("%s: %+v, %v", network, got, err)
		}
	}
	if got, err := d.Node(ctx, "lab", mac2.HardwareAddr()); err != nil || got != (dhcp.Node{}) {
		t.Errorf("unknown: %+v, %v", got, err)
	}
}

func TestFollower(t *testing.T) {
	s := newSite(t)
	b := s.boot(mac1, client1)
	f := NewFollower(s.Registry)
	f.Step(t.Context(), pxe.Progress{Step: protocol.StepKernel, Session: b.Session.ID})
	f.Step(t.Context(), pxe.Progress{Step: protocol.StepRoot, Client: client1, Snapshot: id(1)})
	s.clock.Add(time.Hour)
	f.Heard(client1, id(1))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	cancel() // all that was told before is written all the same
	go func() { done <- f.Run(ctx) }()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := s.sessions()[0]
	if got.Step != protocol.StepRoot || !got.Heard.Equal(s.clock.Now()) {
		t.Errorf("%+v", got)
	}
}

func TestFollowerKeepsWhatItCannotWrite(t *testing.T) {
	s := newSite(t)
	b := s.boot(mac1, client1)
	s.step(protocol.StepRoot, b.Session.ID)
	f := NewFollower(s.Registry)
	s.clock.Add(time.Minute)
	f.Heard(client1, id(1))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	f.round(ended)
	f.round(t.Context())
	if got := s.sessions()[0].Heard; !got.Equal(s.clock.Now()) {
		t.Errorf("heard at %s", got)
	}
	snapshot := id(1)
	if n := testing.AllocsPerRun(100, func() { f.Heard(client1, snapshot) }); n > 0 {
		t.Errorf("%v allocations for one sign of life", n)
	}
	for range followQueue + 10 { // does not block
		f.Step(t.Context(), pxe.Progress{Step: protocol.StepKernel, Session: b.Session.ID})
	}
	if f.lost != 10 {
		t.Errorf("%d steps lost", f.lost)
	}
}
