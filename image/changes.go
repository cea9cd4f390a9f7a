package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Change is one difference between two directories.
type Change struct {
	Path string `json:"path"`
	Kind string `json:"kind"` // added, removed, changed
}

// String is the change in one line: + added, - removed, ~ changed.
func (c Change) String() string {
	return map[string]string{"added": "+", "removed": "-", "changed": "~"}[c.Kind] + " " + c.Path
}

// HeadChanges lists what the locked head holds that its base, the snapshot
// that it starts from, does not: at most limit entries (0: all). A head
// without a base is compared to nothing. The error is a *LostError if the head
// or its base is lost.
func (m *Manager) HeadChanges(ctx context.Context, lock *HeadLock, limit int) ([]Change, error) {
	tree, err := m.treeByID(ctx, lock.TreeID)
	if err != nil {
		return nil, err
	}
	return m.headChanges(ctx, tree, limit)
}

func (m *Manager) headChanges(ctx context.Context, t Tree, limit int) (changes []Change, err error) {
	if !t.Touched {
		return nil, nil
	}
	head, err := m.mountHead(ctx, t)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, head.Unmount(context.WithoutCancel(ctx))) }()
	base := ""
	if t.Base != "" {
		mount, err := m.mountSnapshot(ctx, t.Base)
		if err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
		base = mount.Path()
	}
	c := comparison{ctx: ctx, old: base, new: head.Path(), limit: limit}
	if err := c.directory("."); err != nil && !errors.Is(err, errEnough) {
		return nil, fmt.Errorf("compare the head of %s with its base: %w", t.Name, err)
	}
	return c.changes, nil
}

var errEnough = errors.New("enough changes")

// comparison compares a volume with the snapshot that it was cloned from. A
// clone has the inode numbers and change times of its origin, on every
// backend, so that whatever was touched since shows in its metadata.
type comparison struct {
	ctx      context.Context
	old, new string // root directories; old may be "": nothing
	limit    int
	changes  []Change
}

func (c *comparison) add(kind, name string) error {
	c.changes = append(c.changes, Change{Path: "/" + name, Kind: kind})
	if c.limit > 0 && len(c.changes) >= c.limit {
		return errEnough
	}
	return nil
}

func (c *comparison) directory(name string) error {
	if err := c.ctx.Err(); err != nil {
		return err
	}
	var old []string
	if c.old != "" {
		var err error
		if old, err = names(filepath.Join(c.old, name)); err != nil {
			return err
		}
	}
	current, err := names(filepath.Join(c.new, name))
	if err != nil {
		return err
	}
	for len(old) > 0 || len(current) > 0 {
		switch order := compareHeads(old, current); {
		case order < 0:
			err = c.add("removed", path.Join(name, old[0]))
			old = old[1:]
		case order > 0:
			err = c.add("added", path.Join(name, current[0]))
			current = current[1:]
		default:
			err = c.entry(path.Join(name, current[0]))
			old, current = old[1:], current[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// compareHeads compares the first elements; the end of a list is the largest.
func compareHeads(a, b []string) int {
	switch {
	case len(a) == 0:
		return 1
	case len(b) == 0:
		return -1
	}
	return cmp.Compare(a[0], b[0])
}

func (c *comparison) entry(name string) error {
	var old, current unix.Stat_t
	if err := unix.Lstat(filepath.Join(c.old, name), &old); err != nil {
		return &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	if err := unix.Lstat(filepath.Join(c.new, name), &current); err != nil {
		return &fs.PathError{Op: "lstat", Path: name, Err: err}
	}
	isDir := current.Mode&unix.S_IFMT == unix.S_IFDIR
	if old.Mode != current.Mode || old.Uid != current.Uid || old.Gid != current.Gid || old.Rdev != current.Rdev ||
		!isDir && (old.Size != current.Size || old.Ino != current.Ino || old.Mtim != current.Mtim || old.Ctim != current.Ctim) {
		if err := c.add("changed", name); err != nil {
			return err
		}
	}
	if isDir && old.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.directory(name)
	}
	return nil
}

func names(dir string) ([]string, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	list, err := file.Readdirnames(-1)
	slices.Sort(list)
	return list, err
}

// TreeChanges is HeadChanges without the lock: while somebody writes to the
// head, it shows what it meets.
func (m *Manager) TreeChanges(ctx context.Context, tree Tree, limit int) ([]Change, error) {
	return m.headChanges(ctx, tree, limit)
}
