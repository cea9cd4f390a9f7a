package frontend

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"sidus/boot/protocol"
	"sidus/image"
	"sidus/image/store"
)

// bootFiles opens kernels and initrds of snapshots. It implements
// pxe.BootFiles.
type bootFiles struct {
	manager *image.Manager

	mu      sync.Mutex
	entries map[store.SnapshotID]protocol.BootEntry // a snapshot never changes
}

func newBootFiles(manager *image.Manager) *bootFiles {
	return &bootFiles{manager: manager, entries: map[store.SnapshotID]protocol.BootEntry{}}
}

// entry returns the boot entry of a snapshot.
func (b *bootFiles) entry(ctx context.Context, id store.SnapshotID) (entry protocol.BootEntry, err error) {
	b.mu.Lock()
	entry, known := b.entries[id]
	b.mu.Unlock()
	if known {
		return entry, nil
	}
	mount, err := b.manager.MountSnapshot(ctx, id)
	if err != nil {
		return entry, err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	if entry, err = protocol.ReadBootEntry(mount.Path()); err != nil {
		return entry, err
	}
	b.mu.Lock()
	b.entries[id] = entry
	b.mu.Unlock()
	return entry, nil
}

// OpenBootFile opens the kernel or the initrd of a snapshot. The snapshot
// stays mounted until the file is closed.
func (b *bootFiles) OpenBootFile(ctx context.Context, id store.SnapshotID, which protocol.BootFile) (io.ReadSeekCloser, error) {
	entry, err := b.entry(ctx, id)
	if err != nil {
		return nil, missing(err)
	}
	// The entry may be older than the snapshot's deletion.
	mount, err := b.manager.MountSnapshot(ctx, id)
	if err != nil {
		return nil, missing(err)
	}
	file, err := entry.Open(mount.Path(), which)
	if err != nil {
		return nil, errors.Join(err, mount.Unmount(context.WithoutCancel(ctx)))
	}
	return &bootFile{File: file, mount: mount}, nil
}

// missing makes fs.ErrNotExist of the errors that say that there is no such
// file, now and for ever.
func missing(err error) error {
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, protocol.ErrNoBootEntry) {
		return fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return err
}

type bootFile struct {
	*os.File
	mount store.Mount
}

func (f *bootFile) Close() error {
	return errors.Join(f.File.Close(), f.mount.Unmount(context.Background()))
}
