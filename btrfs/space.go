package btrfs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// innerReserve is what stays free in the file system, in bytes: snapshots,
// removals and the catalog's copy need some space even then.
func innerReserve(size int64) int64 { return min(256<<20, size/32) }

// Usage implements store.Store. Available is what the file system has, less a
// reserve, or what the disk beneath the loop file has, less a reserve and what
// is still to be written: whichever is less.
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
	reserve := innerReserve(u.Size)
	u.Available = int64(st.Bavail)*block - reserve
	limit = fmt.Sprintf("the store is full: %s of %s are used and %s stay free; destroy what is not needed (sidus gc), or make the store larger", human(u.Used), human(u.Size), human(reserve))
	if s.opts.File != "" {
		free, err := freeOn(filepath.Dir(s.opts.File))
		if err != nil {
			return u, "", err
		}
		if under := free - s.opts.DiskReserve - pendingWrites(); under < u.Available {
			u.Available = under
			limit = fmt.Sprintf("the disk beneath %s is full: it has %s free and %s of it stay free; free some space there", s.opts.File, human(free), human(s.opts.DiskReserve))
		}
	}
	u.Available = max(0, u.Available)
	return u, limit, nil
}

// refuseFull returns ErrNoSpace if there is no space to begin work.
func (s *Store) refuseFull(_ context.Context, i item) error {
	u, limit, err := s.usage()
	if err != nil {
		return err
	}
	if u.Available <= 0 {
		return fmt.Errorf("%v: %w: %s", i, store.ErrNoSpace, limit)
	}
	return nil
}

// freeOn tells how many bytes root may still write on the disk of a folder.
func freeOn(folder string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return 0, fmt.Errorf("%s: statfs: %w", folder, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// pendingWrites tells how many bytes the kernel has still to write, to any
// disk: what lies in the loop file's file system takes space on the disk
// beneath only when it is written. Zero if it cannot be told.
func pendingWrites() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	return parsePending(text)
}

// parsePending adds up Dirty and Writeback of /proc/meminfo, in bytes.
func parsePending(text []byte) int64 {
	var sum int64
	for line := range bytes.Lines(text) {
		fields := bytes.Fields(line)
		if len(fields) == 3 && (string(fields[0]) == "Dirty:" || string(fields[0]) == "Writeback:") {
			n, _ := strconv.ParseInt(string(fields[1]), 10, 64)
			sum += n << 10
		}
	}
	return sum
}

// human writes a number of bytes for a message.
func human(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, 0
	for value >= unit && prefix < 4 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[prefix])
}
