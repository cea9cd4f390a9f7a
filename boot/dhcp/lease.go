package dhcp

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// State says what a lease is.
type State string

// The states of a lease.
const (
	// Bound: the machine has the address until the lease expires. Expired, it
	// is remembered, for the machine to get it again.
	Bound State = "bound"
	// Released: the machine has given it back.
	Released State = "released"
	// Declined: somebody else on the wire uses the address; nobody is given it
	// before Expires.
	Declined State = "declined"
)

// Lease ties an address to a machine for a time.
type Lease struct {
	Network string // name of the network
	// MAC is the machine's hardware address; of a declined lease it is the
	// machine that was to have the address.
	MAC     net.HardwareAddr
	Address netip.Addr
	// Hostname is what the machine calls itself, or its node's name.
	Hostname string
	State    State
	Expires  time.Time
}

// LeaseStore keeps leases over restarts. Its methods may be called from
// several goroutines.
type LeaseStore interface {
	// Leases returns every lease of a network, in no particular order.
	Leases(ctx context.Context, network string) ([]Lease, error)
	// PutLease records l in the place of whatever there is of its network and
	// address. The record is durable when PutLease returns.
	PutLease(ctx context.Context, l Lease) error
}

// Memory is a LeaseStore that forgets everything when its process ends. Its
// zero value is empty and ready.
type Memory struct {
	mu     sync.Mutex
	leases []Lease
}

// Leases implements LeaseStore.
func (m *Memory) Leases(_ context.Context, network string) ([]Lease, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []Lease
	for _, l := range m.leases {
		if l.Network == network {
			found = append(found, l)
		}
	}
	return found, nil
}

// PutLease implements LeaseStore.
func (m *Memory) PutLease(_ context.Context, l Lease) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l.MAC = slices.Clone(l.MAC)
	for i, old := range m.leases {
		if old.Network == l.Network && old.Address == l.Address {
			m.leases[i] = l
			return nil
		}
	}
	m.leases = append(m.leases, l)
	return nil
}
