package node

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"sidus/image/catalog"
)

// Status says what one node runs, and what a reboot would change.
type Status struct {
	Node Node `json:"node"`
	// Session is what the node runs, or began to boot last; nil if it has no
	// live session.
	Session *Session `json:"session"`
	Reboot  Reboot   `json:"reboot"`
}

// Change says what a reboot would change, by content: the same snapshot is no
// change, whichever channel names it.
type Change string

// The changes.
const (
	ChangeNone    Change = "none"    // the same snapshot would be booted again
	ChangeOther   Change = "other"   // another snapshot would be booted
	ChangeNothing Change = "nothing" // nothing would be booted
	ChangeStart   Change = "start"   // the node has no live session; it would boot the snapshot
)

// Reboot is what a node would boot now.
type Reboot struct {
	Choice
	Change Change `json:"change"`
	// Text is a sentence for people, without a subject.
	Text string `json:"text"`
}

// Status returns the state of all nodes: known ones by name, then machines
// that nobody has added.
func (r *Registry) Status(ctx context.Context) ([]Status, error) {
	var list []Status
	err := r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = allStatus(tx)
		return err
	})
	return list, err
}

func allStatus(tx *sql.Tx) ([]Status, error) {
	all, err := nodes(tx)
	if err != nil {
		return nil, err
	}
	live, err := collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL ORDER BY s.opened DESC, s.rowid DESC`)
	if err != nil {
		return nil, err
	}
	if err := withUpdates(tx, live); err != nil {
		return nil, err
	}
	byMAC := map[MAC][]Session{}
	for _, s := range live {
		byMAC[s.MAC] = append(byMAC[s.MAC], s)
	}
	nets, err := networks(tx)
	if err != nil {
		return nil, err
	}
	list := []Status{}
	for _, n := range all {
		status, err := statusOf(tx, n, byMAC[n.MAC], nets)
		if err != nil {
			return nil, err
		}
		list = append(list, status)
	}
	return list, nil
}

// StatusOf returns the state of one node, given by name or hardware address.
// The error wraps store.ErrNotFound.
func (r *Registry) StatusOf(ctx context.Context, who string) (Status, error) {
	var status Status
	err := r.catalog.View(ctx, func(tx *sql.Tx) error {
		n, err := findNode(tx, who)
		if err != nil {
			return err
		}
		live, err := liveSessions(tx, n.MAC)
		if err != nil {
			return err
		}
		if err := withUpdates(tx, live); err != nil {
			return err
		}
		nets, err := networks(tx)
		if err != nil {
			return err
		}
		status, err = statusOf(tx, n, live, nets)
		return err
	})
	return status, err
}

func statusOf(tx *sql.Tx, n Node, live []Session, nets []Network) (Status, error) {
	status := Status{Node: n, Session: current(live)}
	network, served := whereabouts(n, status.Session, nets)
	status.Reboot.Choice = Choice{Reason: ReasonNotServed}
	if served {
		choice, err := choose(tx, n, network)
		if err != nil {
			return Status{}, err
		}
		status.Reboot.Choice = choice
	}
	return status, status.Reboot.explain(tx, status.Session)
}

// current is what the node runs: the newest session that has reached its
// root, else the newest one. Two are live only after somebody else has asked
// for the boot configuration of a node that runs.
func current(live []Session) *Session {
	for i := range live {
		if live[i].running() {
			return &live[i]
		}
	}
	if len(live) == 0 {
		return nil
	}
	return &live[0]
}

// whereabouts says in which network a node would boot, and reports false if
// that is known not to be served. The network of a node that was never seen
// is the only one, if there is only one, else an empty one.
func whereabouts(n Node, s *Session, nets []Network) (Network, bool) {
	if s != nil && s.Address.IsValid() {
		return networkOf(nets, s.Address)
	}
	if n.Address.IsValid() {
		return networkOf(nets, n.Address)
	}
	for _, network := range nets {
		if network.Name == n.Network || n.Network == "" && len(nets) == 1 {
			return network, true
		}
	}
	return Network{}, n.Network == "" && len(nets) > 0
}

func (r *Reboot) explain(tx *sql.Tx, s *Session) error {
	switch {
	case r.Reason != "":
		r.Change, r.Text = ChangeNothing, "would boot nothing: "+r.Sentence()
	case s == nil:
		r.Change, r.Text = ChangeStart, "would boot "+r.Snapshot.String()+r.through()
	case s.Runs().ID == r.Snapshot.ID && s.Snapshot.ID != r.Snapshot.ID:
		r.Change, r.Text = ChangeOther, "would boot "+r.Snapshot.String()+" as a whole: so far only its /usr runs"
	case s.Snapshot.ID == r.Snapshot.ID && s.Runs().ID != r.Snapshot.ID:
		r.Change, r.Text = ChangeOther, "would boot "+r.Snapshot.String()+" again, without the live update"
	case s.Snapshot.ID == r.Snapshot.ID:
		r.Change, r.Text = ChangeNone, "would change nothing"
	default:
		why, err := r.because(tx, *s)
		if err != nil {
			return err
		}
		r.Change, r.Text = ChangeOther, "would boot "+r.Snapshot.String()+", because "+why
	}
	return nil
}

func (r *Reboot) through() string {
	if r.Pinned {
		return " (pinned)"
	}
	return " (channel " + r.Channel + ")"
}

// because says why a node would boot something else than s.
func (r *Reboot) because(tx *sql.Tx, s Session) (string, error) {
	switch {
	case r.Pinned:
		return "the node was pinned to it", nil
	case s.Channel == "":
		return "the node is not pinned any more and follows channel " + r.Channel, nil
	case s.Channel != r.Channel:
		return "the node follows channel " + r.Channel + " now", nil
	}
	var action string
	var at int64
	err := tx.QueryRow(`SELECT action, at FROM channel_history WHERE channel = ? ORDER BY id DESC LIMIT 1`, r.Channel).Scan(&action, &at)
	switch {
	case err == sql.ErrNoRows:
		return "channel " + r.Channel + " points to it now", nil
	case err != nil:
		return "", fmt.Errorf("catalog: %w", err)
	case action == "rollback":
		return "channel " + r.Channel + " was rolled back at " + stamp(catalog.Time(at)), nil
	}
	return "channel " + r.Channel + " was promoted at " + stamp(catalog.Time(at)), nil
}

// SortKey names an order of statuses.
type SortKey string

// The orders. Equals are sorted by name or hardware address.
const (
	SortName     SortKey = "name"
	SortSnapshot SortKey = "snapshot" // tree, then number
	SortSince    SortKey = "since"    // the newest session first, nodes without one last
	SortHeard    SortKey = "heard"    // the longest unheard first, nodes without a session last
	SortStep     SortKey = "step"     // the least far first
	SortChange   SortKey = "change"   // those that a reboot would change first
)

// SortStatus sorts list. The error wraps ErrInvalid if there is no such
// order.
func SortStatus(list []Status, key SortKey) error {
	orders := map[SortKey]func(a, b Status) int{
		SortName: func(a, b Status) int { return 0 },
		SortSnapshot: bySession(func(a, b *Session) int {
			return cmp.Or(strings.Compare(a.Snapshot.Tree, b.Snapshot.Tree), cmp.Compare(a.Snapshot.Number, b.Snapshot.Number))
		}),
		SortSince: bySession(func(a, b *Session) int { return b.Opened.Compare(a.Opened) }),
		SortHeard: bySession(func(a, b *Session) int { return a.Heard.Compare(b.Heard) }),
		SortStep:  bySession(func(a, b *Session) int { return cmp.Compare(a.Step.Rank(), b.Step.Rank()) }),
		SortChange: func(a, b Status) int {
			rank := []Change{ChangeOther, ChangeNothing, ChangeStart, ChangeNone}
			return cmp.Compare(slices.Index(rank, a.Reboot.Change), slices.Index(rank, b.Reboot.Change))
		},
	}
	order, ok := orders[key]
	if !ok {
		return invalid("order %.40q: there is name, snapshot, since, heard, step and change", key)
	}
	slices.SortStableFunc(list, func(a, b Status) int {
		return cmp.Or(order(a, b), strings.Compare(a.Node.Label(), b.Node.Label()))
	})
	return nil
}

func bySession(order func(a, b *Session) int) func(a, b Status) int {
	return func(a, b Status) int {
		switch {
		case a.Session != nil && b.Session != nil:
			return order(a.Session, b.Session)
		case a.Session != nil:
			return -1
		case b.Session != nil:
			return 1
		}
		return 0
	}
}
