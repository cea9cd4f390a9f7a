package btrfs

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

func TestClassify(t *testing.T) {
	for errno, want := range map[unix.Errno]error{
		unix.ENOENT: store.ErrNotFound, unix.EEXIST: store.ErrExists, unix.EBUSY: store.ErrInUse,
		unix.ENOSPC: store.ErrNoSpace, unix.EDQUOT: store.ErrNoSpace,
		unix.EIO: store.ErrUnavailable, unix.EROFS: store.ErrUnavailable, unix.EUCLEAN: store.ErrUnavailable,
		unix.ENOTTY: store.ErrUnsupported, unix.EPERM: os.ErrPermission,
	} {
		err := classify("volume x", "create", &os.PathError{Op: "ioctl", Path: "/p", Err: errno})
		if !errors.Is(err, want) || !errors.Is(err, errno) || !strings.HasPrefix(err.Error(), "volume x: create: ") {
			t.Errorf("%v: got %v", errno, err)
		}
	}
	if err := classify("volume x", "create", nil); err != nil {
		t.Errorf("nothing happened: %v", err)
	}
}

func TestClassifyMount(t *testing.T) {
	for errno, c := range map[unix.Errno]struct {
		want error
		says string
	}{
		unix.ENODEV:  {ErrNoKernelSupport, "modprobe btrfs"},
		unix.EPERM:   {os.ErrPermission, "as root"},
		unix.EINVAL:  {ErrDamaged, "btrfs check"},
		unix.EUCLEAN: {ErrDamaged, "backup"},
		unix.ENOMEM:  {unix.ENOMEM, "mount"},
	} {
		err := classifyMount("/s/f.btrfs", errno)
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "/s/f.btrfs: ") {
			t.Errorf("%v: got %v", errno, err)
		}
	}
}
