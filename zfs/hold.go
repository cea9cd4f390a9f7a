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
// what a killed process left, and is released.
const holdPrefix = "sidus:send-"

// Hold is a user hold on a snapshot of the store.
type Hold struct {
	Snapshot store.SnapshotID
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
		h.store.opts.Log.WithError(err).WithField("tag", h.tag).Warn("a hold on a snapshot that was sent stays until the store is opened again (zfs holds, zfs release)")
	}
}

// Holds lists the user holds on the store's snapshots, those of other tools
// included.
func (s *Store) Holds(ctx context.Context) ([]Hold, error) {
	out, err := s.opts.output(ctx, "zfs", "list", "-Hp", "-r", "-d", "2", "-t", "snapshot", "-o", "name,userrefs", s.parent)
	if err != nil {
		return nil, classify(s.opts.place(), dataset(s.parent), err)
	}
	args := []string{"holds", "-H"}
	for line := range strings.Lines(string(out)) {
		name, refs, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		if ok && refs != "0" && refs != "-" {
			args = append(args, name)
		}
	}
	if len(args) == 2 {
		return nil, nil
	}
	if out, err = s.opts.output(ctx, "zfs", args...); err != nil {
		return nil, classify(s.opts.place(), dataset(s.parent), err)
	}
	return s.parseHolds(string(out)), nil
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
		all = append(all, Hold{Snapshot: store.SnapshotID(snap), Tag: f[1], Alive: s.holderLives(f[1])})
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

// releaseStale releases the holds on a snapshot whose processes were killed,
// and tells whether others stay.
func (s *Store) releaseStale(ctx context.Context, d dataset) (stay []string, err error) {
	out, err := s.opts.output(ctx, "zfs", "holds", "-H", string(d))
	if err != nil {
		return nil, classify(d, d, err)
	}
	for _, h := range s.parseHolds(string(out)) {
		if !strings.HasPrefix(h.Tag, holdPrefix) || h.Alive {
			stay = append(stay, h.Tag)
			continue
		}
		if err := s.opts.run(ctx, "zfs", "release", h.Tag, string(d)); err != nil {
			return nil, fmt.Errorf("%v: the hold %s of a killed process: %w", d, h.Tag, err)
		}
	}
	return stay, nil
}
