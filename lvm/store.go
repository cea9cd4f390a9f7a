package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// itemColumns are what is asked of a logical volume of the store.
const itemColumns = "lv_name,lv_uuid,lv_tags,pool_lv,thin_id,lv_time,lv_size,vg_mda_free,vg_mda_size"

// lookUp asks for one logical volume of the pool. ErrNotFound if it is missing
// or not in the pool.
func (s *Store) lookUp(ctx context.Context, name lv) (row, error) {
	rows, err := s.report(ctx, "lvs", itemColumns, s.full(name))
	if err != nil {
		return nil, classify(name, name, err)
	}
	for _, r := range rows {
		if r["lv_name"] == string(name) && r["pool_lv"] == s.pool {
			return r, nil
		}
	}
	return nil, fmt.Errorf("%v: %w", name, store.ErrNotFound)
}

// finished is lookUp for something that is not half-made.
func (s *Store) finished(ctx context.Context, name lv) (row, error) {
	found, err := s.lookUp(ctx, name)
	if err == nil && found.has("lv_tags", tagNew) {
		return nil, fmt.Errorf("%v: %w: it was begun and never finished", name, store.ErrNotFound)
	}
	return found, err
}

// CreateVolume implements store.Store.
func (s *Store) CreateVolume(ctx context.Context, v store.VolumeID) error {
	return s.createVolume(ctx, v, s.opts.FileSystem, s.opts.VolumeSize)
}

// createVolume is CreateVolume with a file system, a size in bytes, and tags as
// lvcreate's options.
func (s *Store) createVolume(ctx context.Context, v store.VolumeID, fs FileSystem, size int64, tags ...string) error {
	name, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	if err := CheckVolume(fs, size); err != nil {
		return err
	}
	if err := s.begin(ctx, name); err != nil {
		return err
	}
	if err := s.refuseFullGroup(ctx, name, groupReserve); err != nil {
		return err
	}
	return s.makeVolume(ctx, name, pointOfVolume(v), fs, size, tags...)
}

// begin checks what every operation that makes something checks first.
func (s *Store) begin(ctx context.Context, name lv) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.refuseFull(ctx, name, maxMetadata)
}

// makeVolume makes a logical volume with an empty file system. Until all is
// done it is tagged as half-made.
func (s *Store) makeVolume(ctx context.Context, name lv, point string, fs FileSystem, size int64, tags ...string) (err error) {
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()
	clean := context.WithoutCancel(ctx)

	if err := s.opts.step("create"); err != nil {
		return err
	}
	args := append([]string{"--yes", "--type", "thin", "--thinpool", s.pool, "--name", string(name),
		"--virtualsize", fmt.Sprintf("%dk", (size+1023)/1024), "--addtag", tagNew, "--setactivationskip", "y",
		"--activate", "y", "--ignoreactivationskip", "--wipesignatures", "n"}, tags...)
	_, err = s.lvm(clean, "lvcreate", append(args, s.group)...)
	if err != nil {
		return classify(name, name, err)
	}
	undo.Add(func() error { return s.remove(clean, name) })
	// Whoever finds it half-made must not remove it meanwhile.
	held, err := s.points.Hold(point, func(folder string) error {
		err := s.format(ctx, name, fs)
		if err == nil {
			err = s.empty(clean, name, folder)
		}
		if err != nil {
			if offErr := s.deactivate(clean, name); offErr != nil {
				s.opts.Log.WithError(offErr).Warn("a device stays active")
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	if err := held.Release(); err != nil {
		return err
	}
	if err := s.opts.step("finish"); err != nil {
		return err
	}
	_, err = s.lvm(clean, "lvchange", "--deltag", tagNew, s.full(name))
	return classify(name, name, err)
}

// format makes a file system on an active logical volume.
func (s *Store) format(ctx context.Context, name lv, fs FileSystem) error {
	if err := s.opts.step("make file system"); err != nil {
		return err
	}
	// Nothing is written that can be left out, since what is written takes
	// space in the pool: no discard (nothing is there), no inode tables (see
	// mountOptions), a journal of moderate size.
	args := []string{"mkfs.ext4", "-q", "-F", "-m", "0", "-J", "size=64", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"}
	if fs == XFS {
		args = []string{"mkfs.xfs", "-q", "-f", "-K"}
	}
	if err := s.opts.run(ctx, args[0], append(args[1:], s.node(name))...); err != nil {
		return fmt.Errorf("%v: make a file system: %w", name, err)
	}
	return nil
}

// empty mounts a new file system and takes away what mkfs left in it.
func (s *Store) empty(ctx context.Context, name lv, folder string) error {
	if err := s.opts.step("empty"); err != nil {
		return err
	}
	if err := s.mountNode(ctx, name, folder, false); err != nil {
		return err
	}
	err := os.Remove(filepath.Join(folder, "lost+found"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	err = errors.Join(err, os.Chown(folder, 0, 0), os.Chmod(folder, 0o755))
	if err != nil {
		return errors.Join(err, unix.Unmount(folder, 0))
	}
	return nil
}

// Snapshot implements store.Store. The reserve that the other methods leave
// alone is for it: the end of work that nearly filled the store can be kept.
func (s *Store) Snapshot(ctx context.Context, v store.VolumeID, id store.SnapshotID) (err error) {
	source, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	target, err := lvOfSnapshot(id)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.refuseFull(ctx, target, maxMetadataSnapshot); err != nil {
		return err
	}
	found, err := s.finished(ctx, source)
	if err != nil {
		return err
	}
	if err := s.checkGroup(target, found, groupReserveSnapshot); err != nil {
		return err
	}
	// Mounted, the file system can be frozen; and the journal of one that was
	// cut off is replayed, which nobody could do in a read-only snapshot.
	m, err := s.hold(ctx, source, pointOfVolume(v), false)
	if err != nil {
		return err
	}
	defer func() {
		if unmountErr := m.Unmount(context.WithoutCancel(ctx)); unmountErr != nil {
			s.opts.Log.WithError(unmountErr).Warn("a volume stays mounted")
		}
	}()
	if err := s.refuseNested(v); err != nil {
		return err
	}
	// Most is written before the file system is frozen, so that its users wait
	// for a moment only.
	err = s.opts.within(ctx, fmt.Sprintf("%v: sync", source), func(context.Context) error { return syncFileSystem(m.Path()) })
	if err != nil {
		return fmt.Errorf("%v: %w", source, err)
	}
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()
	if err := s.makeSnapshot(ctx, "snapshot", source, target, "r", found.properties()); err != nil {
		return err
	}
	undo.Add(func() error { return s.remove(context.WithoutCancel(ctx), target) })
	if err := s.opts.step("check"); err != nil {
		return err
	}
	return s.refuseNested(v) // one may have been mounted in between
}

// makeSnapshot makes target, with permission "r" or "rw" and the properties of
// source, from that, in one transaction of the pool. It is not stopped half-way.
func (s *Store) makeSnapshot(ctx context.Context, step string, source, target lv, permission string, properties map[string]string) error {
	if err := s.opts.step(step); err != nil {
		return err
	}
	args := append([]string{"--yes", "--snapshot", "--name", string(target), "--permission", permission,
		"--setactivationskip", "y", "--activate", "n"}, tagsOf(properties)...)
	_, err := s.lvm(context.WithoutCancel(ctx), "lvcreate", append(args, s.full(source))...)
	err = classify(target, target, err)
	if err != nil && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNoSpace) {
		// The message may be about the source.
		if strings.Contains(err.Error(), "Failed to find logical volume") {
			return fmt.Errorf("%v: %w: %w", source, store.ErrNotFound, err)
		}
	}
	return err
}

func syncFileSystem(folder string) error {
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return &os.PathError{Op: "syncfs", Path: folder, Err: err}
	}
	return nil
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
	source, err := lvOfSnapshot(id)
	if err != nil {
		return err
	}
	target, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	if err := s.begin(ctx, target); err != nil {
		return err
	}
	found, err := s.finished(ctx, source)
	if err != nil {
		return err
	}
	if err := s.checkGroup(target, found, groupReserve); err != nil {
		return err
	}
	return s.makeSnapshot(ctx, "clone", source, target, "rw", found.properties())
}

// DestroyVolume implements store.Store.
func (s *Store) DestroyVolume(ctx context.Context, v store.VolumeID) error {
	name, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	return s.destroy(ctx, name, pointOfVolume(v))
}

// DestroySnapshot implements store.Store.
func (s *Store) DestroySnapshot(ctx context.Context, id store.SnapshotID) error {
	name, err := lvOfSnapshot(id)
	if err != nil {
		return err
	}
	return s.destroy(ctx, name, pointOfSnapshot(id))
}

func (s *Store) destroy(ctx context.Context, name lv, point string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	excluded, err := s.points.Exclude(point)
	if err != nil {
		return fmt.Errorf("%v: %w", name, err)
	}
	defer excluded.Release()
	if err := s.opts.step("destroy"); err != nil {
		return err
	}
	return s.remove(context.WithoutCancel(ctx), name)
}

// List implements store.Store.
func (s *Store) List(ctx context.Context) ([]store.Item, error) {
	rows, err := s.report(ctx, "lvs", itemColumns, s.group)
	if err != nil {
		return nil, classify(s.opts.place(), "", err)
	}
	return itemsOf(rows, s.pool)
}

// itemsOf returns the items among the logical volumes of a volume group.
func itemsOf(rows []row, pool string) ([]store.Item, error) {
	var items []store.Item
	for _, r := range rows {
		i, ok := parseLV(r["lv_name"])
		if !ok || r["pool_lv"] != pool {
			continue
		}
		seconds, err := strconv.ParseInt(strings.TrimSpace(r["lv_time"]), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("what LVM says of lv_time cannot be read: %q", r["lv_time"])
		}
		i.Created = time.Unix(seconds, 0)
		i.Partial = r.has("lv_tags", tagNew)
		items = append(items, i)
	}
	return items, nil
}
