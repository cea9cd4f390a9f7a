package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"sidus/boot/protocol"
	"sidus/image/catalog"
	"sidus/image/store"
)

// Update is a live update: a snapshot that a session takes while it runs.
type Update struct {
	// Order is the number of the order to the session's agent.
	Order    int64 `json:"order"`
	Snapshot Ref   `json:"snapshot"`
	// Channel is the channel that chose the snapshot; "" if the node was
	// pinned.
	Channel string      `json:"channel,omitempty"`
	State   UpdateState `json:"state"`
	// Held is set as long as the session needs the snapshot: from the order
	// on, unless it failed without a trace.
	Held bool `json:"held"`
	// Reason says why it failed.
	Reason string `json:"reason,omitempty"`
	// Notes are what the agent has to say about it.
	Notes    []string  `json:"notes"`
	Ordered  time.Time `json:"ordered"`
	Taken    time.Time `json:"taken,omitzero"`
	Answered time.Time `json:"answered,omitzero"`
	// SessionEnded is set if the session has ended.
	SessionEnded bool `json:"session_ended,omitempty"`

	session protocol.SessionID
}

// UpdateState says how far a live update has got.
type UpdateState string

// The states of a live update.
const (
	UpdateOrdered UpdateState = "ordered" // the agent has not been told yet
	UpdateTaken   UpdateState = "taken"   // the agent works on it
	UpdateDone    UpdateState = "done"    // the node runs the snapshot's /usr
	UpdateFailed  UpdateState = "failed"
)

// Open tells whether the agent has not answered yet.
func (u Update) Open() bool { return u.State == UpdateOrdered || u.State == UpdateTaken }

// Selection says which nodes are meant: those that are named, or all that
// follow a channel, are of a group, or all.
type Selection struct {
	Nodes   []string // names or hardware addresses
	Channel string
	Group   string
	All     bool
}

// UpdateAnswer says what came of asking one node for a live update.
type UpdateAnswer string

// The answers.
const (
	AnswerOrdered UpdateAnswer = "ordered" // it has an order; see Update
	AnswerCurrent UpdateAnswer = "current" // it runs the snapshot already
	AnswerOff     UpdateAnswer = "off"     // it does not run, or is not up yet
	AnswerNothing UpdateAnswer = "nothing" // there is nothing that it could take
	AnswerOld     UpdateAnswer = "old"     // its agent takes no orders
)

// Ordered is what came of ordering a live update of one node.
type Ordered struct {
	Node   Node         `json:"node"`
	Answer UpdateAnswer `json:"answer"`
	// Text says for people why there is no order.
	Text string `json:"text,omitempty"`
	// Booted is what the node has booted, From what it runs, To what it is to
	// take.
	Booted Ref `json:"booted,omitzero"`
	From   Ref `json:"from,omitzero"`
	To     Ref `json:"to,omitzero"`
	// Update is set if Answer is AnswerOrdered.
	Update *Update `json:"update,omitempty"`
}

// OrderUpdates orders the nodes of a selection to take what a boot would
// choose for them now. An order that a node already has is not given twice; a
// node's older order that its agent has not taken yet is withdrawn. The error
// wraps ErrInvalid if the selection selects nothing by its form, or
// store.ErrNotFound if it names a node that is not known, or selects none.
func (r *Registry) OrderUpdates(ctx context.Context, by By, selection Selection) ([]Ordered, error) {
	var list []Ordered
	err := r.catalog.Update(ctx, func(tx *sql.Tx) error {
		statuses, err := selectNodes(tx, selection)
		if err != nil {
			return err
		}
		list = nil
		for _, status := range statuses {
			ordered, err := r.orderUpdate(tx, by, status)
			if err != nil {
				return err
			}
			list = append(list, ordered)
		}
		return nil
	})
	return list, err
}

func selectNodes(tx *sql.Tx, selection Selection) ([]Status, error) {
	ways := 0
	for _, given := range []bool{len(selection.Nodes) > 0, selection.Channel != "", selection.Group != "", selection.All} {
		if given {
			ways++
		}
	}
	if ways != 1 {
		return nil, invalid("name nodes, or a channel, or a group, or all: one of them")
	}
	all, err := allStatus(tx)
	if err != nil {
		return nil, err
	}
	if len(selection.Nodes) > 0 {
		var list []Status
		for _, who := range selection.Nodes {
			n, err := findNode(tx, who)
			if err != nil {
				return nil, err
			}
			i := slices.IndexFunc(all, func(s Status) bool { return s.Node.MAC == n.MAC })
			if !slices.ContainsFunc(list, func(s Status) bool { return s.Node.MAC == n.MAC }) {
				list = append(list, all[i])
			}
		}
		return list, nil
	}
	list := slices.DeleteFunc(all, func(s Status) bool {
		return !selection.All && (selection.Group == "" || s.Node.Group != selection.Group) &&
			(selection.Channel == "" || s.Reboot.Channel != selection.Channel)
	})
	if len(list) > 0 || selection.All {
		return list, nil
	}
	if selection.Group != "" {
		return nil, fmt.Errorf("group %s: %w: no node is of that group; `sidus node set NODE --group %s` puts one there", selection.Group, store.ErrNotFound, selection.Group)
	}
	return nil, fmt.Errorf("channel %s: %w: no node follows it", selection.Channel, store.ErrNotFound)
}

func (r *Registry) orderUpdate(tx *sql.Tx, by By, status Status) (Ordered, error) {
	o := Ordered{Node: status.Node, To: status.Reboot.Snapshot}
	s := status.Session
	if s == nil || s.Step.Before(protocol.StepUp) {
		o.Answer, o.Text = AnswerOff, "it does not run"
		if s != nil {
			o.Text = "it has not come up yet: its boot has reached the step " + string(s.Step)
		}
		return o, nil
	}
	o.Booted, o.From = s.Snapshot, s.Runs()
	if status.Reboot.Reason != "" {
		o.Answer, o.Text = AnswerNothing, status.Reboot.Sentence()
		return o, nil
	}
	var asks bool
	if err := tx.QueryRow(`SELECT asks FROM session WHERE id = ?`, string(s.ID)).Scan(&asks); err != nil {
		return o, fmt.Errorf("catalog: %w", err)
	}
	if !asks {
		o.Answer, o.Text = AnswerOld, "its agent takes no live updates: the snapshot that it booted is older than they are"
		return o, nil
	}
	var open []Update
	for _, u := range s.Updates {
		if u.Open() {
			open = append(open, u)
		}
	}
	if len(open) == 0 && o.From.ID == o.To.ID {
		o.Answer, o.Text = AnswerCurrent, "it runs "+o.To.String()+" already"
		return o, nil
	}
	o.Answer = AnswerOrdered
	if last := len(open) - 1; last >= 0 && open[last].Snapshot.ID == o.To.ID {
		o.Update = &open[last]
		return o, nil
	}
	now := catalog.Time(catalog.Millis(r.now()))
	err := write(tx, `UPDATE live_update SET state = 'failed', held = 0, reason = 'a later order took its place', answered = ?
		WHERE session = ? AND state = 'ordered'`, catalog.Millis(now), string(s.ID))
	if err != nil {
		return o, err
	}
	u := Update{
		Snapshot: o.To, Channel: status.Reboot.Channel, State: UpdateOrdered, Held: true, Notes: []string{}, Ordered: now, session: s.ID,
	}
	result, err := tx.Exec(`INSERT INTO live_update (session, snapshot, channel, state, held, actor, ordered) VALUES (?, ?, ?, ?, 1, ?, ?)`,
		string(s.ID), string(u.Snapshot.ID), u.Channel, string(u.State), by.User, catalog.Millis(now))
	if err != nil {
		return o, fmt.Errorf("catalog: %w", err)
	}
	if u.Order, err = result.LastInsertId(); err != nil {
		return o, fmt.Errorf("catalog: %w", err)
	}
	o.Update = &u
	return o, catalog.Record(tx, by.Actor, "node-update", s.MAC.String(),
		fmt.Sprintf("ordered node %s (%s), which runs %s, to take %s while it runs", status.Node.Label(), s.MAC, o.From, o.To), by.Message)
}

// Updates returns orders by their numbers, in that order. Numbers that are
// not known are left out.
func (r *Registry) Updates(ctx context.Context, orders []int64) ([]Update, error) {
	numbers, err := json.Marshal(orders)
	if err != nil {
		return nil, err
	}
	var list []Update
	err = r.catalog.View(ctx, func(tx *sql.Tx) (err error) {
		list, err = collect(tx, scanUpdate, selectUpdate+` WHERE u.id IN (SELECT value FROM json_each(?)) ORDER BY u.id`, string(numbers))
		return err
	})
	return list, err
}

// finishOrder notes what an agent says of an order.
func finishOrder(tx *sql.Tx, session protocol.SessionID, outcome protocol.Outcome, now time.Time) error {
	state, held := UpdateDone, true
	if outcome.Reason != "" {
		state, held = UpdateFailed, outcome.Held
	}
	if outcome.Notes == nil {
		outcome.Notes = []string{}
	}
	notes, err := json.Marshal(outcome.Notes)
	if err != nil {
		return err
	}
	return write(tx, `UPDATE live_update SET state = ?, held = ?, reason = ?, notes = ?, answered = ?
		WHERE id = ? AND session = ? AND snapshot = ? AND state IN ('ordered', 'taken')`,
		string(state), held, outcome.Reason, string(notes), catalog.Millis(now), outcome.Order, string(session), string(outcome.Snapshot))
}

const selectUpdate = `SELECT u.id, u.session, u.snapshot, COALESCE(t.name, ''), COALESCE(n.number, 0), u.channel, u.state, u.held,
	u.reason, u.notes, u.ordered, u.taken, u.answered, s.ended IS NOT NULL
	FROM live_update u JOIN session s ON s.id = u.session LEFT JOIN snapshot n ON n.id = u.snapshot LEFT JOIN tree t ON t.id = n.tree`

func scanUpdate(rows *sql.Rows) (Update, error) {
	var u Update
	var notes string
	var ordered int64
	var taken, answered sql.NullInt64
	err := rows.Scan(&u.Order, &u.session, &u.Snapshot.ID, &u.Snapshot.Tree, &u.Snapshot.Number, &u.Channel, &u.State, &u.Held,
		&u.Reason, &notes, &ordered, &taken, &answered, &u.SessionEnded)
	if err != nil {
		return u, err
	}
	u.Ordered, u.Taken, u.Answered = catalog.Time(ordered), nullTime(taken), nullTime(answered)
	if err := json.Unmarshal([]byte(notes), &u.Notes); err != nil {
		return u, fmt.Errorf("order %d: %w", u.Order, err)
	}
	return u, nil
}

// withUpdates adds to each session its live updates.
func withUpdates(tx *sql.Tx, sessions []Session) error {
	if len(sessions) == 0 {
		return nil
	}
	bySession := make(map[protocol.SessionID]*Session, len(sessions))
	ids := make([]string, len(sessions))
	for i := range sessions {
		bySession[sessions[i].ID] = &sessions[i]
		ids[i] = string(sessions[i].ID)
	}
	list, err := json.Marshal(ids)
	if err != nil {
		return err
	}
	updates, err := collect(tx, scanUpdate, selectUpdate+` WHERE u.session IN (SELECT value FROM json_each(?)) ORDER BY u.id`, string(list))
	for _, u := range updates {
		s := bySession[u.session]
		s.Updates = append(s.Updates, u)
	}
	return err
}

// Runs is the snapshot whose programs a node runs: that of its last live
// update, else the one that it booted.
func (s Session) Runs() Ref {
	for _, u := range slices.Backward(s.Updates) {
		if u.State == UpdateDone {
			return u.Snapshot
		}
	}
	return s.Snapshot
}
