package zfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// fixed are properties that a file system gets when it is made and never after:
// the pool's may be such that a tree does not fit in (names are bytes). Clones
// have them from their origin.
var fixed = []string{"-o", "utf8only=off", "-o", "normalization=none", "-o", "casesensitivity=sensitive"}

// CreateVolume implements store.Store.
func (s *Store) CreateVolume(ctx context.Context, v store.VolumeID) error {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	if err := s.begin(ctx, d); err != nil {
		return err
	}
	args := append([]string{"create", "-o", "mountpoint=legacy", "-o", propVolume + "=" + string(v)}, fixed...)
	return s.make(ctx, "create", d, append(args, string(d)))
}

// begin checks what every operation that makes a volume checks first.
func (s *Store) begin(ctx context.Context, d dataset) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.refuseFull(ctx, d)
}

// make runs the one command that makes d, in one transaction of the pool. It
// is not stopped half-way: it is short, and whether it had happened would not
// be known.
func (s *Store) make(ctx context.Context, step string, d dataset, args []string) error {
	if err := s.opts.step(step); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	for attempt := 0; ; attempt++ {
		err := classify(d, d, s.opts.run(ctx, "zfs", args...))
		if attempt > 0 || !errors.Is(err, store.ErrExists) || d.fileSystem() != d {
			return err
		}
		// The name may be that of a retired volume.
		if found, err := s.opts.properties(ctx, d, propRetired); err != nil {
			return classify(d, d, err)
		} else if found[propRetired].own() == "" {
			return fmt.Errorf("%v: %w", d, store.ErrExists)
		}
		aside := dataset(string(d) + ".retired-" + strings.ToLower(rand.Text()))
		if err := classify(d, d, s.opts.run(ctx, "zfs", "rename", "-u", string(d), string(aside))); err != nil {
			return err
		}
	}
}

// own returns properties of a volume's file system. ErrNotFound if it is
// missing, retired, or not the store's.
func (s *Store) own(ctx context.Context, v store.VolumeID, d dataset, names string) (map[string]property, error) {
	found, err := s.opts.properties(ctx, d, strings.TrimPrefix(names+","+propVolume+","+propRetired, ","))
	if err = classify(d, d, err); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil, s.renamed(ctx, v, err)
		}
		return nil, err
	}
	switch {
	case found[propRetired].own() != "":
		return nil, fmt.Errorf("%v: %w: it was destroyed", d, store.ErrNotFound)
	case found[propVolume].own() != string(v):
		return nil, fmt.Errorf("%v: %w: there is a dataset of this name that Sidus did not make", d, store.ErrNotFound)
	}
	return found, nil
}

// parentError classifies the failure of a command about the parent. A store
// that was open and is missing now is ErrUnavailable: its pool was exported, or
// someone destroyed or renamed the parent.
func (s *Store) parentError(ctx context.Context, err error) error {
	parent := dataset(s.parent)
	if err = classify(s.opts.place(), parent, err); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	pool, _, _ := cutPool(s.parent)
	if _, poolErr := s.opts.pool(ctx, pool); poolErr != nil {
		return classify(s.opts.place(), dataset(pool), poolErr)
	}
	return fmt.Errorf("%s: %w: the store's dataset is gone (destroyed, or renamed by hand: zfs list)", s.opts.place(), store.ErrUnavailable)
}

// renamed adds to an ErrNotFound that someone gave a volume another name.
func (s *Store) renamed(ctx context.Context, v store.VolumeID, missing error) error {
	return s.renamedItem(ctx, missing, func(i store.Item) bool { return i.Kind == store.KindVolume && i.Volume == v })
}

// renamedSnapshot does the same for a snapshot.
func (s *Store) renamedSnapshot(ctx context.Context, id store.SnapshotID, missing error) error {
	return s.renamedItem(ctx, missing, func(i store.Item) bool { return i.Kind == store.KindSnapshot && i.Snapshot == id })
}

func (s *Store) renamedItem(ctx context.Context, missing error, is func(store.Item) bool) error {
	all, err := s.list(ctx)
	if errors.Is(err, store.ErrUnavailable) {
		return err
	} else if err != nil {
		return missing
	}
	for _, l := range all {
		if l.renamed != "" && is(l.item) {
			return fmt.Errorf("%w: it was renamed by hand: zfs rename %s %s", missing, l.renamed, l.name)
		}
	}
	return missing
}

// snapshotProperties are what find reads.
const snapshotProperties = "guid,defer_destroy,userrefs,encryption," + propSnapshot

// find returns where a snapshot is, and its snapshotProperties. ErrNotFound if it is nowhere, was
// destroyed, or is not the store's.
func (s *Store) find(ctx context.Context, id store.SnapshotID) (dataset, map[string]property, error) {
	s.mu.Lock()
	d, known := s.known[id]
	s.mu.Unlock()
	if known {
		found, err := s.look(ctx, d, id)
		if !errors.Is(err, store.ErrNotFound) {
			return d, found, err
		}
		s.forget(id)
	}
	// One that is looked at may just have moved with its file system.
	for range 2 {
		names, err := s.opts.names(ctx, dataset(s.parent), "2", "snapshot")
		if err != nil {
			return "", nil, s.parentError(ctx, err)
		}
		moved := false
		for _, d := range s.learn(names, id) {
			found, err := s.look(ctx, d, id)
			if err == nil {
				s.mu.Lock()
				s.known[id] = d
				s.mu.Unlock()
				return d, found, nil
			} else if !errors.Is(err, store.ErrNotFound) {
				return "", nil, err
			}
			moved = moved || !errors.Is(err, errDestroyed)
		}
		s.forget(id)
		if !moved {
			break
		}
	}
	return "", nil, s.renamedSnapshot(ctx, id, fmt.Errorf("snapshot %s: %w", id, store.ErrNotFound))
}

// errDestroyed is the ErrNotFound of a snapshot that is there and counts no more.
var errDestroyed = fmt.Errorf("%w: it was destroyed, or others made it", store.ErrNotFound)

// look returns the snapshotProperties of what may be a snapshot of the store.
func (s *Store) look(ctx context.Context, d dataset, id store.SnapshotID) (map[string]property, error) {
	found, err := s.opts.properties(ctx, d, snapshotProperties)
	if err != nil {
		return nil, classify(d, d, err)
	}
	if found["defer_destroy"].value == "on" || found[propSnapshot].own() != string(id) {
		return nil, fmt.Errorf("%v: %w", d, errDestroyed)
	}
	return found, nil
}

func (s *Store) forget(id store.SnapshotID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.known, id)
}

// learn remembers where snapshots are, from a list of names, and returns where
// the one asked for may be: one that came again has the name of the one that
// was destroyed and that clones still need. What it remembers is a place to
// look first: find reads the properties that tell whether it is the store's.
func (s *Store) learn(names []string, id store.SnapshotID) (places []dataset) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.known)
	for _, name := range names {
		fs, snap, ok := splitName(s.parent, name)
		found := store.SnapshotID(snap)
		if !ok || found.Validate() != nil || strings.HasPrefix(fs, receivingPrefix) {
			continue
		}
		if found == id {
			places = append(places, dataset(name))
		}
		if s.known[found] == "" {
			s.known[found] = dataset(name)
		}
	}
	return places
}

// Snapshot implements store.Store. It is not refused where the store is nearly
// full: ZFS has a reserve of its own, and the end of work can be kept. All
// snapshots are not searched for the ID, which is random: the time that it takes
// does not depend on how many there are.
func (s *Store) Snapshot(ctx context.Context, v store.VolumeID, id store.SnapshotID) (err error) {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	target, err := d.snapshot(id)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := s.own(ctx, v, d, ""); err != nil {
		return err
	}
	s.mu.Lock()
	elsewhere, known := s.known[id]
	s.mu.Unlock()
	if known && elsewhere != target {
		if _, _, err := s.find(ctx, id); err == nil {
			return fmt.Errorf("%v: %w", elsewhere, store.ErrExists)
		} else if !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	if err := s.refuseNested(v); err != nil {
		return err
	}
	if err := s.flush(ctx, v); err != nil {
		return err
	}
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()
	if err := s.make(ctx, "snapshot", target, []string{"snapshot", "-o", propSnapshot + "=" + string(id), string(target)}); err != nil {
		return err
	}
	undo.Add(func() error { return s.opts.destroy(context.WithoutCancel(ctx), target) })
	if err := s.opts.step("check"); err != nil {
		return err
	}
	if err := s.refuseNested(v); err != nil { // one may have been mounted in between
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[id] = target
	return nil
}

// flush writes what the kernel still holds of a mounted volume: pages that were
// written through a mapping are unknown to ZFS until then.
func (s *Store) flush(ctx context.Context, v store.VolumeID) error {
	point := s.points.Path(pointOfVolume(v))
	return s.call(ctx, fmt.Sprintf("volume %s: syncfs", v), func() error {
		dir, err := os.Open(point)
		if errors.Is(err, os.ErrNotExist) {
			return nil // not mounted: all was written when it was unmounted
		} else if err != nil {
			return err
		}
		defer dir.Close()
		if err := unix.Syncfs(int(dir.Fd())); err != nil {
			return &os.PathError{Op: "syncfs", Path: point, Err: err}
		}
		return nil
	})
}

// refuseNested returns ErrNestedVolume if something is mounted inside a volume.
func (s *Store) refuseNested(v store.VolumeID) error {
	inside, err := s.points.Inside(pointOfVolume(v))
	if err != nil {
		return err
	}
	if len(inside) > 0 {
		return fmt.Errorf("volume %s: %w: something is mounted at %s", v, store.ErrNestedVolume, inside[0])
	}
	return nil
}

// Clone implements store.Store.
func (s *Store) Clone(ctx context.Context, id store.SnapshotID, v store.VolumeID) error {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	if err := id.Validate(); err != nil {
		return err
	}
	if err := s.begin(ctx, d); err != nil {
		return err
	}
	source, _, err := s.find(ctx, id)
	if err != nil {
		return err
	}
	args := []string{"clone", "-o", "mountpoint=legacy", "-o", propVolume + "=" + string(v), "-o", propOrigin + "=" + string(id)}
	// A clone inherits from its parent, not from its origin.
	tuned, err := s.tuning(ctx, source.fileSystem())
	if err != nil {
		return err
	}
	for _, name := range Tunable {
		if value := tuned[name]; value != "" {
			args = append(args, "-o", name+"="+value)
		}
	}
	return s.make(ctx, "clone", d, append(args, string(source), string(d)))
}

// List implements store.Store.
func (s *Store) List(ctx context.Context) ([]store.Item, error) {
	all, err := s.list(ctx)
	if err != nil {
		return nil, err
	}
	var items []store.Item
	for _, l := range all {
		if l.renamed != "" {
			s.opts.Log.WithField("dataset", l.renamed).Warnf("a %s of the store was renamed by hand: zfs rename %s %s", l.item.Kind, l.renamed, l.name)
			continue
		}
		items = append(items, l.item)
	}
	return items, nil
}

// list returns what belongs to the store.
func (s *Store) list(ctx context.Context) ([]listed, error) {
	out, err := s.opts.output(ctx, "zfs", "list", "-Hp", "-r", "-d", "2", "-t", "filesystem,snapshot", "-o", listColumns, s.parent)
	if err != nil {
		return nil, s.parentError(ctx, err)
	}
	return parseList(s.parent, out)
}
