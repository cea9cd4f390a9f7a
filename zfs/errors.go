package zfs

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v3"

	"sidus/image/store"
	"sidus/image/tool"
)

// Errors beside those of package store.
var (
	// ErrNoKernelSupport is the error of a kernel without ZFS.
	ErrNoKernelSupport = errors.New("this kernel has no ZFS")
	// ErrNotAStore is the error of a place that holds something else.
	ErrNotAStore = errors.New("not a Sidus store")
	// ErrTimeout is the error of a command that did not end in time. It comes
	// with store.ErrUnavailable.
	ErrTimeout = errors.New("no answer in time")

	// errNeeded: other datasets depend on it.
	errNeeded = errors.New("others depend on it")
	// errNotImported: there is no pool of that name.
	errNotImported = errors.New("the pool is not imported")
)

// words are what zfs and zpool say (libzfs_util.c, libzfs_dataset.c), and what
// it means. The first that is found counts.
var words = []struct {
	text  string
	class error
}{
	{"modules are not loaded", ErrNoKernelSupport},
	{"modules cannot be auto-loaded", ErrNoKernelSupport},
	{"no such pool", errNotImported},
	{"I/O is currently suspended", store.ErrUnavailable},
	{"pool is read-only", store.ErrUnavailable},
	{"Read-only file system", store.ErrUnavailable},
	{"one or more devices is currently unavailable", store.ErrUnavailable},
	{"key is not loaded", store.ErrUnavailable},
	{"Key must be loaded", store.ErrUnavailable},
	{"key must be loaded", store.ErrUnavailable},
	{"encryption key not loaded", store.ErrUnavailable},
	{"parent does not exist", store.ErrUnavailable},
	{"I/O error", store.ErrUnavailable},
	{"has dependent clones", errNeeded},
	{"has children", errNeeded},
	{"dataset does not exist", store.ErrNotFound},
	{"could not find any snapshots", store.ErrNotFound},
	{"no such dataset", store.ErrNotFound},
	{"already exists", store.ErrExists},
	{"is busy", store.ErrInUse},
	{"Device busy", store.ErrInUse},
	{"out of space", store.ErrNoSpace},
	{"No space left", store.ErrNoSpace},
	{"quota exceeded", store.ErrNoSpace},
}

// quoted is the object that a message is about.
var quoted = regexp.MustCompile(`^(?:cannot|could not|can't) [a-z ]+ (?:property for )?'([^']+)'`)

// said is what a program wrote to standard error.
func said(err error) string {
	if failed := (*gozfs.Error)(nil); errors.As(err, &failed) {
		return strings.TrimSpace(failed.Stderr)
	}
	return tool.StderrOf(err)
}

// classify turns a program's failure into one of the classes of store. what is
// named in the message, and about is the dataset that it must be about: that
// some other one is missing or busy says nothing of this.
func classify(what any, about dataset, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, tool.ErrNotInstalled) || errors.Is(err, ErrTimeout) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%v: %w", what, err)
	}
	text := said(err)
	var class error
	for _, w := range words {
		if strings.Contains(text, w.text) {
			class = w.class
			break
		}
	}
	if m := quoted.FindStringSubmatch(text); m != nil && m[1] != string(about) {
		switch class {
		case store.ErrNotFound, store.ErrExists, store.ErrInUse, errNeeded:
			class = nil
		}
	}
	switch {
	case class == nil:
		return fmt.Errorf("%v: %w", what, err)
	case class == errNotImported:
		pool, _, _ := strings.Cut(string(about), "/")
		return fmt.Errorf("%v: %w: the pool %s is not imported (zpool import shows what there is, zpool import %s imports it): %w", what, store.ErrUnavailable, pool, pool, err)
	case class == ErrNoKernelSupport:
		return fmt.Errorf("%v: %w: load it (modprobe zfs) or install it (on Debian: zfs-dkms, zfsutils-linux), or choose another backend: %w", what, class, err)
	case strings.Contains(text, "currently suspended"):
		return fmt.Errorf("%v: %w: the pool's disks do not answer (zpool status -x says which; when they are back: zpool clear POOL): %w", what, class, err)
	case strings.Contains(text, "pool is read-only"), strings.Contains(text, "Read-only file system"):
		pool, _, _ := cutPool(string(about))
		return fmt.Errorf("%v: %w: the pool was imported read-only: what is there can be served; to change it: zpool export %s; zpool import %s: %w", what, class, pool, pool, err)
	case strings.Contains(text, "parent does not exist"):
		return fmt.Errorf("%v: %w: the store's dataset is gone (destroyed, or renamed by hand: zfs list): %w", what, class, err)
	}
	return fmt.Errorf("%v: %w: %w", what, class, err)
}
