package node

import (
	"errors"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"sidus/boot/protocol"
	"sidus/image/store"
)

func addr(text string) netip.Addr { return netip.MustParseAddr(text) }

func mustRange(text string) Range {
	r, err := ParseRange(text)
	if err != nil {
		panic(err)
	}
	return r
}

func TestNetworkIsKept(t *testing.T) {
	s := newSite(t)
	want := s.network("full", NetworkChange{
		Subnet: ptr(netip.MustParsePrefix("10.2.0.0/16")), Range: ptr(mustRange("10.2.1.0 - 10.2.1.99")), Router: ptr(addr("10.2.0.1")),
		DNS: ptr([]netip.Addr{addr("10.2.0.1"), addr("9.9.9.9")}), Domain: ptr("Lab.Example."), Lease: ptr(2 * time.Minute),
		Mode: ptr(ModeFull), Channel: ptr(""), Args: ptr(" quiet "), NFSOptions: ptr([]string{"nconnect=4", "nocto", "actimeo=3600"}),
	})
	s.restart()
	got, err := s.Network(t.Context(), "full")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if got.Domain != "lab.example" || got.Args != "quiet" || got.Lease() != 2*time.Minute {
		t.Errorf("%+v", got)
	}
	lab, err := s.Network(t.Context(), "lab")
	if err != nil || lab.Mode != ModeProxy || lab.Channel != "default" || lab.Lease() != DefaultLease {
		t.Errorf("the defaults: %+v, %v", lab, err)
	}
	if _, err := s.Network(t.Context(), "nope"); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "there is full, lab") {
		t.Errorf("a network that is missing: %v", err)
	}
}

func TestNetworkIsRefused(t *testing.T) {
	s := newSite(t)
	subnet := ptr(netip.MustParsePrefix("10.9.0.0/24"))
	for _, c := range []struct {
		name   string
		change NetworkChange
		text   string
	}{
		{"n", NetworkChange{}, "needs a subnet"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.9.0.5/24"))}, "is 10.9.0.0/24 meant?"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("fd00::/64"))}, "not IPv4"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.9.0.0/31"))}, "from /8 to /30"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("0.0.0.0/0"))}, "from /8 to /30"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("224.0.0.0/24"))}, "no such addresses"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.0.0.0/16"))}, "overlaps with 10.0.0.0/24 of network lab"},
		{"n", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.0.0.128/25"))}, "overlaps"},
		{"lab", NetworkChange{Subnet: subnet}, "exists already"},
		{"", NetworkChange{Subnet: subnet}, "network name"},
		{"../x", NetworkChange{Subnet: subnet}, "network name"},
		{"-x", NetworkChange{Subnet: subnet}, "network name"},
		{"a b", NetworkChange{Subnet: subnet}, "network name"},
		{"a\nb", NetworkChange{Subnet: subnet}, "network name"},
		{strings.Repeat("x", 300), NetworkChange{Subnet: subnet}, "network name"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.8.0.1-10.9.0.9"))}, "10.8.0.1 is not in the subnet"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.9.0.9-10.9.0.1"))}, "before the first"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.9.0.0-10.9.0.9"))}, "the subnet itself"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.9.0.9-10.9.0.255"))}, "broadcast"},
		{"n", NetworkChange{Subnet: subnet, Range: &Range{First: addr("10.9.0.9")}}, "a first and a last"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.9.0.9-10.9.0.99")), Router: ptr(addr("10.9.0.50"))}, "holds the router"},
		{"n", NetworkChange{Subnet: subnet, Range: ptr(mustRange("10.9.0.9-10.9.0.99")), DNS: ptr([]netip.Addr{addr("10.9.0.50")})}, "holds the DNS server"},
		{"n", NetworkChange{Subnet: subnet, Mode: ptr(ModeFull)}, "needs a range"},
		{"n", NetworkChange{Subnet: subnet, Mode: ptr(Mode("half"))}, "proxy"},
		{"n", NetworkChange{Subnet: subnet, Router: ptr(addr("10.8.0.1"))}, "router"},
		{"n", NetworkChange{Subnet: subnet, Router: ptr(addr("10.9.0.255"))}, "broadcast"},
		{"n", NetworkChange{Subnet: subnet, DNS: ptr([]netip.Addr{addr("::1")})}, "DNS server"},
		{"n", NetworkChange{Subnet: subnet, DNS: ptr([]netip.Addr{addr("9.9.9.9"), addr("9.9.9.9")})}, "twice"},
		{"n", NetworkChange{Subnet: subnet, Domain: ptr("not a domain")}, "domain"},
		{"n", NetworkChange{Subnet: subnet, Lease: ptr(119 * time.Second)}, "at least 2m0s"},
		{"n", NetworkChange{Subnet: subnet, Lease: ptr(-time.Hour)}, "at least"},
		{"n", NetworkChange{Subnet: subnet, Lease: ptr(400 * 24 * time.Hour)}, "at most"},
		{"n", NetworkChange{Subnet: subnet, Lease: ptr(2*time.Minute + time.Millisecond)}, "whole seconds"},
		{"n", NetworkChange{Subnet: subnet, Channel: ptr("a b")}, "channel"},
		{"n", NetworkChange{Subnet: subnet, Args: ptr("quiet\ninit=/bin/sh")}, "control character"},
		{"n", NetworkChange{Subnet: subnet, Args: ptr("sidus.session=0")}, "set by Sidus itself"},
		{"n", NetworkChange{Subnet: subnet, Args: ptr(strings.Repeat("x", 1001))}, "1001 bytes"},
		{"n", NetworkChange{Subnet: subnet, NFSOptions: ptr([]string{"soft"})}, "breaks running programs"},
	} {
		_, err := s.AddNetwork(t.Context(), by, c.name, c.change)
		if err == nil || !strings.Contains(err.Error(), c.text) {
			t.Errorf("%q %+v: %v; want %q", c.name, c.change, err, c.text)
		} else if !errors.Is(err, ErrInvalid) && !errors.Is(err, store.ErrExists) {
			t.Errorf("%v is of no class", err)
		}
	}
	if list, err := s.Networks(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("after refusals: %v, %v", list, err)
	}
	_, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Range: ptr(mustRange("10.0.0.1-10.0.0.99"))})
	if err == nil || !strings.Contains(err.Error(), "an address of this server") {
		t.Errorf("a range that holds the server: %v", err)
	}
}

func TestNFSOptions(t *testing.T) {
	for _, good := range [][]string{nil, {"nconnect=16", "rsize=1048576", "lookupcache=all", "nocto", "noatime"}} {
		if err := CheckNFSOptions(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []string{"", "rw", "soft", "vers=4", "proto=udp", "nconnect", "nconnect=0", "nconnect=17", "nconnect=+4", "rsize=1",
		"lookupcache=some", "nocto=1", "hard,rw", "x", "actimeo=-1", "port=1", "nosuid", "RSIZE=4096"} {
		if err := CheckNFSOptions([]string{bad}); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if err := CheckNFSOptions([]string{"nconnect=2", "nconnect=3"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("twice: %v", err)
	}
}

func TestNetworkHistory(t *testing.T) {
	s := newSite(t)
	_, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Range: ptr(mustRange("10.0.0.100-10.0.0.200")), Mode: ptr(ModeFull), Channel: ptr("")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Mode: ptr(ModeFull)}); err != nil { // no change, no event
		t.Fatal(err)
	}
	if err := s.DeleteNetwork(t.Context(), by, "lab", false); err != nil {
		t.Fatal(err)
	}
	events, err := s.cat.Events(t.Context(), "lab", 0)
	if err != nil || len(events) != 3 {
		t.Fatalf("%v, %v", events, err)
	}
	e := events[1]
	if e.Action != "network-set" || e.Actor != "alice" || e.Message != "because" || e.Command != "sidus test" ||
		e.Text != "changed network lab: range none → 10.0.0.100-10.0.0.200, mode proxy → full, channel default → none" {
		t.Errorf("%+v", e)
	}
}

func TestNetworkInUse(t *testing.T) {
	s := newSite(t)
	if _, err := s.AddNode(t.Context(), by, mac2, NodeChange{Name: ptr("fixed"), Address: ptr(addr("10.0.0.50"))}); err != nil {
		t.Fatal(err)
	}
	b := s.boot(mac1, client1)
	s.step(protocol.StepRoot, b.Session.ID)
	moved := NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.7.0.0/24"))}
	for what, err := range map[string]error{
		"delete": s.DeleteNetwork(t.Context(), by, "lab", false),
		"move":   func() error { _, err := s.SetNetwork(t.Context(), by, "lab", moved); return err }(),
	} {
		if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "node fixed has the fixed address 10.0.0.50") ||
			!strings.Contains(err.Error(), mac1.String()+" runs debian@1 at 10.0.0.101") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := s.SetNetwork(t.Context(), by, "lab", NetworkChange{Subnet: ptr(netip.MustParsePrefix("10.0.0.0/23"))}); err != nil {
		t.Errorf("a larger subnet: %v", err)
	}
	if err := s.DeleteNetwork(t.Context(), by, "lab", true); !errors.Is(err, store.ErrInUse) {
		t.Errorf("force with a fixed address: %v", err)
	}
	if _, err := s.SetNode(t.Context(), by, "fixed", NodeChange{Address: ptr(netip.Addr{})}); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteNetwork(t.Context(), by, "lab", false); !errors.Is(err, store.ErrInUse) {
		t.Errorf("with a machine that runs: %v", err)
	}
	if err := s.DeleteNetwork(t.Context(), by, "lab", true); err != nil {
		t.Error(err)
	}
	if users, err := s.UsersOf(t.Context(), id(1)); err != nil || len(users) != 1 {
		t.Errorf("the machine that runs lost its snapshot: %v, %v", users, err)
	}
}

func TestAllowed(t *testing.T) {
	s := newSite(t)
	for text, want := range map[string]bool{
		"10.0.0.1": true, "10.0.0.255": true, "::ffff:10.0.0.7": true, "10.0.1.1": false, "127.0.0.1": false, "::1": false,
	} {
		if got := s.Allowed(addr(text)); got != want {
			t.Errorf("Allowed(%s) = %v", text, got)
		}
	}
	if s.Allowed(netip.Addr{}) {
		t.Error("no address is allowed")
	}
}

func TestParseRange(t *testing.T) {
	for _, bad := range []string{"10.0.0.1", "10.0.0.1-", "-", "10.0.0.1-10", "a-b", "10.0.0.1-10.0.0.2-10.0.0.3"} {
		if _, err := ParseRange(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if r, err := ParseRange(""); err != nil || !r.IsZero() || r.String() != "" {
		t.Errorf("none: %v, %v", r, err)
	}
}
