package zfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"sidus/image/store"
)

// holdPrefix begins the tags of the store's user holds ("zfs hold"). A random
// name follows, which is that of a work lock: a hold whose lock nobody has is
// what a killed process left. The next one to send, Collect, and the destruction
// of the snapshot release it.
const holdPrefix = "sidus:send-"

// Hold is a user hold on a snapshot of the store.
type Hold struct {
	Snapshot store.SnapshotID
	Dataset  string // the full name of the snapshot: there may be one that was destroyed under the same ID
	Tag      string // "sidus:send-…", or that of another tool
	Alive    bool   // a process is at work for which Sidus set it; false for the holds of other tools
}

// holding is a hold that this process set.
type holding struct {
	store *Store
	lock  *workLock
	tag   string
	on    []string
}

// holdAll keeps snapshots from being destroyed by other tools from now on, and
// shows them why ("zfs holds"). Where the pool takes no changes, nothing is
// held, and nothing can be destroyed.
func (s *Store) holdAll(ctx context.Context, snapshots []dataset) (*holding, error) {
	s.sweepHolds(ctx)
	name := "send-" + strings.ToLower(rand.Text()[:16])
	lock, err := s.lockWork(name)
	if err != nil {
		return nil, err
	}
	h := &holding{store: s, lock: lock, tag: "sidus:" + name}
	for _, d := range snapshots {
		h.on = append(h.on, string(d))
	}
	if err = s.opts.step("hold"); err == nil {
		err = s.opts.run(ctx, "zfs", append([]string{"hold", h.tag}, h.on...)...)
	}
	if strings.Contains(said(err), "read-only") {
		h.on = nil
		return h, nil
	}
	if err != nil {
		lock.release()
		return nil, classify(snapshots[0], snapshots[0], err)
	}
	return h, nil
}

// release ends the hold.
func (h *holding) release() {
	defer h.lock.release()
	if len(h.on) == 0 {
		return
	}
	err := h.store.opts.step("release")
	if err == nil {
		err = h.store.opts.run(context.Background(), "zfs", append([]string{"release", h.tag}, h.on...)...)
	}
	if err != nil {
		h.store.opts.Log.WithError(err).WithField("tag", h.tag).Warn("a hold on a snapshot that was sent stays for now; `sidus check --repair` releases it")
	}
}

// Holds lists the user holds on the store's snapshots, those of other tools
// included.
func (s *Store) Holds(ctx context.Context) ([]Hold, error) {
	out, err := s.opts.output(ctx, "zfs", "list", "-Hp", "-r", "-d", "2", "-t", "snapshot", "-o", "name,userrefs", s.parent)
	if err != nil {
		return nil, s.parentError(ctx, err)
	}
	var held []string
	for line := range strings.Lines(string(out)) {
		name, refs, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if ok && isHeld(refs) {
			held = append(held, name)
		}
	}
	return s.holdsOf(ctx, held...)
}

// isHeld tells whether the property userrefs says that there are holds.
func isHeld(userrefs string) bool { return userrefs != "0" && userrefs != "-" }

// holdsOf lists the holds of snapshots; one that is gone meanwhile has none.
func (s *Store) holdsOf(ctx context.Context, names ...string) (all []Hold, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	out, err := s.opts.output(ctx, "zfs", append([]string{"holds", "-H"}, names...)...)
	if err == nil {
		return s.parseHolds(string(out)), nil
	}
	if len(names) == 1 {
		if err = classify(names[0], dataset(names[0]), err); errors.Is(err, store.ErrNotFound) {
			err = nil
		}
		return nil, err
	}
	for _, name := range names {
		holds, err := s.holdsOf(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, holds...)
	}
	return all, nil
}

// parseHolds reads `zfs holds -H`: name, tag, time.
func (s *Store) parseHolds(text string) []Hold {
	var all []Hold
	for line := range strings.Lines(text) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) < 2 {
			continue
		}
		_, snap, ok := splitName(s.parent, f[0])
		if !ok || store.SnapshotID(snap).Validate() != nil {
			continue
		}
		all = append(all, Hold{Snapshot: store.SnapshotID(snap), Dataset: f[0], Tag: f[1], Alive: s.holderLives(f[1])})
	}
	return all
}

// holderLives tells whether the process that set a hold is still at work.
func (s *Store) holderLives(tag string) bool {
	name, ours := strings.CutPrefix(tag, "sidus:")
	if !ours || !strings.HasPrefix(tag, holdPrefix) || strings.ContainsAny(name, "/.") {
		return false
	}
	lock, err := s.lockWork(name)
	if err != nil {
		return errors.Is(err, store.ErrInUse)
	}
	lock.release()
	return false
}

// stale tells whether a process that was killed left it.
func (h Hold) stale() bool { return strings.HasPrefix(h.Tag, holdPrefix) && !h.Alive }

// releaseStale releases those holds that killed processes have left, and returns
// the others. A pool that takes no changes keeps them.
func (s *Store) releaseStale(ctx context.Context, holds []Hold) (stay []Hold, err error) {
	for _, h := range holds {
		if !h.stale() {
			stay = append(stay, h)
			continue
		}
		err := s.opts.step("release")
		if err == nil {
			err = s.opts.run(ctx, "zfs", "release", h.Tag, h.Dataset)
		}
		if said := said(err); err != nil && !strings.Contains(said, "no such tag") && !strings.Contains(said, "does not exist") {
			return nil, fmt.Errorf("the hold %s, which a killed process left: %w", h.Tag, classify(h.Dataset, dataset(h.Dataset), err))
		}
	}
	return stay, nil
}

// sweepHolds releases what senders that were killed have left, once for each
// Store. A failure is no reason not to send.
func (s *Store) sweepHolds(ctx context.Context) {
	s.swept.Do(func() {
		holds, err := s.Holds(ctx)
		if err == nil {
			_, err = s.releaseStale(ctx, holds)
		}
		if err != nil {
			s.opts.Log.WithError(err).Debug("the holds of senders that were killed stay")
		}
	})
}
