package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// Mode says how DHCP is done in a network.
type Mode string

// The modes.
const (
	// ModeProxy adds boot information to what another DHCP server answers.
	ModeProxy Mode = "proxy"
	// ModeFull gives addresses.
	ModeFull Mode = "full"
	// ModeOff is silent: another server names this one as its next server.
	ModeOff Mode = "off"
)

// DefaultLease is the lease time of a network that none was given for.
const DefaultLease = 12 * time.Hour

// Range is a range of addresses, both ends included. The zero value is none.
type Range struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// ParseRange reads "10.0.0.100-10.0.0.200"; "" is no range. The error wraps
// ErrInvalid.
func ParseRange(text string) (Range, error) {
	if text == "" {
		return Range{}, nil
	}
	first, last, ok := strings.Cut(text, "-")
	var r Range
	var err error
	if ok {
		if r.First, err = netip.ParseAddr(strings.TrimSpace(first)); err == nil {
			r.Last, err = netip.ParseAddr(strings.TrimSpace(last))
		}
	}
	if !ok || err != nil {
		return Range{}, fmt.Errorf("range %.60q: %w: it is written like 10.0.0.100-10.0.0.200", text, ErrInvalid)
	}
	return r, nil
}

// IsZero tells whether r is no range.
func (r Range) IsZero() bool { return r == Range{} }

// Contains tells whether a is in r.
func (r Range) Contains(a netip.Addr) bool {
	return !r.IsZero() && a.Is4() && !a.Less(r.First) && !r.Last.Less(a)
}

func (r Range) String() string {
	if r.IsZero() {
		return ""
	}
	return r.First.String() + "-" + r.Last.String()
}

// Network is a subnet that is served.
type Network struct {
	Name   string       `json:"name"`
	Subnet netip.Prefix `json:"subnet"`
	// Range holds the addresses that are given to nodes without a fixed one.
	Range  Range        `json:"range,omitzero"`
	Router netip.Addr   `json:"router,omitzero"`
	DNS    []netip.Addr `json:"dns"`
	Domain string       `json:"domain,omitempty"`
	// LeaseSeconds is the lease time.
	LeaseSeconds int64 `json:"lease_seconds"`
	Mode         Mode  `json:"mode"`
	// Channel is what unknown machines boot, and nodes that have neither
	// channel nor pin; "" is nothing.
	Channel string `json:"channel"`
	// Args are kernel arguments for all machines of the network.
	Args string `json:"args,omitempty"`
	// NFSOptions are mount options of the root.
	NFSOptions []string  `json:"nfs_options"`
	Created    time.Time `json:"created"`
}

// Lease is the lease time.
func (n Network) Lease() time.Duration { return time.Duration(n.LeaseSeconds) * time.Second }

// NetworkChange is what is to be changed of a network; nil leaves a field as
// it is. A pointer to a zero value takes the thing away: no range, no router,
// no DNS, no domain, no channel (unknown machines boot nothing), no
// arguments, no options.
type NetworkChange struct {
	Subnet     *netip.Prefix
	Range      *Range
	Router     *netip.Addr
	DNS        *[]netip.Addr
	Domain     *string
	Lease      *time.Duration
	Mode       *Mode
	Channel    *string
	Args       *string
	NFSOptions *[]string
	// Force changes the subnet although machines run in the old one.
	Force bool
}

func (c NetworkChange) apply(n Network) (Network, error) {
	set(&n.Subnet, c.Subnet)
	set(&n.Range, c.Range)
	set(&n.Router, c.Router)
	set(&n.DNS, c.DNS)
	set(&n.Domain, c.Domain)
	set(&n.Mode, c.Mode)
	set(&n.Channel, c.Channel)
	set(&n.Args, c.Args)
	set(&n.NFSOptions, c.NFSOptions)
	if c.Lease != nil {
		if *c.Lease%time.Second != 0 {
			return n, fmt.Errorf("network %s: lease time %s: %w: it is in whole seconds", n.Name, *c.Lease, ErrInvalid)
		}
		n.LeaseSeconds = int64(*c.Lease / time.Second)
	}
	n.normalise()
	return n, nil
}

func set[T any](field *T, value *T) {
	if value != nil {
		*field = *value
	}
}

func (n *Network) normalise() {
	n.Domain = strings.ToLower(strings.TrimSuffix(n.Domain, "."))
	n.Args = strings.TrimSpace(n.Args)
	if n.DNS == nil {
		n.DNS = []netip.Addr{}
	}
	if n.NFSOptions == nil {
		n.NFSOptions = []string{}
	}
}

// AddNetwork makes a network. What change leaves nil has its default: no
// range, router, DNS or domain, DefaultLease, ModeProxy, and the channel
// "default". The error wraps ErrInvalid, or store.ErrExists if the name is
// taken.
func (r *Registry) AddNetwork(ctx context.Context, by By, name string, change NetworkChange) (Network, error) {
	n, err := change.apply(Network{
		Name: name, LeaseSeconds: int64(DefaultLease / time.Second), Mode: ModeProxy, Channel: "default",
		Created: catalog.Time(catalog.Millis(r.now())),
	})
	if err != nil {
		return Network{}, err
	}
	local, err := r.localAddrs()
	if err != nil {
		return Network{}, err
	}
	err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
		others, err := networks(tx)
		if err != nil {
			return err
		}
		for _, other := range others {
			if other.Name == name {
				return fmt.Errorf("network %s: %w: it is %s", name, store.ErrExists, other.Subnet)
			}
		}
		if err := n.validate(others, local); err != nil {
			return err
		}
		if err := writeNetwork(tx, n); err != nil {
			return err
		}
		return catalog.Record(tx, by.Actor, "network-add", name, "added network "+name+": "+describe(n.fields()), by.Message)
	})
	if err != nil {
		return Network{}, err
	}
	return n, nil
}

// SetNetwork changes a network and returns what it is now. Nothing is written
// if it is so already. The error wraps ErrInvalid, store.ErrNotFound, or
// store.ErrInUse (an *InUseError).
func (r *Registry) SetNetwork(ctx context.Context, by By, name string, change NetworkChange) (Network, error) {
	local, err := r.localAddrs()
	if err != nil {
		return Network{}, err
	}
	var n Network
	err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
		all, err := networks(tx)
		if err != nil {
			return err
		}
		old, others, err := splitNetwork(all, name)
		if err != nil {
			return err
		}
		if n, err = change.apply(old); err != nil {
			return err
		}
		if err := n.validate(others, local); err != nil {
			return err
		}
		changes := difference(old.fields(), n.fields())
		if changes == "" {
			return nil
		}
		if old.Subnet != n.Subnet {
			users, err := networkUsers(tx, old, n.Subnet, !change.Force)
			if err != nil {
				return err
			}
			if len(users) > 0 {
				return &InUseError{What: fmt.Sprintf("network %s: the subnet %s", name, old.Subnet), Users: users}
			}
		}
		if err := writeNetwork(tx, n); err != nil {
			return err
		}
		return catalog.Record(tx, by.Actor, "network-set", name, "changed network "+name+": "+changes, by.Message)
	})
	if err != nil {
		return Network{}, err
	}
	return n, nil
}

// DeleteNetwork deletes a network. The error wraps store.ErrNotFound, or
// store.ErrInUse (an *InUseError) if nodes have fixed addresses in it or
// machines run in it; force deletes it in spite of machines that run: they
// are not served any more.
func (r *Registry) DeleteNetwork(ctx context.Context, by By, name string, force bool) error {
	return r.catalog.Update(ctx, func(tx *sql.Tx) error {
		all, err := networks(tx)
		if err != nil {
			return err
		}
		n, _, err := splitNetwork(all, name)
		if err != nil {
			return err
		}
		users, err := networkUsers(tx, n, netip.Prefix{}, !force)
		if err != nil {
			return err
		}
		if len(users) > 0 {
			return &InUseError{What: "network " + name, Users: users}
		}
		if err := write(tx, `DELETE FROM lease WHERE network = ?`, name); err != nil {
			return err
		}
		if err := write(tx, `DELETE FROM network WHERE name = ?`, name); err != nil {
			return err
		}
		return catalog.Record(tx, by.Actor, "network-delete", name, fmt.Sprintf("deleted network %s (%s)", name, n.Subnet), by.Message)
	})
}

// Networks returns all networks, sorted by name.
func (r *Registry) Networks(ctx context.Context) ([]Network, error) {
	var list []Network
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = networks(tx)
		return err
	})
	return list, err
}

// Network returns one network. The error wraps store.ErrNotFound.
func (r *Registry) Network(ctx context.Context, name string) (Network, error) {
	all, err := r.Networks(ctx)
	if err != nil {
		return Network{}, err
	}
	n, _, err := splitNetwork(all, name)
	return n, err
}

// Allowed tells whether addr is in a network that is served: whom the NFS
// server lets read. It asks the catalog (some ten microseconds): once per
// connection or mount, not per call. It is false if the catalog cannot be
// read.
func (r *Registry) Allowed(addr netip.Addr) bool {
	all, err := r.Networks(context.Background())
	if err != nil {
		r.log.WithError(err).Error("cannot tell which networks are served")
		return false
	}
	_, ok := networkOf(all, addr)
	return ok
}

func networkOf(all []Network, addr netip.Addr) (Network, bool) {
	addr = addr.Unmap()
	for _, n := range all {
		if n.Subnet.Contains(addr) {
			return n, true
		}
	}
	return Network{}, false
}

func splitNetwork(all []Network, name string) (Network, []Network, error) {
	var found Network
	var others []Network
	var names []string
	for _, n := range all {
		names = append(names, n.Name)
		if n.Name == name {
			found = n
		} else {
			others = append(others, n)
		}
	}
	if found.Name == "" {
		there := "there is none"
		if len(names) > 0 {
			there = "there is " + strings.Join(names, ", ")
		}
		return Network{}, nil, fmt.Errorf("network %.80q: %w: %s", name, store.ErrNotFound, there)
	}
	return found, others, nil
}

// networkUsers says which nodes have fixed addresses in n that are not in
// keep, and, if running is set, which machines run there.
func networkUsers(tx *sql.Tx, n Network, keep netip.Prefix, running bool) ([]string, error) {
	lost := func(a netip.Addr) bool { return n.Subnet.Contains(a) && !keep.Contains(a) }
	nodes, err := collect(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE address <> '' ORDER BY name, mac`)
	if err != nil {
		return nil, err
	}
	var users []string
	for _, node := range nodes {
		if lost(node.Address) {
			users = append(users, fmt.Sprintf("node %s has the fixed address %s", node.Label(), node.Address))
		}
	}
	if !running {
		return users, nil
	}
	sessions, err := collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND s.network = ? ORDER BY s.opened`, n.Name)
	if err != nil {
		return nil, err
	}
	for _, s := range sessions {
		if lost(s.Address) {
			users = append(users, fmt.Sprintf("%s runs %s at %s, last heard %s", s.Label(), s.Snapshot, s.Address, stamp(s.Heard)))
		}
	}
	return users, nil
}

const networkColumns = `name, subnet, range_first, range_last, router, dns, domain, lease_seconds, mode, channel, args, nfs_options, created`

func networks(tx *sql.Tx) ([]Network, error) {
	return collect(tx, scanNetwork, `SELECT `+networkColumns+` FROM network ORDER BY name`)
}

func scanNetwork(rows *sql.Rows) (Network, error) {
	var n Network
	var subnet, first, last, router, dns, options string
	var created int64
	err := rows.Scan(&n.Name, &subnet, &first, &last, &router, &dns, &n.Domain, &n.LeaseSeconds, &n.Mode, &n.Channel, &n.Args, &options, &created)
	if err != nil {
		return n, err
	}
	n.Created = catalog.Time(created)
	if options != "" {
		n.NFSOptions = strings.Split(options, ",")
	}
	var errs [4]error
	n.Subnet, errs[0] = netip.ParsePrefix(subnet)
	n.Range.First, errs[1] = parseAddr(first)
	n.Range.Last, errs[2] = parseAddr(last)
	n.Router, errs[3] = parseAddr(router)
	for _, err := range append(errs[:], json.Unmarshal([]byte(dns), &n.DNS)) {
		if err != nil {
			return n, fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	n.normalise()
	return n, nil
}

func writeNetwork(tx *sql.Tx, n Network) error {
	dns, err := json.Marshal(n.DNS)
	if err != nil {
		return err
	}
	return write(tx, `INSERT OR REPLACE INTO network (`+networkColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		n.Name, n.Subnet.String(), addrText(n.Range.First), addrText(n.Range.Last), addrText(n.Router), string(dns), n.Domain,
		n.LeaseSeconds, string(n.Mode), n.Channel, n.Args, strings.Join(n.NFSOptions, ","), catalog.Millis(n.Created))
}

func (n Network) fields() []field {
	dns := make([]string, len(n.DNS))
	for i, a := range n.DNS {
		dns[i] = a.String()
	}
	return []field{
		{"subnet", n.Subnet.String()},
		{"range", n.Range.String()},
		{"router", addrText(n.Router)},
		{"DNS", strings.Join(dns, " ")},
		{"domain", n.Domain},
		{"lease", n.Lease().String()},
		{"mode", string(n.Mode)},
		{"channel", n.Channel},
		{"arguments", n.Args},
		{"NFS options", strings.Join(n.NFSOptions, ",")},
	}
}
