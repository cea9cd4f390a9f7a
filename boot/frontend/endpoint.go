package frontend

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"sidus/boot/node"
)

// endpoint is an address of this machine at which a network is served.
type endpoint struct {
	iface   string
	address netip.Addr
	subnet  netip.Prefix // of the interface
	network string       // the catalog's name for it, or the subnet
}

// findEndpoints chooses the addresses to listen on.
func (s *Server) findEndpoints(ctx context.Context) ([]endpoint, error) {
	networks, err := s.Registry.Networks(ctx)
	if err != nil {
		return nil, err
	}
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("look for network interfaces: %w", err)
	}
	found := false
	var endpoints []endpoint
	for _, i := range interfaces {
		if s.Interface != "" && i.Name != s.Interface {
			continue
		}
		found = true
		addresses, err := i.Addrs()
		if err != nil {
			return nil, fmt.Errorf("addresses of %s: %w", i.Name, err)
		}
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.String())
			if err != nil || !prefix.Addr().Is4() || s.Listen.IsValid() && prefix.Addr() != s.Listen {
				continue
			}
			name, known := networkName(networks, prefix.Addr())
			// What was named by hand is served; else only known networks are.
			if known || s.Interface != "" || s.Listen.IsValid() {
				endpoints = append(endpoints, endpoint{iface: i.Name, address: prefix.Addr(), subnet: prefix.Masked(), network: name})
			}
		}
	}
	switch {
	case s.Interface != "" && !found:
		return nil, fmt.Errorf("there is no network interface %q on this machine (`ip link` lists them)", s.Interface)
	case len(endpoints) > 0:
		return endpoints, nil
	case s.Listen.IsValid():
		return nil, fmt.Errorf("--listen %s: no network interface of this machine has that address", s.Listen)
	case s.Interface != "":
		return nil, fmt.Errorf("the interface %s has no IPv4 address yet", s.Interface)
	case len(networks) == 0:
		return nil, fmt.Errorf("there is no network to serve: `sidus network add NAME --subnet 10.0.0.0/24` adds one")
	}
	return nil, fmt.Errorf("no network interface of this machine has an address in %s (`ip addr` shows what it has)", networks[0].Subnet)
}

func networkName(networks []node.Network, address netip.Addr) (string, bool) {
	for _, n := range networks {
		if n.Subnet.Contains(address) {
			return n.Name, true
		}
	}
	return "a network that is not in the catalog", false
}

// toward is the address by which a client reaches this machine: the one in
// its subnet, else the first (it comes through a router).
func (s *Server) toward(client netip.Addr) netip.Addr {
	client = client.Unmap()
	for _, e := range s.endpoints {
		if e.subnet.Contains(client) {
			return e.address
		}
	}
	return s.endpoints[0].address
}

func (s *Server) httpBase(client netip.Addr) string {
	return "http://" + netip.AddrPortFrom(s.toward(client), uint16(s.HTTPPort)).String()
}

func (s *Server) nfsAddress(client netip.Addr) netip.AddrPort {
	return netip.AddrPortFrom(s.toward(client), uint16(s.NFSPort))
}
