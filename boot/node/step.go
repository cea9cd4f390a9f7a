package node

import (
	"context"
	"database/sql"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/catalog"
)

// Step notes that a boot has reached a step. The session is found by its ID;
// else it is the newest one of the machine or of the client's address that
// boots the snapshot. Nothing is done if there is none: anybody may fetch a
// kernel. Steps only go forward; each is logged once.
func (r *Registry) Step(ctx context.Context, p pxe.Progress) error {
	p.Client = p.Client.Unmap()
	if p.Step == protocol.StepDHCP {
		return r.stepDHCP(ctx, p)
	}
	// A file is often asked for in many parts: look before a writer's lock is
	// taken.
	due := false
	err := r.catalog.View(ctx, func(tx *sql.Tx) error {
		s, found, err := findSession(tx, p)
		due = found && s.Live() && s.Step.Before(p.Step)
		return err
	})
	if err != nil || !due {
		return err
	}
	var changed *Session
	var ended []Session
	err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
		changed, ended = nil, nil
		s, found, err := findSession(tx, p)
		if err != nil || !found || !s.Live() || !s.Step.Before(p.Step) {
			return err
		}
		now := catalog.Time(catalog.Millis(r.now()))
		clock, err := r.servedNow(tx, now)
		if err != nil {
			return err
		}
		s.heardNow(now, clock)
		if p.Client.IsValid() {
			s.Address = p.Client
		}
		if ended, err = reach(tx, &s, p.Step, now); err != nil {
			return err
		}
		changed = &s
		return writeSession(tx, s)
	})
	if err != nil || changed == nil {
		return err
	}
	r.logEnded(ended)
	r.logSession(*changed).Info("boot: " + string(p.Step))
	return nil
}

// stepDHCP notes a machine whose firmware asked what to load: there is no
// session yet.
func (r *Registry) stepDHCP(ctx context.Context, p pxe.Progress) error {
	mac, err := MACOf(p.MAC)
	if err != nil {
		return err
	}
	var n Node
	err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
		all, err := networks(tx)
		if err != nil {
			return err
		}
		network, _ := networkOf(all, p.Client)
		n, err = seen(tx, mac, network.Name, r.now())
		return err
	})
	if err == nil {
		r.log.WithFields(logrus.Fields{"mac": mac.String(), "node": n.Name, "address": addrText(p.Client)}).Info("boot: dhcp")
	}
	return err
}

// reach brings s to step, if it has not come that far. A session that has
// reached its root is what the node runs: others of the same node end.
func reach(tx *sql.Tx, s *Session, step protocol.Step, now time.Time) (ended []Session, err error) {
	if !s.Step.Before(step) {
		return nil, nil
	}
	s.Step, s.StepAt = step, now
	if step == protocol.StepUp && s.UpAt.IsZero() {
		s.UpAt = now
	}
	if !s.running() {
		return nil, nil
	}
	live, err := liveSessions(tx, s.MAC)
	if err != nil {
		return nil, err
	}
	for _, other := range live {
		if other.ID != s.ID {
			ended = append(ended, other)
		}
	}
	return ended, endSessions(tx, ended, now, endBooted)
}

func (r *Registry) logEnded(ended []Session) {
	for _, s := range ended {
		r.logSession(s).WithField("reason", string(endBooted)).Info("session ended")
	}
}

// bootsOrHolds is true of a session s that booted a snapshot, or took it by a
// live update. The snapshot's ID is bound twice.
const bootsOrHolds = `(s.snapshot = ? OR s.id IN (SELECT session FROM live_update WHERE held = 1 AND snapshot = ?))`

// findSession reports false if no session fits.
func findSession(tx *sql.Tx, p pxe.Progress) (Session, bool, error) {
	if p.Session != "" {
		s, ok, err := sessionByID(tx, p.Session)
		return s, ok && (p.Snapshot == "" || p.Snapshot == s.Snapshot.ID), err
	}
	if mac, err := MACOf(p.MAC); err == nil {
		return one(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND s.mac = ? AND (? = '' OR s.snapshot = ?)
			ORDER BY s.opened DESC, s.rowid DESC`, mac.String(), string(p.Snapshot), string(p.Snapshot))
	}
	if !p.Client.IsValid() || p.Snapshot == "" {
		return Session{}, false, nil
	}
	return one(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND s.address = ? AND `+bootsOrHolds+`
		ORDER BY s.opened DESC, s.rowid DESC`, p.Client.String(), string(p.Snapshot), string(p.Snapshot))
}
