package backend

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// InnerReserve is what work leaves free in a store of that size, in bytes:
// snapshots, removals and the catalog's copy need some space even then.
func InnerReserve(size int64) int64 { return min(256<<20, size/32) }

// FreeOn tells how many bytes root may still write on the disk of a folder.
func FreeOn(folder string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return 0, fmt.Errorf("%s: statfs: %w", folder, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Human writes a number of bytes for a message.
func Human(n int64) string {
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
