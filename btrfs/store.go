package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool"
)

// openDir opens the folder that holds items of i's kind.
func (s *Store) openDir(i item) (*os.File, error) {
	dir, err := os.Open(s.path(i.dir()))
	if err != nil {
		return nil, classify(s.opts.place(), "open "+i.dir(), err)
	}
	return dir, nil
}

// refuseExisting returns ErrExists if i is there, whole or half-made.
func (s *Store) refuseExisting(i item) error {
	for _, path := range []string{i.path(), i.newPath(), i.gonePath()} {
		_, err := os.Lstat(s.path(path))
		if err == nil {
			return fmt.Errorf("%v: %w", i, store.ErrExists)
		}
		if !errors.Is(err, os.ErrNotExist) {
			return classify(i, "look for it", err)
		}
	}
	return nil
}

// CreateVolume implements store.Store.
func (s *Store) CreateVolume(ctx context.Context, v store.VolumeID) (err error) {
	i, err := itemOfVolume(v)
	if err != nil {
		return err
	}
	if err := s.begin(ctx, i); err != nil {
		return err
	}
	dir, err := s.openDir(i)
	if err != nil {
		return err
	}
	defer dir.Close()
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()

	temp := filepath.Base(i.newPath())
	if err := s.opts.step("create subvolume"); err != nil {
		return err
	}
	if err := subvolCreate(dir, temp); err != nil {
		return classify(i, "create", err)
	}
	undo.Add(func() error { return subvolDestroy(dir, temp) })
	if err := s.opts.step("set owner and mode"); err != nil {
		return err
	}
	if err := errors.Join(os.Chown(s.path(i.newPath()), 0, 0), os.Chmod(s.path(i.newPath()), 0o755)); err != nil {
		return classify(i, "set owner and mode", err)
	}
	if err := s.opts.step("name"); err != nil {
		return err
	}
	if err := rename(dir, temp, i.id); err != nil {
		return classify(i, "name", err)
	}
	undo.Add(func() error { return rename(dir, i.id, temp) })
	if err := s.opts.step("commit"); err != nil {
		return err
	}
	return classify(i, "commit", commit(dir))
}

// begin checks what every operation that makes something checks first.
func (s *Store) begin(ctx context.Context, i item) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.refuseExisting(i); err != nil {
		return err
	}
	return s.refuseFull(ctx, i)
}

// rename gives an entry of a folder another name, which must be free.
func rename(dir *os.File, from, to string) error {
	fd := int(dir.Fd())
	return unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
}

// Snapshot implements store.Store. The reserve that the other methods leave
// alone is for it: the end of work that nearly filled the store can be kept.
func (s *Store) Snapshot(ctx context.Context, v store.VolumeID, id store.SnapshotID) (err error) {
	source, err := itemOfVolume(v)
	if err != nil {
		return err
	}
	target, err := itemOfSnapshot(id)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return s.snapshot(source, target, true)
}

// Clone implements store.Store.
func (s *Store) Clone(ctx context.Context, id store.SnapshotID, v store.VolumeID) error {
	source, err := itemOfSnapshot(id)
	if err != nil {
		return err
	}
	target, err := itemOfVolume(v)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := s.refuseFull(ctx, target); err != nil {
		return err
	}
	return s.snapshot(source, target, false)
}

// snapshot makes target from source. The kernel does it in one transaction
// that is on disk when it returns, so that no temporary name is needed.
func (s *Store) snapshot(source, target item, readOnly bool) (err error) {
	from, err := s.openItem(source, source.path())
	if err != nil {
		return err
	}
	defer from.Close()
	if err := s.refuseExisting(target); err != nil {
		return err
	}
	if readOnly {
		if err := s.refuseNested(source, from); err != nil {
			return err
		}
	}
	dir, err := s.openDir(target)
	if err != nil {
		return err
	}
	defer dir.Close()
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()

	if err := s.opts.step("snapshot"); err != nil {
		return err
	}
	if err := subvolSnapshot(from, dir, target.id, readOnly); err != nil {
		return classify(target, "make from "+source.String(), err)
	}
	undo.Add(func() error { return subvolDestroy(dir, target.id) })
	if err := s.opts.step("check"); err != nil {
		return err
	}
	if readOnly { // one may have been made in between
		return s.refuseNested(source, from)
	}
	return nil
}

// DestroyVolume implements store.Store. Subvolumes inside go too.
func (s *Store) DestroyVolume(ctx context.Context, v store.VolumeID) error {
	i, err := itemOfVolume(v)
	if err != nil {
		return err
	}
	return s.destroy(ctx, i)
}

// DestroySnapshot implements store.Store.
func (s *Store) DestroySnapshot(ctx context.Context, id store.SnapshotID) error {
	i, err := itemOfSnapshot(id)
	if err != nil {
		return err
	}
	return s.destroy(ctx, i)
}

func (s *Store) destroy(ctx context.Context, i item) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	found := false
	for _, path := range []string{i.path(), i.newPath(), i.gonePath()} {
		err := s.destroyAt(i, path)
		if errors.Is(err, store.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		found = true
	}
	if !found {
		return fmt.Errorf("%v: %w", i, store.ErrNotFound)
	}
	return nil
}

// destroyAt destroys the subvolume at one of the paths that i can have. One
// without subvolumes in it goes in one step. Else it gets a name by which it
// is known as half-removed; from the first removal inside on there is no way
// back, and what fails then is logged and left for a later call.
func (s *Store) destroyAt(i item, path string) error {
	root, err := s.lockItem(i, path, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		return err
	}
	defer func() { _ = backend.Unlock(root) }()
	if inside, err := s.mountsIn(i); err != nil {
		return err
	} else if len(inside) > 0 {
		return fmt.Errorf("%v: %w: something is mounted at %s", i, store.ErrInUse, inside[0])
	}
	dir, err := s.openDir(i)
	if err != nil {
		return err
	}
	defer dir.Close()
	children, err := subvolChildren(root)
	if err != nil {
		return classify(i, "look for nested subvolumes", err)
	}
	name, gone := filepath.Base(path), filepath.Base(i.gonePath())
	if len(children) > 0 && name != gone {
		if err := s.opts.step("begin removal"); err != nil {
			return err
		}
		if err := rename(dir, name, gone); err != nil {
			return classify(i, "begin removal", err)
		}
	}
	if len(children) > 0 {
		removed, err := s.destroyChildren(root, children)
		if err != nil && removed == 0 && name != gone {
			if undoErr := rename(dir, gone, name); undoErr != nil {
				s.opts.Log.WithError(undoErr).Warn("a step that failed could not be taken back")
			}
			return classify(i, "remove what is nested in it", err)
		}
		if err != nil {
			s.opts.Log.WithError(err).WithField("item", i).Warn("removed in part; the rest is collected later")
			return nil
		}
		name = gone
	}
	err = s.opts.step("destroy")
	if err == nil {
		err = subvolDestroy(dir, name)
	}
	if err != nil {
		if len(children) > 0 {
			s.opts.Log.WithError(err).WithField("item", i).Warn("removed in part; the rest is collected later")
			return nil
		}
		return classify(i, "destroy", err)
	}
	if err := commit(dir); err != nil {
		s.opts.Log.WithError(err).WithField("item", i).Warn("destroyed, but a crash may bring it back")
	}
	return nil
}

// destroyChildren destroys subvolumes inside root, the innermost first, and
// tells how many it has destroyed.
func (s *Store) destroyChildren(root *os.File, children []string) (removed int, err error) {
	for _, child := range children {
		inside, err := openIn(root, child)
		if err != nil {
			return removed, err
		}
		nested, err := subvolChildren(inside)
		if err == nil && len(nested) > 0 {
			var n int
			n, err = s.destroyChildren(inside, nested)
			removed += n
		}
		_ = inside.Close()
		if err != nil {
			return removed, err
		}
		parent, err := openIn(root, filepath.Dir(child))
		if err != nil {
			return removed, err
		}
		if err = s.opts.step("destroy nested"); err == nil {
			err = subvolDestroy(parent, filepath.Base(child))
		}
		_ = parent.Close()
		if err != nil {
			return removed, err
		}
		removed++
	}
	return removed, nil
}

// openIn opens a folder beneath dir without following a link anywhere.
func openIn(dir *os.File, path string) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: filepath.Join(dir.Name(), path), Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), path)), nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context) ([]store.Item, error) {
	var items []store.Item
	for _, kind := range []store.Kind{store.KindVolume, store.KindSnapshot} {
		dir := s.path(item{kind: kind}.dir())
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, classify(s.opts.place(), "list", err)
		}
		for _, entry := range entries {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			i, partial, ok := parseItem(kind, entry.Name())
			if !ok {
				s.opts.Log.WithField("path", filepath.Join(dir, entry.Name())).Debug("not an item of the store")
				continue
			}
			made, err := s.made(i, filepath.Join(i.dir(), entry.Name()))
			if errors.Is(err, store.ErrNotFound) { // destroyed just now
				continue
			} else if err != nil {
				return nil, err
			}
			found := store.Item{Kind: kind, Created: made, Partial: partial}
			if kind == store.KindVolume {
				found.Volume = store.VolumeID(i.id)
			} else {
				found.Snapshot = store.SnapshotID(i.id)
			}
			items = append(items, found)
		}
	}
	return items, nil
}

func (s *Store) made(i item, path string) (time.Time, error) {
	dir, err := s.openItem(i, path)
	if err != nil {
		return time.Time{}, err
	}
	defer dir.Close()
	made, _, err := subvolMade(dir)
	return made, classify(i, "ask when it was made", err)
}

// Wait implements store.Waiter. The disk beneath a loop file has the space back
// too.
func (s *Store) Wait(ctx context.Context) error {
	dir, err := os.Open(s.root)
	if err != nil {
		return classify(s.opts.place(), "open the store", err)
	}
	defer dir.Close()
	if err := syncAll(dir); err != nil {
		return classify(s.opts.place(), "sync", err)
	}
	if err := tool.Run(ctx, tool.Options{Log: s.opts.Log}, "btrfs", "subvolume", "sync", s.root); err != nil {
		return err
	}
	if s.opts.File == "" {
		return nil
	}
	return classify(s.opts.place(), "give space back", giveBack(s.root))
}
