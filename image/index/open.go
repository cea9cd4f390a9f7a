package index

import (
	"bytes"
	"errors"

	"golang.org/x/sys/unix"
)

// resolve keeps a path inside the tree: no symbolic link, no mount point and
// no ".." is followed. The tree is not ours, and an index could be damaged.
const resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV

// resolveCached is RESOLVE_CACHED of linux/openat2.h (Linux 5.12).
const resolveCached = 0x20

// maxStep is the longest path that is given to the kernel in one piece; it
// accepts less than PATH_MAX (4096) bytes.
const maxStep = 4000

// OpenAt opens path, relative to the directory root, with the flags of
// open(2). Paths may be longer than PATH_MAX. With cachedOnly set it fails
// with EAGAIN instead of waiting for a disk. The caller closes what it gets.
// Errors are system error numbers; EXDEV means that the path leaves the file
// system.
func OpenAt(root int, path []byte, flags int, cachedOnly bool) (int, error) {
	if len(path) == 0 {
		path = []byte(".")
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	if cachedOnly {
		how.Resolve |= resolveCached
	}
	if len(path) <= maxStep {
		return openat2(root, string(path), &how)
	}
	dir := root
	for len(path) > maxStep {
		cut := bytes.LastIndexByte(path[:maxStep], '/')
		if cut <= 0 {
			return -1, closeStep(dir, root, unix.ENAMETOOLONG)
		}
		step := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: how.Resolve}
		next, err := openat2(dir, string(path[:cut]), &step)
		if err = closeStep(dir, root, err); err != nil {
			return -1, err
		}
		dir, path = next, path[cut+1:]
	}
	fd, err := openat2(dir, string(path), &how)
	return fd, closeStep(dir, root, err)
}

// closeStep closes a directory opened on the way, and passes err on.
func closeStep(dir, root int, err error) error {
	if dir != root {
		_ = unix.Close(dir)
	}
	return err
}

func openat2(dir int, path string, how *unix.OpenHow) (int, error) {
	for {
		fd, err := unix.Openat2(dir, path, how)
		if !errors.Is(err, unix.EINTR) {
			if err != nil {
				return -1, err
			}
			return fd, nil
		}
	}
}
