package btrfs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// ErrNoKernelSupport is the error of a kernel without btrfs.
var ErrNoKernelSupport = errors.New("this kernel has no btrfs")

// ErrDamaged is the error of a loop file whose file system cannot be read.
var ErrDamaged = errors.New("the file system is damaged")

// ErrNotAStore is the error of a place that holds something else.
var ErrNotAStore = errors.New("not a Sidus store")

// classify turns an error of the kernel into one of the classes of store, and
// says what was being done to what.
func classify(what any, doing string, err error) error {
	if err == nil {
		return nil
	}
	var class error
	switch {
	case errors.Is(err, unix.ENOENT):
		class = store.ErrNotFound
	case errors.Is(err, unix.EEXIST):
		class = store.ErrExists
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ETXTBSY):
		class = store.ErrInUse
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		class = store.ErrNoSpace
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EROFS), errors.Is(err, unix.ENXIO):
		// EROFS: the kernel makes a btrfs read-only when it finds it damaged
		// or cannot write it.
		return fmt.Errorf("%v: %s: %w: %w (the kernel's log says more: dmesg)", what, doing, store.ErrUnavailable, err)
	case errors.Is(err, unix.ENOTTY):
		class = store.ErrUnsupported
	default:
		return fmt.Errorf("%v: %s: %w", what, doing, err)
	}
	return fmt.Errorf("%v: %s: %w (%w)", what, doing, class, err)
}

// classifyMount explains why a loop file could not be mounted.
func classifyMount(file string, err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w: load it (modprobe btrfs) or install a kernel that has it, or choose another backend", file, ErrNoKernelSupport)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return fmt.Errorf("%s: mounting is not permitted: run this as root, outside of containers that may not mount: %w", file, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN), errors.Is(err, unix.EIO):
		return fmt.Errorf("%s: %w: %w: the kernel's log says where (dmesg), `btrfs check --readonly %s` looks further; else restore the file from a backup", file, ErrDamaged, err, file)
	}
	return fmt.Errorf("%s: mount: %w", file, err)
}
