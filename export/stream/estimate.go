package stream

import (
	"context"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// entrySize is about what an entry of a tree takes beside its content: a pax
// header, and that of the file.
const entrySize = 1024

// Estimate guesses the length of the payload of a snapshot that is mounted at
// root, in bytes: for progress bars, and cheap in comparison with reading it. If
// base is not empty, it is where the base of a difference is mounted; of what has
// changed in a file all of the file counts. What cannot be read counts nothing.
func Estimate(ctx context.Context, root, base string) (size int64) {
	_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var now, old unix.Stat_t
		if err != nil || unix.Lstat(path, &now) != nil {
			return nil
		}
		if base != "" {
			// A file of the same size and time is taken for the same one.
			name, err := filepath.Rel(root, path)
			if err == nil && unix.Lstat(filepath.Join(base, name), &old) == nil &&
				now.Mode == old.Mode && now.Size == old.Size && now.Mtim == old.Mtim {
				return nil
			}
		}
		size += entrySize
		if now.Mode&unix.S_IFMT == unix.S_IFREG {
			size += now.Size
		}
		return nil
	})
	return size
}
