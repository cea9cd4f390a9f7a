package node

import (
	"context"
	"database/sql"
	"fmt"
	"net"
	"net/netip"

	"sidus/boot/dhcp"
	"sidus/boot/pxe"
)

// Directory is the dhcp.Directory of a Registry.
type Directory struct {
	Registry *Registry
	// Mode takes the place of the modes of all networks; "" leaves them.
	Mode Mode
	// Loaders says which boot loader each firmware gets.
	Loaders pxe.Loaders
	// HTTP returns the base address of the HTTP server as machines in subnet
	// reach it; nil or "" means that there is none.
	HTTP func(subnet netip.Prefix) string
}

// Network implements dhcp.Directory.
func (d *Directory) Network(ctx context.Context, at netip.Addr) (dhcp.Network, error) {
	var network Network
	var fixed []netip.Addr
	err := d.Registry.catalog.View(ctx, func(tx *sql.Tx) error {
		all, err := networks(tx)
		if err != nil {
			return err
		}
		var ok bool
		if network, ok = networkOf(all, at); !ok {
			return fmt.Errorf("address %s: %w", at, dhcp.ErrNoNetwork)
		}
		fixed, err = fixedAddresses(tx, network.Subnet)
		return err
	})
	if err != nil {
		return dhcp.Network{}, err
	}
	mode := network.Mode
	if d.Mode != "" {
		mode = d.Mode
	}
	served := dhcp.Network{
		Name: network.Name, Mode: dhcp.Mode(mode), Subnet: network.Subnet, First: network.Range.First, Last: network.Range.Last,
		Reserved: fixed, Router: network.Router, DNS: network.DNS, Domain: network.Domain, Lease: network.Lease(), Loaders: d.Loaders,
	}
	if d.HTTP != nil {
		served.HTTP = d.HTTP(network.Subnet)
	}
	return served, nil
}

// Node implements dhcp.Directory. A fixed address counts in its own network
// only.
func (d *Directory) Node(ctx context.Context, name string, hw net.HardwareAddr) (dhcp.Node, error) {
	mac, err := MACOf(hw)
	if err != nil {
		return dhcp.Node{}, err
	}
	var known dhcp.Node
	err = d.Registry.catalog.View(ctx, func(tx *sql.Tx) error {
		n, found, err := nodeByMAC(tx, mac)
		if err != nil || !found {
			return err
		}
		known.Name = n.Name
		if !n.Address.IsValid() {
			return nil
		}
		all, err := networks(tx)
		if err != nil {
			return err
		}
		if network, ok := networkOf(all, n.Address); ok && network.Name == name {
			known.Address = n.Address
		}
		return nil
	})
	return known, err
}

func fixedAddresses(tx *sql.Tx, subnet netip.Prefix) ([]netip.Addr, error) {
	all, err := collect(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE address <> ''`)
	if err != nil {
		return nil, err
	}
	var fixed []netip.Addr
	for _, n := range all {
		if subnet.Contains(n.Address) {
			fixed = append(fixed, n.Address)
		}
	}
	return fixed, nil
}
