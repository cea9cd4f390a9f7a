package node

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/catalog"
	"sidus/image/store"
)

// servedKey is where the catalog keeps the served clock, in seconds, and
// servedAtKey the wall clock in milliseconds when it was last advanced.
const (
	servedKey   = "served_seconds"
	servedAtKey = "served_at"
)

// maxTick bounds what one Tick adds to the served clock, should the process
// have been stopped in between.
const maxTick = 5 * time.Minute

// Sign is a sign of life: a call of a client that reads a snapshot over NFS.
type Sign struct {
	// Session is the session, if it is known; else it is the newest one of
	// Client's address that boots Snapshot.
	Session  protocol.SessionID
	Client   netip.Addr
	Snapshot store.SnapshotID
	At       time.Time
}

// heardBatch is how many signs of life are noted in one transaction, so that
// a machine that boots meanwhile waits for milliseconds.
const heardBatch = 50

// Heard notes signs of life: gather them, and call it once a minute or so.
// Signs that fit no session are passed over. After an error some may have
// been noted; noting them again does no harm.
func (r *Registry) Heard(ctx context.Context, signs []Sign) error {
	for batch := range slices.Chunk(signs, heardBatch) {
		if err := r.heard(ctx, batch); err != nil {
			return err
		}
	}
	return nil
}

func (r *Registry) heard(ctx context.Context, signs []Sign) error {
	var reopened []Session
	err := r.catalog.Update(ctx, func(tx *sql.Tx) error {
		reopened = nil
		now := r.now()
		clock, err := r.servedNow(tx, now)
		if err != nil {
			return err
		}
		for _, sign := range signs {
			s, found, again, err := whoseSign(tx, sign)
			if err != nil {
				return err
			}
			if !found {
				continue
			}
			if again {
				reopened = append(reopened, s)
			}
			s.heardNow(sign.At, clock-int64(max(0, now.Sub(sign.At))/time.Second))
			if err := writeSession(tx, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, s := range reopened {
		r.logSession(s).Warn("session that had ended is heard again: it is open again")
	}
	return nil
}

// whoseSign finds the live session of a sign of life; reopened is set if it
// had ended.
func whoseSign(tx *sql.Tx, sign Sign) (s Session, found, reopened bool, err error) {
	s, found, err = findSession(tx, pxe.Progress{Session: sign.Session, Client: sign.Client.Unmap(), Snapshot: sign.Snapshot})
	if err == nil && !found && sign.Session == "" {
		s, found, err = lastEnded(tx, sign)
	}
	if err != nil || !found || s.Live() {
		return s, found, false, err
	}
	found, err = reopen(tx, &s, sign.At)
	return s, found, found, err
}

// lastEnded returns the session of sign that ended last.
func lastEnded(tx *sql.Tx, sign Sign) (Session, bool, error) {
	return one(tx, scanSession, selectSession+` WHERE s.ended IS NOT NULL AND s.address = ? AND `+bootsOrHolds+`
		ORDER BY s.opened DESC, s.rowid DESC`, addrText(sign.Client), string(sign.Snapshot), string(sign.Snapshot))
}

// Tick advances the served clock by the time since the last call in this
// process, and ends the sessions of which nothing was heard for too long. A
// server calls it each minute while it serves; the first call only notes the
// time. What a process that dies had not yet counted is lost, which is in the
// sessions' favour. Several processes that serve with one catalog count the
// same time once.
func (r *Registry) Tick(ctx context.Context) error {
	now := r.now()
	r.mu.Lock()
	last := r.ticked
	r.mu.Unlock()
	var silent []Session
	counted := now
	err := r.catalog.Update(ctx, func(tx *sql.Tx) error {
		silent = nil
		if last.IsZero() {
			return nil
		}
		clock, rest, err := advance(tx, now, now.Sub(last))
		if err != nil {
			return err
		}
		counted = now.Add(-rest)
		silent, err = collect(tx, scanSession, selectSession+` WHERE s.ended IS NULL AND s.heard_clock <= ?`, clock-int64(Silence/time.Second))
		if err != nil {
			return err
		}
		return endSessions(tx, silent, now, endSilent)
	})
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.ticked = counted
	r.mu.Unlock()
	for _, s := range silent {
		r.logSession(s).WithField("reason", string(endSilent)).Info("session ended")
	}
	return nil
}

// advance adds elapsed to the served clock, less what another process has
// added for the same time, and returns the clock. It counts whole seconds;
// rest is what it left for the next time.
func advance(tx *sql.Tx, now time.Time, elapsed time.Duration) (clock int64, rest time.Duration, err error) {
	if clock, err = metaInt(tx, servedKey); err != nil {
		return 0, 0, err
	}
	at, err := metaInt(tx, servedAtKey)
	if err != nil {
		return 0, 0, err
	}
	// A time to come was noted before the clock was set back, and says nothing.
	if since := now.Sub(catalog.Time(at)); at != 0 && since >= 0 {
		elapsed = min(elapsed, since)
	}
	elapsed = max(0, min(elapsed, maxTick))
	rest = elapsed % time.Second
	clock += int64(elapsed / time.Second)
	if err := catalog.SetMeta(tx, servedKey, strconv.FormatInt(clock, 10)); err != nil {
		return 0, 0, err
	}
	return clock, rest, catalog.SetMeta(tx, servedAtKey, strconv.FormatInt(catalog.Millis(now.Add(-rest)), 10))
}

// servedNow is the served clock at now: what is on record, and the time since
// this process last advanced it.
func (r *Registry) servedNow(tx *sql.Tx, now time.Time) (int64, error) {
	clock, err := metaInt(tx, servedKey)
	if err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ticked.IsZero() {
		clock += int64(max(0, min(now.Sub(r.ticked), maxTick)) / time.Second)
	}
	return clock, nil
}

func metaInt(tx *sql.Tx, key string) (int64, error) {
	text, ok, err := catalog.Meta(tx, key)
	if err != nil || !ok {
		return 0, err
	}
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("catalog: %s: %w", key, err)
	}
	return value, nil
}
