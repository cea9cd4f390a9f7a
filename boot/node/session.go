package node

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/netip"
	"time"

	"sidus/boot/protocol"
	"sidus/image/catalog"
)

// Again is the time after the opening of a session in which its node may ask
// for its boot configuration again and gets the same session.
const Again = 2 * time.Minute

// Silence is the time on the served clock after which a session ends of which
// nothing was heard.
const Silence = 30 * 24 * time.Hour

// EndReason says why a session ended.
type EndReason string

// The reasons.
const (
	endBooted  EndReason = "booted again"
	endSilent  EndReason = "silent for 30 days"
	endDeleted EndReason = "node deleted"
)

// Session is one boot of one node.
type Session struct {
	ID  protocol.SessionID `json:"id"`
	MAC MAC                `json:"mac"`
	// Name is the node's name today, if it has one.
	Name     string `json:"name,omitempty"`
	Network  string `json:"network"`
	Snapshot Ref    `json:"snapshot"`
	// Channel is the channel that chose the snapshot; "" if the node was
	// pinned.
	Channel string        `json:"channel,omitempty"`
	Address netip.Addr    `json:"address,omitzero"`
	Loader  string        `json:"loader,omitempty"`
	Opened  time.Time     `json:"opened"`
	Step    protocol.Step `json:"step"` // how far it got
	StepAt  time.Time     `json:"step_at"`
	UpAt    time.Time     `json:"up_at,omitzero"`
	// Heard is the last sign of life.
	Heard       time.Time `json:"heard"`
	FailedUnits []string  `json:"failed_units"`
	Kernel      string    `json:"kernel,omitempty"`
	Ended       time.Time `json:"ended,omitzero"`
	EndReason   EndReason `json:"end_reason,omitempty"`
	// Updates are its live updates, the first first. Status, StatusOf and
	// Sessions fill it in.
	Updates []Update `json:"updates,omitempty"`

	heardClock int64 // Heard on the served clock, in seconds
}

// Label is the node's name, or its hardware address if it has none.
func (s Session) Label() string { return Node{MAC: s.MAC, Name: s.Name}.Label() }

// Live tells whether the session has not ended.
func (s Session) Live() bool { return s.Ended.IsZero() }

// running tells whether the node has begun to use its root.
func (s Session) running() bool { return !s.Step.Before(protocol.StepRoot) }

// sentence says for people what the session is.
func (s Session) sentence() string {
	where := ""
	if s.Address.IsValid() {
		where = " at " + s.Address.String()
	}
	return fmt.Sprintf("%s%s booted %s at %s, last heard %s", s.Label(), where, s.Snapshot, stamp(s.Opened), stamp(s.Heard))
}

// Sessions returns the newest limit sessions of a node, given by name or
// hardware address, the newest first; a limit of 0 is none. The error wraps
// store.ErrNotFound.
func (r *Registry) Sessions(ctx context.Context, who string, limit int) ([]Session, error) {
	if limit == 0 {
		limit = -1
	}
	var list []Session
	err := r.catalog.View(ctx, func(tx *sql.Tx) error {
		n, err := findNode(tx, who)
		if err != nil {
			return err
		}
		list, err = collect(tx, scanSession, selectSession+` WHERE s.mac = ? ORDER BY s.opened DESC, s.rowid DESC LIMIT ?`, n.MAC.String(), limit)
		if err != nil {
			return err
		}
		return withUpdates(tx, list)
	})
	return list, err
}

const selectSession = `SELECT s.id, s.mac, COALESCE(d.name, ''), s.network, s.snapshot, COALESCE(t.name, ''), COALESCE(n.number, 0),
	s.channel, s.address, s.loader, s.opened, s.step, s.step_at, s.up_at, s.heard, s.heard_clock, s.failed_units, s.kernel,
	s.ended, s.end_reason
	FROM session s LEFT JOIN node d ON d.mac = s.mac LEFT JOIN snapshot n ON n.id = s.snapshot LEFT JOIN tree t ON t.id = n.tree`

func scanSession(rows *sql.Rows) (Session, error) {
	var s Session
	var mac, address, units string
	var opened, stepAt, heard int64
	var up, ended sql.NullInt64
	err := rows.Scan(&s.ID, &mac, &s.Name, &s.Network, &s.Snapshot.ID, &s.Snapshot.Tree, &s.Snapshot.Number,
		&s.Channel, &address, &s.Loader, &opened, &s.Step, &stepAt, &up, &heard, &s.heardClock, &units, &s.Kernel,
		&ended, &s.EndReason)
	if err != nil {
		return s, err
	}
	s.Opened, s.StepAt, s.Heard = catalog.Time(opened), catalog.Time(stepAt), catalog.Time(heard)
	s.UpAt, s.Ended = nullTime(up), nullTime(ended)
	if s.MAC, err = ParseMAC(mac); err != nil {
		return s, err
	}
	if s.Address, err = parseAddr(address); err != nil {
		return s, fmt.Errorf("session %s: %w", s.ID, err)
	}
	if err := json.Unmarshal([]byte(units), &s.FailedUnits); err != nil {
		return s, fmt.Errorf("session %s: %w", s.ID, err)
	}
	return s, nil
}

func writeSession(tx *sql.Tx, s Session) error {
	if s.FailedUnits == nil {
		s.FailedUnits = []string{}
	}
	units, err := json.Marshal(s.FailedUnits)
	if err != nil {
		return err
	}
	return write(tx, `INSERT INTO session (id, mac, network, snapshot, channel, address, loader, opened, step, step_at, up_at,
		heard, heard_clock, failed_units, kernel, ended, end_reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET address = excluded.address, loader = excluded.loader, network = excluded.network,
		step = excluded.step, step_at = excluded.step_at, up_at = excluded.up_at, heard = excluded.heard,
		heard_clock = excluded.heard_clock, failed_units = excluded.failed_units, kernel = excluded.kernel,
		ended = excluded.ended, end_reason = excluded.end_reason`,
		string(s.ID), s.MAC.String(), s.Network, string(s.Snapshot.ID), s.Channel, addrText(s.Address), s.Loader,
		catalog.Millis(s.Opened), string(s.Step), catalog.Millis(s.StepAt), millisOrNull(s.UpAt),
		catalog.Millis(s.Heard), s.heardClock, string(units), s.Kernel, millisOrNull(s.Ended), string(s.EndReason))
}

// sessionByID reports false if there never was such a session.
func sessionByID(tx *sql.Tx, id protocol.SessionID) (Session, bool, error) {
	return one(tx, scanSession, selectSession+` WHERE s.id = ?`, string(id))
}

// liveSessions returns the sessions of mac that have not ended, the newest
// first.
func liveSessions(tx *sql.Tx, mac MAC) ([]Session, error) {
	return collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND s.mac = ? ORDER BY s.opened DESC, s.rowid DESC`, mac.String())
}

func endSessions(tx *sql.Tx, sessions []Session, now time.Time, reason EndReason) error {
	for _, s := range sessions {
		s.Ended, s.EndReason = now, reason
		if err := writeSession(tx, s); err != nil {
			return err
		}
	}
	return nil
}

// heardNow notes a sign of life at at.
func (s *Session) heardNow(at time.Time, clock int64) {
	if at.After(s.Heard) {
		s.Heard = at
	}
	s.heardClock = max(s.heardClock, clock)
}
