package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sidus/boot/protocol"
	"sidus/image/catalog"
	"sidus/image/store"
)

// maxUnknown bounds how many unknown machines are remembered: hardware
// addresses are easily made up.
const maxUnknown = 1000

// Node is a machine that boots, known by its hardware address.
type Node struct {
	MAC  MAC    `json:"mac"`
	Name string `json:"name,omitempty"`
	// Registered is false for a machine that asked to boot and that nobody
	// has added.
	Registered bool `json:"registered"`
	// Channel is the channel that the node follows; "" is its network's.
	Channel string `json:"channel,omitempty"`
	// Pin is the snapshot that the node boots whatever its channel says; ""
	// is none.
	Pin store.SnapshotID `json:"pin,omitempty"`
	// Address is the node's fixed address; the zero value is one from the
	// network's range.
	Address netip.Addr `json:"address,omitzero"`
	// Args are kernel arguments, after those of the network.
	Args string `json:"args,omitempty"`
	// Group is a label that many nodes may have, to name them together.
	Group string `json:"group,omitempty"`
	// Network is where it was last seen.
	Network   string    `json:"network,omitempty"`
	FirstSeen time.Time `json:"first_seen,omitzero"`
	LastSeen  time.Time `json:"last_seen,omitzero"`
	Created   time.Time `json:"created"`
}

// Label is the node's name, or its hardware address if it has none.
func (n Node) Label() string {
	if n.Name != "" {
		return n.Name
	}
	return n.MAC.String()
}

// NodeChange is what is to be changed of a node; nil leaves a field as it is,
// a pointer to a zero value takes the thing away. The last word counts:
// giving a channel takes a pin away that is not given along with it. Giving
// both is refused, since the pin would win.
type NodeChange struct {
	Name    *string
	Channel *string
	Pin     *store.SnapshotID
	Address *netip.Addr
	Args    *string
	Group   *string
}

func (c NodeChange) apply(n Node) (Node, error) {
	if c.Channel != nil && *c.Channel != "" {
		if c.Pin != nil && *c.Pin != "" {
			return n, fmt.Errorf("node %s: %w: both a channel and a pin are given; a pinned node follows no channel", n.Label(), ErrInvalid)
		}
		n.Pin = ""
	}
	set(&n.Name, c.Name)
	set(&n.Channel, c.Channel)
	set(&n.Pin, c.Pin)
	set(&n.Address, c.Address)
	set(&n.Args, c.Args)
	set(&n.Group, c.Group)
	n.Name = strings.ToLower(n.Name)
	n.Args = strings.TrimSpace(n.Args)
	if n.Address.IsValid() {
		n.Address = n.Address.Unmap()
	}
	return n, nil
}

// AddNode makes a known node of a machine. The error wraps ErrInvalid,
// store.ErrExists if the machine is known or the name or address is taken, or
// store.ErrNotFound if there is no such snapshot to pin it to.
func (r *Registry) AddNode(ctx context.Context, by By, mac MAC, change NodeChange) (Node, error) {
	return r.changeNode(ctx, by, "add", change, func(tx *sql.Tx) (Node, error) {
		if err := mac.check(); err != nil {
			return Node{}, err
		}
		n, ok, err := nodeByMAC(tx, mac)
		switch {
		case err != nil:
			return Node{}, err
		case !ok:
			n = Node{MAC: mac, Created: catalog.Time(catalog.Millis(r.now()))}
		case n.Registered:
			return Node{}, fmt.Errorf("node %s: %w: it is %s", mac, store.ErrExists, n.Label())
		}
		n.Registered = true
		return n, nil
	})
}

// SetNode changes a known node, given by name or hardware address, and
// returns what it is now. Nothing is written if it is so already. The error
// wraps ErrInvalid, store.ErrNotFound, or store.ErrExists if the name or
// address is taken.
func (r *Registry) SetNode(ctx context.Context, by By, who string, change NodeChange) (Node, error) {
	return r.changeNode(ctx, by, "set", change, func(tx *sql.Tx) (Node, error) {
		n, err := findNode(tx, who)
		if err == nil && !n.Registered {
			err = fmt.Errorf("node %s: %w: it has asked to boot, but nobody has added it", n.MAC, store.ErrNotFound)
		}
		return n, err
	})
}

func (r *Registry) changeNode(ctx context.Context, by By, verb string, change NodeChange, find func(*sql.Tx) (Node, error)) (Node, error) {
	local, err := r.localAddrs()
	if err != nil {
		return Node{}, err
	}
	var n Node
	err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
		old, err := find(tx)
		if err != nil {
			return err
		}
		if n, err = change.apply(old); err != nil {
			return err
		}
		if err := r.validateNode(tx, old, n, local); err != nil {
			return fmt.Errorf("node %s: %w", n.Label(), err)
		}
		before, err := old.fields(tx)
		if err != nil {
			return err
		}
		after, err := n.fields(tx)
		if err != nil {
			return err
		}
		text := fmt.Sprintf("added node %s (%s): %s", n.Label(), n.MAC, describe(after))
		if verb == "set" {
			changes := difference(before, after)
			if changes == "" {
				return nil
			}
			text = fmt.Sprintf("changed node %s (%s): %s", n.Label(), n.MAC, changes)
		}
		if err := writeNode(tx, n); err != nil {
			return err
		}
		return catalog.Record(tx, by.Actor, "node-"+verb, n.MAC.String(), text, by.Message)
	})
	if err != nil {
		return Node{}, err
	}
	return n, nil
}

// DeleteNode forgets a node, known or not. The error wraps store.ErrNotFound,
// or store.ErrInUse (an *InUseError) if it runs; force ends its session.
func (r *Registry) DeleteNode(ctx context.Context, by By, who string, force bool) error {
	return r.catalog.Update(ctx, func(tx *sql.Tx) error {
		n, err := findNode(tx, who)
		if err != nil {
			return err
		}
		live, err := liveSessions(tx, n.MAC)
		if err != nil {
			return err
		}
		if len(live) > 0 && !force {
			inUse := &InUseError{What: "node " + n.Label()}
			for _, s := range live {
				inUse.Users = append(inUse.Users, s.sentence())
			}
			return inUse
		}
		if err := endSessions(tx, live, r.now(), endDeleted); err != nil {
			return err
		}
		if err := write(tx, `DELETE FROM node WHERE mac = ?`, n.MAC.String()); err != nil {
			return err
		}
		return catalog.Record(tx, by.Actor, "node-delete", n.MAC.String(), fmt.Sprintf("deleted node %s (%s)", n.Label(), n.MAC), by.Message)
	})
}

// Nodes returns all nodes: the known ones by name, then machines that asked
// to boot and that nobody has added.
func (r *Registry) Nodes(ctx context.Context) ([]Node, error) {
	var list []Node
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = nodes(tx)
		return err
	})
	return list, err
}

// Node returns one node, given by name or hardware address. The error wraps
// store.ErrNotFound.
func (r *Registry) Node(ctx context.Context, who string) (Node, error) {
	var n Node
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		n, err = findNode(tx, who)
		return err
	})
	return n, err
}

func (r *Registry) validateNode(tx *sql.Tx, old, n Node, local []netip.Addr) error {
	if n.Name != old.Name && n.Name != "" {
		if err := checkNodeName(tx, n); err != nil {
			return err
		}
	}
	if err := checkChannel(n.Channel); err != nil {
		return err
	}
	if err := checkArgs(n.Args); err != nil {
		return err
	}
	if n.Group != "" && !namePattern.MatchString(n.Group) {
		return invalid("group %.80q: a group's name has 1 to 64 letters, digits and . _ + -, and begins with a letter or digit", n.Group)
	}
	if n.Pin != old.Pin && n.Pin != "" {
		if err := checkPin(tx, n.Pin); err != nil {
			return err
		}
	}
	if n.Address != old.Address && n.Address.IsValid() {
		return checkNodeAddress(tx, n, local, r.now())
	}
	return nil
}

func checkNodeName(tx *sql.Tx, n Node) error {
	if err := protocol.CheckHostname(n.Name); err != nil {
		return invalid("%v", err)
	}
	if _, err := ParseMAC(n.Name); err == nil {
		return invalid("the name %q would be read as a hardware address", n.Name)
	}
	other, taken, err := one(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE name = ? AND mac <> ?`, n.Name, n.MAC.String())
	if err == nil && taken {
		err = fmt.Errorf("%w: the name is that of %s", store.ErrExists, other.MAC)
	}
	return err
}

func checkPin(tx *sql.Tx, pin store.SnapshotID) error {
	if err := pin.Validate(); err != nil {
		return invalid("pin: %v", err)
	}
	var ref Ref
	var complete bool
	var deleted sql.NullInt64
	err := tx.QueryRow(`SELECT n.id, COALESCE(t.name, ''), n.number, n.complete, n.deleted FROM snapshot n
		LEFT JOIN tree t ON t.id = n.tree WHERE n.id = ?`, string(pin)).Scan(&ref.ID, &ref.Tree, &ref.Number, &complete, &deleted)
	switch {
	case err == sql.ErrNoRows:
		return fmt.Errorf("pin: snapshot %s: %w", pin, store.ErrNotFound)
	case err != nil:
		return fmt.Errorf("catalog: %w", err)
	case deleted.Valid:
		return fmt.Errorf("pin: snapshot %s: %w: it was deleted", ref, store.ErrNotFound)
	case !complete:
		return invalid("pin: snapshot %s is a step of a build, not a complete snapshot", ref)
	}
	return nil
}

func checkNodeAddress(tx *sql.Tx, n Node, local []netip.Addr, now time.Time) error {
	all, err := networks(tx)
	if err != nil {
		return err
	}
	network, ok := networkOf(all, n.Address)
	if !ok {
		return invalid("address %s is in none of the networks; `sidus network list` shows them", n.Address)
	}
	if err := network.checkHost(n.Address); err != nil {
		return err
	}
	if n.Address == network.Router {
		return invalid("address %s is the router's of network %s", n.Address, network.Name)
	}
	for _, a := range local {
		if a.Unmap() == n.Address {
			return invalid("address %s is this server's", n.Address)
		}
	}
	for _, a := range network.DNS {
		if a == n.Address {
			return invalid("address %s is that of a DNS server of network %s", n.Address, network.Name)
		}
	}
	other, taken, err := one(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE address = ? AND mac <> ?`, n.Address.String(), n.MAC.String())
	if err != nil {
		return err
	}
	if taken {
		return fmt.Errorf("address %s: %w: it is that of node %s", n.Address, store.ErrExists, other.Label())
	}
	var holder string
	var expires int64
	err = tx.QueryRow(`SELECT mac, expires FROM lease WHERE network = ? AND address = ? AND mac <> ? AND state = 'bound' AND expires > ?`,
		network.Name, n.Address.String(), n.MAC.String(), catalog.Millis(now)).Scan(&holder, &expires)
	switch {
	case err == sql.ErrNoRows:
		return nil
	case err != nil:
		return fmt.Errorf("catalog: %w", err)
	}
	return fmt.Errorf("address %s: %w: it is leased to %s until %s", n.Address, store.ErrInUse, holder, stamp(catalog.Time(expires)))
}

const nodeColumns = `mac, name, registered, channel, pin, address, args, network, first_seen, last_seen, created, grp`

func scanNode(rows *sql.Rows) (Node, error) {
	var n Node
	var mac, address string
	var first, last sql.NullInt64
	var created int64
	err := rows.Scan(&mac, &n.Name, &n.Registered, &n.Channel, &n.Pin, &address, &n.Args, &n.Network, &first, &last, &created, &n.Group)
	if err != nil {
		return n, err
	}
	n.FirstSeen, n.LastSeen, n.Created = nullTime(first), nullTime(last), catalog.Time(created)
	if n.MAC, err = ParseMAC(mac); err != nil {
		return n, err
	}
	if n.Address, err = parseAddr(address); err != nil {
		return n, fmt.Errorf("node %s: %w", mac, err)
	}
	return n, nil
}

func nodes(tx *sql.Tx) ([]Node, error) {
	return collect(tx, scanNode, `SELECT `+nodeColumns+` FROM node ORDER BY registered DESC, name = '', name, mac`)
}

func nodeByMAC(tx *sql.Tx, mac MAC) (Node, bool, error) {
	return one(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE mac = ?`, mac.String())
}

func findNode(tx *sql.Tx, who string) (Node, error) {
	n, ok, err := one(tx, scanNode, `SELECT `+nodeColumns+` FROM node WHERE name = ? AND name <> ''`, strings.ToLower(who))
	if err != nil || ok {
		return n, err
	}
	if mac, err := ParseMAC(who); err == nil {
		n, ok, err := nodeByMAC(tx, mac)
		if err != nil || ok {
			return n, err
		}
	}
	return Node{}, fmt.Errorf("node %.80q: %w: `sidus node list` shows the nodes", who, store.ErrNotFound)
}

func writeNode(tx *sql.Tx, n Node) error {
	return write(tx, `INSERT INTO node (`+nodeColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (mac) DO UPDATE SET name = excluded.name, registered = excluded.registered, channel = excluded.channel,
		pin = excluded.pin, address = excluded.address, args = excluded.args, network = excluded.network,
		first_seen = excluded.first_seen, last_seen = excluded.last_seen, grp = excluded.grp`,
		n.MAC.String(), n.Name, n.Registered, n.Channel, string(n.Pin), addrText(n.Address), n.Args, n.Network,
		millisOrNull(n.FirstSeen), millisOrNull(n.LastSeen), catalog.Millis(n.Created), n.Group)
}

// seen notes that a machine asked to boot. One that is not known is
// remembered; the longest unseen of too many is forgotten.
func seen(tx *sql.Tx, mac MAC, network string, now time.Time) (Node, error) {
	n, known, err := nodeByMAC(tx, mac)
	if err != nil {
		return n, err
	}
	if !known {
		n = Node{MAC: mac, Created: now}
	}
	if network != "" {
		n.Network = network
	}
	if n.FirstSeen.IsZero() {
		n.FirstSeen = now
	}
	n.LastSeen = now
	if err := writeNode(tx, n); err != nil || known {
		return n, err
	}
	return n, write(tx, `DELETE FROM node WHERE registered = 0 AND mac IN (
		SELECT mac FROM node WHERE registered = 0 AND mac NOT IN (SELECT mac FROM session WHERE ended IS NULL)
		ORDER BY last_seen DESC, mac LIMIT -1 OFFSET ?)`, maxUnknown)
}

func (n Node) fields(tx *sql.Tx) ([]field, error) {
	pin := ""
	if n.Pin != "" {
		ref, _, err := refOf(tx, n.Pin)
		if err != nil {
			return nil, err
		}
		pin = ref.String()
	}
	return []field{
		{"name", n.Name},
		{"channel", n.Channel},
		{"pin", pin},
		{"address", addrText(n.Address)},
		{"arguments", n.Args},
		{"group", n.Group},
	}, nil
}
