package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
	"sidus/image/catalog"
)

// HeartbeatSeconds is the time between two heartbeats that agents are told.
const HeartbeatSeconds = 3600

// Report notes what the agent of a session says. client is where the report
// came from. The error wraps protocol.ErrUnknownSession if there is no such
// session, or it has ended and the node has been booted since; or it wraps
// protocol.ErrMalformed or ErrTooNew.
func (r *Registry) Report(ctx context.Context, session protocol.SessionID, client netip.Addr, report protocol.Report) (protocol.Reply, error) {
	if err := report.Validate(); err != nil {
		return protocol.Reply{}, err
	}
	address := client.Unmap()
	if own, err := netip.ParseAddr(report.Address); err == nil {
		address = own.Unmap()
	}
	var s Session
	var before Session
	var ended []Session
	err := r.catalog.Update(ctx, func(tx *sql.Tx) error {
		ended = nil
		found := false
		var err error
		if s, found, err = sessionByID(tx, session); err != nil {
			return err
		}
		now := catalog.Time(catalog.Millis(r.now()))
		before = s
		if found && !s.Live() {
			if found, err = reopen(tx, &s, now); err != nil {
				return err
			}
		}
		if !found {
			return fmt.Errorf("session %.40s: %w", session, protocol.ErrUnknownSession)
		}
		clock, err := r.servedNow(tx, now)
		if err != nil {
			return err
		}
		s.heardNow(now, clock)
		if address.IsValid() {
			s.Address = address
		}
		s.FailedUnits, s.Kernel = report.FailedUnits, report.Kernel
		// A heartbeat tells that the node is up too, should the first report
		// have been lost.
		if ended, err = reach(tx, &s, protocol.StepUp, now); err != nil {
			return err
		}
		if report.Outcome != nil {
			if err := finishOrder(tx, s.ID, *report.Outcome, now); err != nil {
				return err
			}
		}
		return writeSession(tx, s)
	})
	if err != nil {
		return protocol.Reply{}, err
	}
	r.logReport(before, s)
	if o := report.Outcome; o != nil {
		entry := r.logSession(s).WithFields(logrus.Fields{"order": o.Order, "update": string(o.Snapshot)})
		if o.Reason == "" {
			entry.Info("live update: done")
		} else {
			entry.WithField("reason", o.Reason).Warn("live update: failed")
		}
	}
	r.logEnded(ended)
	return protocol.Reply{Protocol: protocol.Version, HeartbeatSeconds: HeartbeatSeconds}, nil
}

func (r *Registry) logReport(before, s Session) {
	entry := r.logSession(s)
	if len(s.FailedUnits) > 0 {
		entry = entry.WithField("failed_units", s.FailedUnits)
	}
	if !before.Live() {
		entry.WithField("ended", stamp(before.Ended)).Warn("session that had ended is heard again: it is open again")
	}
	switch {
	case before.Step.Before(protocol.StepUp):
		entry.WithField("kernel", s.Kernel).Info("boot: up")
	case !slices.Equal(before.FailedUnits, s.FailedUnits):
		entry.Info("failed units changed")
	default:
		entry.Debug("heartbeat")
	}
}

// reopen opens a session again whose node was heard at at, after it had ended.
// It reports false if that must not be: the snapshot is gone, the node was
// deleted, or a later boot of it has reached its root.
func reopen(tx *sql.Tx, s *Session, at time.Time) (bool, error) {
	if s.EndReason == endDeleted || !at.After(s.Ended) {
		return false, nil
	}
	if _, exists, err := refOf(tx, s.Snapshot.ID); err != nil || !exists {
		return false, err
	}
	later, err := collect(tx, scanSession, selectSession+` WHERE s.mac = ? AND s.id <> ? AND s.opened >= ?`,
		s.MAC.String(), string(s.ID), catalog.Millis(s.Opened))
	if err != nil {
		return false, err
	}
	for _, other := range later {
		if other.running() {
			return false, nil
		}
	}
	s.Ended, s.EndReason = time.Time{}, ""
	return true, nil
}
