package catalog

import (
	"errors"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"sidus/image/store"
)

// explain adds to an error of SQLite what it means: that the disk is full
// (the error then wraps store.ErrNoSpace), or that the file is damaged.
func explain(path string, err error) error {
	var problem *sqlite.Error
	if !errors.As(err, &problem) {
		return err
	}
	const primary = 0xff // the rest of a code says where it happened
	switch problem.Code() & primary {
	case sqlite3.SQLITE_FULL:
	case sqlite3.SQLITE_IOERR:
		// SQLite does not say ENOSPC of its shared memory, nor of a sync.
		if !full(filepath.Dir(path)) {
			return err
		}
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return fmt.Errorf("%w: the catalog is damaged: bring it back from a backup, or from the copy that the store keeps", err)
	default:
		return err
	}
	return fmt.Errorf("%w: the disk of %s is full: free some space there", store.ErrNoSpace, filepath.Dir(path))
}

// nearlyFull is what SQLite may need for its log and its shared memory, in
// bytes.
const nearlyFull = 1 << 20

func full(folder string) bool {
	var st unix.Statfs_t
	return unix.Statfs(folder, &st) == nil && int64(st.Bavail)*st.Bsize < nearlyFull
}
