package mountpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// Table is a folder of mount points. Its methods may be called from several
// goroutines.
type Table struct {
	// Limit is how long it may take to unmount something, unless this machine
	// writes much back meanwhile, and half of what another process may take to
	// mount or unmount it. It is set before the table is used.
	Limit time.Duration

	dir  string
	gone func(name string) error
}

// DefaultLimit is the Limit of a new table: what takes minutes hangs.
const DefaultLimit = 2 * time.Minute

const (
	gateSuffix = ".gate"
	heldSuffix = ".held"
)

// New makes the folder, which only root may enter: trees hold set-uid programs,
// which the machine's own users must not reach. gone is called with the
// name of a thing that is not mounted any more, for a device that must be given
// back too, and may be called again for the same; nil does nothing.
func New(dir string, gone func(name string) error) (*Table, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if gone == nil {
		gone = func(string) error { return nil }
	}
	real, err := filepath.EvalSymlinks(dir) // as mountinfo names it
	if err != nil {
		return nil, err
	}
	return &Table{Limit: DefaultLimit, dir: real, gone: gone}, os.Chmod(real, 0o700)
}

// Path is where the thing is mounted when it is. A name is one component of a
// path and ends with neither ".gate" nor ".held".
func (t *Table) Path(name string) string { return filepath.Join(t.dir, name) }

// lockGate locks the gate of a thing. A process that hangs in the kernel while it
// mounts or unmounts keeps it, also when it was killed.
func (t *Table) lockGate(name string) (*os.File, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), 2*t.Limit, fmt.Errorf(
		"%w: another process has been mounting or unmounting it for %v: does the disk beneath answer?", store.ErrUnavailable, 2*t.Limit))
	defer cancel()
	gate, err := backend.LockFileWhenFree(ctx, t.Path(name)+gateSuffix, unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t.Path(name), err)
	}
	return gate, nil
}

// Held is the use of a mount.
type Held struct {
	table *Table
	name  string
	once  sync.Once
	held  *os.File
}

// Path is where it is mounted.
func (h *Held) Path() string { return h.table.Path(h.name) }

// Hold uses a thing; mount is called to mount it on a folder if it is not
// mounted yet. What mount fails with is returned as it is.
func (t *Table) Hold(name string, mount func(folder string) error) (*Held, error) {
	gate, err := t.lockGate(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = backend.Unlock(gate) }()
	// Whoever has it exclusively has the gate too: this never waits.
	held, err := backend.LockFile(t.Path(name)+heldSuffix, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done { // also when mount panics
			_ = t.forget(name)
			_ = backend.Unlock(held)
		}
	}()
	if err := t.mountIfMissing(name, mount); err != nil {
		return nil, err
	}
	done = true
	return &Held{table: t, name: name, held: held}, nil
}

func (t *Table) mountIfMissing(name string, mount func(folder string) error) error {
	folder := t.Path(name)
	mounted, err := isMounted(folder)
	if err != nil || mounted {
		return err
	}
	if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return mount(folder)
}

// Release ends the use, and unmounts what nobody uses any more. The error
// wraps store.ErrInUse if a file in it is still open somewhere: it stays
// mounted, until the next one who holds, excludes or sweeps it. A second call
// does nothing.
func (h *Held) Release() error {
	var err error
	h.once.Do(func() { err = h.release() })
	return err
}

func (h *Held) release() error {
	t := h.table
	gate, err := t.lockGate(h.name)
	if err != nil {
		return errors.Join(err, backend.Unlock(h.held))
	}
	defer func() { _ = backend.Unlock(gate) }()
	if err := backend.Unlock(h.held); err != nil {
		return err
	}
	alone, err := backend.LockFile(t.Path(h.name)+heldSuffix, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return err
	}
	defer func() { _ = backend.Unlock(alone) }()
	return t.takeAway(h.name)
}

// Excluded is a thing that nobody uses and nobody can begin to use.
type Excluded struct {
	table      *Table
	name       string
	gate, held *os.File
}

// Exclude waits for whoever mounts or unmounts the thing, and unmounts it if a
// killed process left it mounted. The error wraps store.ErrInUse if someone
// uses it.
func (t *Table) Exclude(name string) (*Excluded, error) {
	gate, err := t.lockGate(name)
	if err != nil {
		return nil, err
	}
	held, err := backend.LockFile(t.Path(name)+heldSuffix, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = fmt.Errorf("%w: it is mounted at %s", store.ErrInUse, t.Path(name))
	}
	if err != nil {
		_ = backend.Unlock(gate)
		return nil, err
	}
	e := &Excluded{table: t, name: name, gate: gate, held: held}
	if err := t.takeAway(name); err != nil {
		e.Release()
		return nil, err
	}
	return e, nil
}

// Release lets others use the thing again.
func (e *Excluded) Release() {
	_ = e.table.forget(e.name)
	_ = backend.Unlock(e.held)
	_ = backend.Unlock(e.gate)
}

// takeAway unmounts a thing that nobody holds, and forgets it. The gate is
// locked.
func (t *Table) takeAway(name string) error {
	folder := t.Path(name)
	mounted, err := isMounted(folder)
	if err != nil {
		return err
	}
	if !mounted {
		_ = os.Remove(folder)
		return t.gone(name)
	}
	for mounted {
		if err := t.unmountSoon(folder); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("%s: %w: something in it is still open or mounted (fuser -vm %s says what): %w", folder, store.ErrInUse, folder, err)
			}
			return err
		}
		if mounted, err = isMounted(folder); err != nil {
			return err
		}
	}
	if err := os.Remove(folder); err != nil {
		return err
	}
	if err := t.gone(name); err != nil {
		return err
	}
	return t.forget(name)
}

// forget removes the files of a thing that is not mounted. Its gate is locked.
func (t *Table) forget(name string) error {
	folder := t.Path(name)
	if mounted, err := isMounted(folder); err != nil || mounted {
		return err
	}
	if err := os.Remove(folder); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return errors.Join(remove(folder+heldSuffix), remove(folder+gateSuffix))
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Sweep unmounts what killed processes left, and returns the first failure;
// what is in use stays and is no failure.
func (t *Table) Sweep() error {
	entries, err := os.ReadDir(t.dir)
	if err != nil {
		return err
	}
	var first error
	for _, entry := range entries {
		name := entry.Name()
		if !entry.IsDir() {
			// A lock whose folder is gone: a process was killed in between.
			name = strings.TrimSuffix(strings.TrimSuffix(name, gateSuffix), heldSuffix)
			if name == entry.Name() {
				continue
			}
		}
		if _, err := os.Lstat(t.Path(entry.Name())); errors.Is(err, os.ErrNotExist) {
			continue // done with its folder, or by its holder
		}
		excluded, err := t.Exclude(name)
		if err == nil {
			excluded.Release()
		} else if !errors.Is(err, store.ErrInUse) && first == nil {
			first = err
		}
	}
	return first
}

// isMounted tells whether something is mounted on exactly this folder.
func isMounted(folder string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, folder, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	} else if err != nil {
		// What is mounted may be broken: mountinfo does not ask it.
		return mountedByTable(folder)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 { // before Linux 5.8
		return mountedByTable(folder)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

func mountedByTable(folder string) (bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(folder))
	return len(mounts) > 0, err
}
