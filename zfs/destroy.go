package zfs

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sidus/image/store"
)

// DestroyVolume implements store.Store. A volume that has snapshots is retired.
func (s *Store) DestroyVolume(ctx context.Context, v store.VolumeID) error {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	excluded, err := s.points.Exclude(pointOfVolume(v))
	if err != nil {
		return fmt.Errorf("%v: %w", d, err)
	}
	defer excluded.Release()
	found, err := s.own(ctx, v, d, "origin")
	if err != nil {
		return err
	}
	if err := s.opts.step("destroy"); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	err = classify(d, d, s.opts.destroy(ctx, d))
	if err == nil {
		s.collect(ctx, dataset(found["origin"].value))
		return nil
	}
	if !errors.Is(err, errNeeded) {
		return err
	}
	if err := s.opts.step("retire"); err != nil {
		return err
	}
	if err := classify(d, d, s.opts.set(ctx, d, propRetired, "on")); err != nil {
		return err
	}
	if err := s.giveBack(ctx, d); err != nil {
		s.opts.Log.WithError(err).WithField("dataset", d).Warn("what changed after a destroyed volume's last snapshot still takes space")
	}
	return nil
}

// giveBack takes a retired file system back to its last snapshot, so that the
// space of what came after it is free.
func (s *Store) giveBack(ctx context.Context, d dataset) error {
	if err := s.opts.step("roll back"); err != nil {
		return err
	}
	out, err := s.opts.output(ctx, "zfs", "list", "-H", "-r", "-d", "1", "-t", "snapshot", "-o", "name", "-s", "createtxg", string(d))
	if err != nil {
		return err
	}
	names := parseNames(out)
	if len(names) == 0 { // the last of them was destroyed in between
		s.collect(ctx, d)
		return nil
	}
	return s.opts.rollback(ctx, dataset(names[len(names)-1]))
}

// DestroySnapshot implements store.Store. A snapshot that has clones goes with
// the last of them, and is not shown until then.
func (s *Store) DestroySnapshot(ctx context.Context, id store.SnapshotID) error {
	if err := id.Validate(); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	excluded, err := s.points.Exclude(pointOfSnapshot(id))
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", id, err)
	}
	defer excluded.Release()
	d, found, err := s.find(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return s.destroyReceived(ctx, id, err)
	} else if err != nil {
		return err
	}
	if err := s.opts.step("destroy"); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if isHeld(found["userrefs"].value) {
		holds, err := s.holdsOf(ctx, string(d))
		if err != nil {
			return err
		}
		stay, err := s.releaseStale(ctx, holds)
		if err != nil {
			return err
		}
		if len(stay) > 0 {
			s.opts.Log.WithField("snapshot", d).Warnf("the space of a destroyed snapshot is free when others release it: %s", releases(stay))
		}
	}
	if err := classify(d, d, s.opts.destroy(ctx, d)); err != nil {
		return err
	}
	s.forget(id)
	s.collect(ctx, d)
	return nil
}

// destroyReceived destroys what a receive that was cut has left of a snapshot;
// missing is returned if there is nothing.
func (s *Store) destroyReceived(ctx context.Context, id store.SnapshotID, missing error) error {
	partial, err := s.partial(id)
	if err != nil {
		return err
	}
	lock, err := s.lockWork("receive-" + string(id))
	if err != nil {
		return err
	}
	defer lock.release()
	if err = s.destroyPartial(context.WithoutCancel(ctx), partial); errors.Is(err, store.ErrNotFound) {
		return missing
	}
	return err
}

// collect destroys the retired file system that d belongs to, if nothing needs
// it any more, and what it alone needed. A failure is logged: the next one to
// collect will try again.
func (s *Store) collect(ctx context.Context, d dataset) {
	for d != "" && d != "-" {
		fs := d.fileSystem()
		next, err := s.collectOne(ctx, fs)
		if err != nil {
			if !errors.Is(err, errNeeded) && !errors.Is(err, store.ErrNotFound) {
				s.opts.Log.WithError(err).WithField("dataset", fs).Warn("a retired dataset could not be collected")
			}
			return
		}
		d = next
	}
}

// collectOne destroys a retired file system and returns its origin.
func (s *Store) collectOne(ctx context.Context, fs dataset) (origin dataset, err error) {
	if !strings.HasPrefix(string(fs), s.parent+"/") {
		return "", nil
	}
	found, err := s.opts.properties(ctx, fs, "origin,"+propRetired)
	if err != nil {
		return "", classify(fs, fs, err)
	}
	if found[propRetired].own() == "" {
		return "", nil
	}
	if err := s.opts.step("collect"); err != nil {
		return "", err
	}
	// Refused while there are snapshots: of others too.
	return dataset(found["origin"].value), classify(fs, fs, s.opts.destroy(ctx, fs))
}
