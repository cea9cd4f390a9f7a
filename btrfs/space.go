package btrfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// Usage implements store.Store. Available is what the file system has or what
// the disk beneath the loop file has, whichever is less, without a reserve and
// what is still to be written.
func (s *Store) Usage(context.Context) (store.Usage, error) {
	u, _, err := s.usage()
	return u, err
}

// usage also names what limits Available.
func (s *Store) usage() (u store.Usage, limit string, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(s.root, &st); err != nil {
		return u, "", classify(s.opts.place(), "statfs", err)
	}
	block := st.Bsize
	u.Size = int64(st.Blocks) * block
	u.Used = u.Size - int64(st.Bfree)*block
	reserve, pending := backend.InnerReserve(u.Size), s.pending()
	u.Available = int64(st.Bavail)*block - reserve - pending
	limit = fmt.Sprintf("the store is full: %s of %s are used and %s stay free; destroy what is not needed (sidus gc), or make the store larger", backend.Human(u.Used), backend.Human(u.Size), backend.Human(reserve))
	if s.opts.File != "" {
		free, err := backend.FreeOn(filepath.Dir(s.opts.File))
		if err != nil {
			return u, "", err
		}
		if under := free - s.opts.DiskReserve - pending; under < u.Available {
			u.Available = under
			limit = fmt.Sprintf("the disk beneath %s is full: it has %s free and %s of it stay free; free some space there", s.opts.File, backend.Human(free), backend.Human(s.opts.DiskReserve))
		}
	}
	u.Available = max(0, u.Available)
	return u, limit, nil
}

// refuseFull returns ErrNoSpace if there is no space to begin work. The disk
// beneath a loop file is given back what it has not had yet.
func (s *Store) refuseFull(_ context.Context, i item) error {
	u, limit, err := s.usage()
	if err == nil && u.Available <= 0 && s.opts.File != "" {
		s.opts.tryGiveBack(s.root)
		u, limit, err = s.usage()
	}
	if err != nil {
		return err
	}
	if u.Available <= 0 {
		return fmt.Errorf("%v: %w: %s", i, store.ErrNoSpace, limit)
	}
	return nil
}

// tryGiveBack is giveBack where it helps and is not needed.
func (o Options) tryGiveBack(root string) {
	if err := giveBack(root); err != nil {
		o.Log.WithError(err).Debug("the disk beneath the store does not get back what is free in it")
	}
}

// giveBack makes holes in a loop file of what is free in its file system, which
// is mounted at root. By itself the kernel takes minutes for that, and what it
// has not done when the file system is unmounted, or the power fails, it never
// does (discard=async in btrfs(5)).
func giveBack(root string) error {
	dir, err := os.Open(root)
	if err != nil {
		return err
	}
	defer dir.Close()
	// What was freed is free for the device after the next commit.
	if err := commit(dir); err != nil {
		return err
	}
	if err := trim(dir); !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	return nil
}

// pending tells how many bytes were written into the file system and take no
// space in it yet, since the kernel holds them back. Zero if the kernel does
// not tell (/sys/fs/btrfs is missing in some containers).
func (s *Store) pending() int64 {
	var sum int64
	for _, name := range []string{"bytes_may_use", "bytes_reserved"} {
		text, err := os.ReadFile(filepath.Join("/sys/fs/btrfs", s.uuid, "allocation/data", name))
		if err != nil {
			continue
		}
		if n, err := strconv.ParseInt(string(bytes.TrimSpace(text)), 10, 64); err == nil {
			sum += n
		}
	}
	return sum
}
