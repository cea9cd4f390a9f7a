package dhcp

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"sidus/boot/pxe"
)

// Mode says how a network is served.
type Mode string

// The modes.
const (
	Proxy Mode = "proxy"
	Full  Mode = "full"
	Off   Mode = "off"
)

// DefaultLease is the lease time of a network that none was given for.
const DefaultLease = 12 * time.Hour

// ErrNoNetwork is returned by a Directory for an address in no network.
var ErrNoNetwork = errors.New("in no network")

// Network is what the server has to know of a network.
type Network struct {
	Name   string
	Mode   Mode // "" means Proxy
	Subnet netip.Prefix
	// First and Last are the range of addresses for machines without a fixed
	// one, both included. Invalid: no such machine is given an address.
	First, Last netip.Addr
	// Reserved are addresses that no machine gets from the range: the fixed
	// ones of nodes, for example. The router's, the DNS servers' and this
	// server's need not be among them.
	Reserved []netip.Addr
	Router   netip.Addr // invalid: none
	DNS      []netip.Addr
	Domain   string
	// Lease is the lease time; 0 means DefaultLease.
	Lease time.Duration
	// Loaders says which boot loader each firmware gets.
	Loaders pxe.Loaders
	// NextServer is the TFTP server; invalid means this server.
	NextServer netip.Addr
	// HTTP is the base address of the HTTP server ("http://10.0.0.1:8080");
	// "" means that there is none, and iPXE gets the files that others get.
	HTTP string
}

// Node is what the server has to know of a machine.
type Node struct {
	// Name becomes the machine's hostname; "" gives it none.
	Name string
	// Address is the machine's fixed address; invalid: one from the range.
	Address netip.Addr
	// NoBoot keeps the server from telling the machine what to boot.
	NoBoot bool
	// NoAddress keeps the server from giving the machine an address.
	NoAddress bool
}

// Directory knows networks and machines. It is asked for each packet, so that
// a change counts from the next one on. Its methods may be called from several
// goroutines.
type Directory interface {
	// Network returns the network that an address lies in: this server's, a
	// relay's, or a client's. The error wraps ErrNoNetwork if there is none.
	Network(ctx context.Context, at netip.Addr) (Network, error)
	// Node returns what is known of a machine in a network: nothing, a zero
	// Node, for a machine that is not known.
	Node(ctx context.Context, network string, mac net.HardwareAddr) (Node, error)
}
