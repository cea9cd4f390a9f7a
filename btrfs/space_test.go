package btrfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// fill writes noise into a volume until ctx is done or writing fails.
func fill(ctx context.Context, path string) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	for ctx.Err() == nil {
		if _, err := io.CopyN(file, rand.Reader, 1<<20); err != nil {
			return err
		}
	}
	return file.Sync()
}

// write writes size bytes of noise.
func write(t *testing.T, path string, size int64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := io.CopyN(file, rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := file.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestFullStore fills a store: no work is begun, what was done can be kept, and
// destroying gives the space back.
func TestFullStore(t *testing.T) {
	o := loopOptions(t)
	o.Size = MinSize
	b := opened(t, o)
	s, ctx := b.Store.(*Store), t.Context()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	if err := errors.Join(s.CreateVolume(ctx, v), s.Snapshot(ctx, v, id)); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	guarded, stop := store.GuardSpace(ctx, s, time.Millisecond)
	err = fill(guarded, filepath.Join(m.Path(), "noise"))
	cause := context.Cause(guarded)
	stop()
	if err != nil && !errors.Is(err, unix.ENOSPC) || !errors.Is(cause, store.ErrNoSpace) {
		t.Fatalf("got %v, and the guard says %v", err, cause)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"CreateVolume": s.CreateVolume(ctx, store.NewVolumeID()), "Clone": s.Clone(ctx, id, store.NewVolumeID()),
	} {
		if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "the store is full") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	if u, err := s.Usage(ctx); err != nil || u.Available != 0 {
		t.Errorf("Usage: %+v, %v", u, err)
	}
	last := store.NewSnapshotID()
	if err := s.Snapshot(ctx, v, last); err != nil {
		t.Errorf("what was done cannot be kept: %v", err)
	}
	if err := s.Keep(ctx, "catalog", strings.NewReader(strings.Repeat("x", 1<<20))); err != nil {
		t.Errorf("the catalog cannot be kept: %v", err)
	}
	if err := errors.Join(s.DestroyVolume(ctx, v), s.DestroySnapshot(ctx, last), s.Wait(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := s.Clone(ctx, id, store.NewVolumeID()); err != nil {
		t.Errorf("after there is space again: %v", err)
	}
}

// TestFullDisk fills the disk beneath a loop file, from inside and from
// outside: the file never takes the last of it.
func TestFullDisk(t *testing.T) {
	o := loopOptions(t)
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=500m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, 0); err != nil {
			t.Error(err)
		}
	})
	o.File = filepath.Join(disk, "store.btrfs")
	o.Size = 4 << 30
	small := o
	if _, err := Init(t.Context(), small); !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "larger disk") {
		t.Fatalf("Init with the default reserve: got %v", err)
	}
	o.DiskReserve = 200 << 20
	b := opened(t, o)
	s, ctx := b.Store.(*Store), t.Context()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	if err := errors.Join(s.CreateVolume(ctx, v), s.Snapshot(ctx, v, id)); err != nil {
		t.Fatal(err)
	}
	// From inside: the guard stops the work in time.
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	guarded, stop := store.GuardSpace(ctx, s, time.Millisecond)
	err = fill(guarded, filepath.Join(m.Path(), "noise"))
	cause := context.Cause(guarded)
	stop()
	if err != nil || !errors.Is(cause, store.ErrNoSpace) {
		t.Fatalf("got %v, and the guard says %v", err, cause)
	}
	// The guard counts what is on its way to the disk as taken; when it is
	// written it may turn out to be less. And the disk gets back what was
	// written twice.
	for n := 0; ; n++ {
		if err := s.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		u, err := s.Usage(ctx)
		if err != nil || n > 50 {
			t.Fatalf("the disk does not become full: %+v, %v", u, err)
		}
		if u.Available <= 0 {
			break
		}
		write(t, filepath.Join(m.Path(), fmt.Sprint("more", n)), min(u.Available+1, 8<<20))
	}
	if free, err := backend.FreeOn(disk); err != nil || free < 50<<20 {
		t.Errorf("the disk has %d bytes free, %v", free, err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{
		"CreateVolume": s.CreateVolume(ctx, store.NewVolumeID()), "Clone": s.Clone(ctx, id, store.NewVolumeID()),
	} {
		if !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "the disk beneath") {
			t.Errorf("%s: got %v", what, err)
		}
	}
	// What is destroyed goes back to the disk.
	var before, after syscall.Stat_t
	if err := errors.Join(syscall.Stat(o.File, &before), s.DestroyVolume(ctx, v), s.Wait(ctx), syscall.Stat(o.File, &after)); err != nil {
		t.Fatal(err)
	}
	if back := (before.Blocks - after.Blocks) * 512; back < 50<<20 {
		t.Errorf("the disk got %d bytes back", back)
	}
	if err := s.Clone(ctx, id, v); err != nil {
		t.Errorf("after there is space again: %v", err)
	}
	// From outside.
	u, err := s.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(disk, "other")
	write(t, other, u.Available+1<<20)
	if err := s.CreateVolume(ctx, store.NewVolumeID()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := s.CreateVolume(ctx, store.NewVolumeID()); err != nil {
		t.Errorf("after there is space again: %v", err)
	}
}

// TestDiskGetsSpaceBack removes what filled the disk beneath a loop file. The
// disk has it back before work is refused, and when the store is detached.
func TestDiskGetsSpaceBack(t *testing.T) {
	o := loopOptions(t)
	b := opened(t, o)
	s, ctx := b.Store.(*Store), t.Context()
	v := store.NewVolumeID()
	if err := s.CreateVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	const size = 100 << 20
	writeAndRemove := func() {
		m, err := s.MountVolume(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		noise := filepath.Join(m.Path(), "noise")
		write(t, noise, size)
		if err := errors.Join(os.Remove(noise), m.Unmount(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	taken := func() int64 {
		var st syscall.Stat_t
		if err := syscall.Stat(o.File, &st); err != nil {
			t.Fatal(err)
		}
		return st.Blocks * 512
	}
	empty := taken()

	writeAndRemove()
	free, err := backend.FreeOn(filepath.Dir(o.File))
	if err != nil {
		t.Fatal(err)
	}
	s.opts.DiskReserve = free + size/2 // half of what was removed must come back
	if err := s.CreateVolume(ctx, store.NewVolumeID()); err != nil {
		t.Errorf("what was removed does not count: %v", err)
	}
	s.opts.DiskReserve = 0

	writeAndRemove()
	if err := s.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if kept := taken() - empty; kept > size/4 {
		t.Errorf("a loop file from which everything was removed keeps %d bytes", kept)
	}
}
