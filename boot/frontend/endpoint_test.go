package frontend

import (
	"net/netip"
	"strings"
	"testing"
)

func TestFindEndpoints(t *testing.T) {
	s := newSite(t)
	listen := func(text string) netip.Addr { return netip.MustParseAddr(text) }
	refused := func(want string, front *Server) {
		t.Helper()
		front.Registry = s.registry
		if e, err := front.findEndpoints(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, %v; wanted an error with %q", e, err, want)
		}
	}
	found := func(network string, front *Server) {
		t.Helper()
		front.Registry = s.registry
		e, err := front.findEndpoints(t.Context())
		if err != nil || len(e) != 1 || e[0].iface != "lo" || e[0].address != listen("127.0.0.1") || e[0].network != network ||
			e[0].subnet != netip.MustParsePrefix("127.0.0.0/8") {
			t.Errorf("%+v, %v", e, err)
		}
	}
	const unknown = "a network that is not in the catalog"
	refused("there is no network to serve", &Server{})
	refused(`no network interface "nosuch0"`, &Server{Interface: "nosuch0"})
	refused("--listen 198.51.100.9", &Server{Listen: listen("198.51.100.9")})
	// What is named by hand needs no network in the catalog.
	found(unknown, &Server{Interface: "lo"})
	found(unknown, &Server{Listen: listen("127.0.0.1")})

	s.network("elsewhere", "198.51.100.0/24")
	refused("no network interface of this machine has an address in 198.51.100.0/24", &Server{})
	s.network("here", "127.0.0.0/8")
	found("here", &Server{})
	found("here", &Server{Interface: "lo"})
}

func TestToward(t *testing.T) {
	s := &Server{HTTPPort: 8080, NFSPort: 2049, endpoints: []endpoint{
		{address: netip.MustParseAddr("10.0.0.1"), subnet: netip.MustParsePrefix("10.0.0.0/24")},
		{address: netip.MustParseAddr("10.1.0.1"), subnet: netip.MustParsePrefix("10.1.0.0/16")},
	}}
	for client, want := range map[string]string{
		"10.0.0.7": "10.0.0.1", "10.1.200.7": "10.1.0.1", "::ffff:10.1.200.7": "10.1.0.1", "172.16.0.1": "10.0.0.1",
	} {
		c := netip.MustParseAddr(client)
		if http, nfs := s.httpBase(c), s.nfsAddress(c).String(); http != "http://"+want+":8080" || nfs != want+":2049" {
			t.Errorf("%s is told %s and %s", client, http, nfs)
		}
	}
}
