package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// CreateLoop makes a sparse file of size bytes with an empty btrfs in it.
// Nothing is there under the name until all is done. ErrExists if there is
// something already, ErrNoSpace if the disk beneath is too full to begin.
func CreateLoop(ctx context.Context, o Options) (err error) {
	if o, err = o.normal(); err != nil {
		return err
	}
	undo := backend.Undo{Log: o.Log}
	defer func() { undo.Unwind(&err) }()
	// A mkfs.btrfs of a process that was killed may still run, and writes into a
	// file without a name.
	file, err := backend.BeginFile(backend.FileOptions{Path: o.File, Size: o.Size, MinSize: MinSize, DiskReserve: o.DiskReserve, Step: o.step}, &undo)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := o.step("make file system"); err != nil {
		return err
	}
	if err := o.makeFileSystem(ctx, file.Path()); err != nil {
		return fmt.Errorf("%s: %w", o.File, err)
	}
	if err := o.step("name file"); err != nil {
		return err
	}
	return file.Name()
}

// attach mounts the loop file, unless it is mounted already, and returns where.
func (o Options) attach(ctx context.Context) (root string, err error) {
	unlock, err := o.lockFile(ctx)
	if err != nil {
		return "", err
	}
	defer unlock()
	super, err := o.inspect()
	if err != nil {
		return "", err
	}
	root = filepath.Join(o.RunDir, super.uuid)
	devices, err := o.loopsOf(ctx, o.File)
	if err != nil {
		return "", err
	}
	if len(devices) > 1 {
		return "", fmt.Errorf("%s: %w: it has %d loop devices (%s), which would destroy it: unmount and detach all but one (losetup -d)", o.File, store.ErrInUse, len(devices), strings.Join(devices, ", "))
	}
	source, mounted, err := mountedFrom(root)
	if err != nil {
		return "", err
	}
	if mounted {
		if !slices.Contains(devices, source) {
			return "", fmt.Errorf("%s: %w: its file system has the UUID of what is mounted at %s from %s: is the file a copy? (btrfstune -m gives a copy a UUID of its own)", o.File, store.ErrInUse, root, source)
		}
		return root, nil
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return "", err
	}
	// A device that was found may go away with its last mount elsewhere before
	// it is mounted here: then a new one is made.
	for attempt := 0; ; attempt++ {
		if len(devices) == 0 {
			if err := o.step("attach loop device"); err != nil {
				return "", err
			}
			device, err := o.attachLoop(ctx, o.File)
			if err != nil {
				return "", err
			}
			devices = []string{device}
		}
		err := o.step("mount")
		if err == nil {
			err = unix.Mount(devices[0], root, "btrfs", unix.MS_NOATIME, mountOptions)
		}
		// Mounted: the device goes with its last mount. Not mounted: it goes now.
		releaseErr := o.releaseLoop(context.WithoutCancel(ctx), devices[0])
		if err == nil {
			if releaseErr != nil {
				o.Log.WithError(releaseErr).Warn("the loop device will stay after the store is unmounted")
			}
			return root, nil
		}
		if attempt == 0 && (errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT)) {
			devices = nil
			continue
		}
		_ = os.Remove(root)
		return "", classifyMount(o.File, err)
	}
}

// inspect checks the loop file before the kernel gets it.
func (o Options) inspect() (superblock, error) {
	file, err := os.Open(o.File)
	if errors.Is(err, os.ErrNotExist) {
		return superblock{}, fmt.Errorf("%s: the store's loop file %w: bring it back from a backup, or make a new store (sidus init)", o.File, store.ErrNotFound)
	} else if err != nil {
		return superblock{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return superblock{}, err
	}
	if !info.Mode().IsRegular() {
		return superblock{}, fmt.Errorf("%s: %w: it is no plain file", o.File, ErrNotAStore)
	}
	super, err := readSuperblock(file)
	if err != nil {
		return superblock{}, fmt.Errorf("%s: %w: %w: `btrfs rescue super-recover` may mend it; else restore the file from a backup", o.File, ErrDamaged, err)
	}
	if info.Size() < super.size {
		return superblock{}, fmt.Errorf("%s: %w: it was cut to %s, its file system has %s: restore it from a backup", o.File, ErrDamaged, backend.Human(info.Size()), backend.Human(super.size))
	}
	return super, nil
}

// lockFile takes the lock under which a loop file is attached and detached. It
// is on the file itself, so that it holds in every mount namespace.
func (o Options) lockFile(ctx context.Context) (unlock func(), err error) {
	lock := flock.New(o.File, flock.SetFlag(os.O_RDONLY))
	if _, err := lock.TryLockContext(ctx, 20*time.Millisecond); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			_, err = o.inspect() // says what to do
		}
		return nil, err
	}
	return func() { _ = lock.Unlock() }, nil
}

// Detach unmounts the loop file and frees its loop device. The disk beneath has
// back what is free in the store then. Nothing happens if it is not mounted
// here, or if the store is a folder. ErrInUse if a process has the store open.
func Detach(ctx context.Context, o Options) error {
	o, err := o.normal()
	if err != nil || o.Path != "" {
		return err
	}
	unlock, err := o.lockFile(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	super, err := o.inspect()
	if err != nil {
		return err
	}
	devices, err := o.loopsOf(ctx, o.File)
	if err != nil {
		return err
	}
	root := filepath.Join(o.RunDir, super.uuid)
	source, mounted, err := mountedFrom(root)
	if err != nil {
		return err
	}
	if mounted && slices.Contains(devices, source) {
		o.tryGiveBack(root)
		if err := unix.Unmount(root, 0); err != nil {
			if errors.Is(err, unix.EBUSY) {
				return fmt.Errorf("%s: %w: a process has the store open, or works in it (fuser -vm %s names it)", o.File, store.ErrInUse, root)
			}
			return classify(root, "unmount", err)
		}
		if err := os.Remove(root); err != nil {
			o.Log.WithError(err).Debug("the mount point stays")
		}
	}
	// A device that is left over was attached and never mounted, or is mounted
	// in another namespace and goes with that mount.
	if devices, err = o.loopsOf(ctx, o.File); err != nil {
		return err
	}
	for _, device := range devices {
		if err := o.releaseLoop(ctx, device); err != nil && !errors.Is(err, os.ErrNotExist) {
			if left, listErr := o.loopsOf(ctx, o.File); listErr == nil && !slices.Contains(left, device) {
				continue
			}
			return err
		}
	}
	return nil
}
