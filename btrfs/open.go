package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/keptfiles"
)

// Store is a store on btrfs. It implements store.Store, store.Keeper and
// store.Waiter.
type Store struct {
	opts Options
	root string // where the store can be reached
	uuid string // of its file system

	mu     sync.Mutex
	dir    *os.File // root, open: it keeps the file system mounted
	mounts int      // mounts that were not given back
}

var (
	_ store.Store  = (*Store)(nil)
	_ store.Keeper = (*Store)(nil)
	_ store.Waiter = (*Store)(nil)
)

// Init makes a store, or opens the one that is there. A loop file that is
// missing is made. A folder must be empty or missing, and on a btrfs.
// ErrNotAStore if something else is there.
func Init(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	made, err := o.makePlace(ctx)
	if err != nil {
		return nil, err
	}
	s, err := o.open(ctx)
	if err == nil {
		if err = s.layOut(); err == nil {
			return s, nil
		}
		_ = s.Close()
	}
	if made { // nothing is in it yet
		if cleanErr := o.removePlace(context.WithoutCancel(ctx)); cleanErr != nil {
			o.Log.WithError(cleanErr).Warn("what was begun stays behind")
		}
	}
	return nil, err
}

// makePlace makes the loop file or the folder, and tells whether it did: it may
// be there already.
func (o Options) makePlace(ctx context.Context) (made bool, err error) {
	if o.File != "" {
		err = CreateLoop(ctx, o)
	} else if err = os.MkdirAll(filepath.Dir(o.Path), 0o700); err == nil {
		err = os.Mkdir(o.Path, 0o700)
	}
	if errors.Is(err, store.ErrExists) || errors.Is(err, os.ErrExist) {
		return false, nil
	}
	return err == nil, err
}

// removePlace takes back makePlace. A folder goes only if it is empty.
func (o Options) removePlace(ctx context.Context) error {
	if o.Path != "" {
		return os.Remove(o.Path)
	}
	if err := Detach(ctx, o); err != nil {
		return err
	}
	return os.Remove(o.File)
}

// Open opens a store that Init has made, and mounts its loop file if it is not
// mounted in this mount namespace. ErrNotFound if the loop file or the folder
// is missing, ErrNotAStore if it holds something else, ErrDamaged or
// ErrNoKernelSupport if it cannot be mounted.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	s, err := o.open(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.checkMarker(); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// open reaches the place of the store, whatever is in it.
func (o Options) open(ctx context.Context) (*Store, error) {
	s := &Store{opts: o, root: o.Path}
	if o.File != "" {
		var err error
		if s.root, err = o.attach(ctx); err != nil {
			return nil, err
		}
	}
	dir, err := os.Open(s.root)
	if err != nil {
		return nil, classify(o.place(), "open the store", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		_ = dir.Close()
		return nil, classify(o.place(), "statfs", err)
	}
	if int64(st.Type) != superMagic {
		_ = dir.Close()
		return nil, fmt.Errorf("%s: %w: it is not on a btrfs file system (findmnt -T %s says what it is on); name a folder that is, or let init make a loop file", o.place(), ErrNotAStore, s.root)
	}
	if s.uuid, err = uuidOf(dir); err != nil {
		_ = dir.Close()
		return nil, classify(o.place(), "ask for its UUID", err)
	}
	s.dir = dir
	return s, nil
}

// layOut makes the folders of a store, unless they are there.
func (s *Store) layOut() error {
	if err := s.checkMarker(); err == nil || !errors.Is(err, errNoMarker) {
		return err
	}
	entries, err := os.ReadDir(s.root)
	if err != nil {
		return classify(s.opts.place(), "read", err)
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case name == volumesDir, name == snapsDir, name == keptDir, strings.HasPrefix(name, newPrefix+markerName):
			// an Init that was cut
		default:
			return fmt.Errorf("%s: %w: it holds %q and is not empty", s.opts.place(), ErrNotAStore, entry.Name())
		}
	}
	if err := s.opts.step("lay out"); err != nil {
		return err
	}
	if err := os.Chmod(s.root, 0o700); err != nil {
		return classify(s.opts.place(), "chmod", err)
	}
	for _, name := range []string{volumesDir, snapsDir, keptDir} {
		folder := s.path(name)
		if err := os.Mkdir(folder, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return classify(s.opts.place(), "make "+name, err)
		}
		// What is made in it must not inherit a group or an ACL from above.
		if err := os.Chmod(folder, 0o700); err != nil {
			return classify(s.opts.place(), "make "+name, err)
		}
		for _, acl := range []string{"system.posix_acl_default", "system.posix_acl_access"} {
			if err := unix.Removexattr(folder, acl); err != nil && !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.ENOTSUP) {
				return classify(s.opts.place(), "make "+name, err)
			}
		}
	}
	if err := s.opts.step("mark"); err != nil {
		return err
	}
	if err := keptfiles.Write(s.root, markerName, strings.NewReader(markerText)); err != nil {
		return classify(s.opts.place(), "mark as a store", err)
	}
	return nil
}

var errNoMarker = fmt.Errorf("%w: it has no file %s", ErrNotAStore, markerName)

func (s *Store) checkMarker() error {
	text, err := os.ReadFile(s.path(markerName))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w; `sidus init` makes a store", s.opts.place(), errNoMarker)
	case err != nil:
		return classify(s.opts.place(), "read "+markerName, err)
	case string(text) == markerText:
		return nil
	case strings.HasPrefix(string(text), markerStart):
		return fmt.Errorf("%s: the store was made by a newer Sidus (%q): use that", s.opts.place(), strings.TrimSpace(string(text)))
	}
	return fmt.Errorf("%s: %w: its file %s says something else", s.opts.place(), ErrNotAStore, markerName)
}

// Root is the folder in which the store can be reached while it is open.
func (s *Store) Root() string { return s.root }

func (s *Store) path(parts ...string) string {
	return filepath.Join(append([]string{s.root}, parts...)...)
}

// Close implements store.Store. The store stays mounted: other processes may
// use it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounts > 0 {
		return fmt.Errorf("%s: %w: %d mounts were not given back", s.opts.place(), store.ErrInUse, s.mounts)
	}
	if s.dir == nil {
		return nil
	}
	err := s.dir.Close()
	s.dir = nil
	return err
}

// Detach closes the store and unmounts its loop file, see the function Detach.
// If another process has it open, the error is ErrInUse, and this store is
// closed nevertheless.
func (s *Store) Detach(ctx context.Context) error {
	if err := s.Close(); err != nil {
		return err
	}
	return Detach(ctx, s.opts)
}
