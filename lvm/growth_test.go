package lvm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sidus/image/store"
)

// TestNarrow: when a volume is too small.
func TestNarrow(t *testing.T) {
	const gib = 1 << 30
	for _, c := range []struct {
		room   room
		wanted int64
		narrow bool
	}{
		{room{size: 40 * gib, free: 9 * gib, files: 100, freeFiles: 90}, gib, false},
		{room{size: 40 * gib, free: 7 * gib, files: 100, freeFiles: 90}, gib, true},
		{room{size: 40 * gib, free: 39 * gib, files: 100, freeFiles: 10}, gib, true}, // an ext4 full of small files
		{room{size: 2 * gib, free: gib - 1, files: 100, freeFiles: 90}, gib, true},
		{room{size: 2 * gib, free: gib - 1, files: 100, freeFiles: 90}, gib / 4, false}, // the pool has no more
	} {
		if got := c.room.narrow(c.wanted); got != c.narrow {
			t.Errorf("%+v with %d wanted: %v", c.room, c.wanted, got)
		}
	}
}

// TestGrowth writes much more into volumes than they have room for: at the speed
// of memory what fits into what they have free, and then space is taken while they
// grow. Nobody meets a full file system.
func TestGrowth(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	for _, fs := range []FileSystem{Ext4, XFS} {
		v := made(t, s, fs)
		m, err := s.MountVolume(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		big := filepath.Join(m.Path(), "big")
		must(t, "dd", "if=/dev/zero", "of="+big, "bs=1M", "count=600")
		// With discard, its space goes back to the pool and to the disk beneath.
		must(t, "rm", big)
		must(t, "sync", "-f", m.Path())
		begin := time.Now()
		for n := range 40 { // 2 GiB, without a byte written
			// An emulated machine runs LVM's programs in seconds.
			time.Sleep(time.Until(begin.Add(time.Duration(n) * 400 * time.Millisecond)))
			if err := command("fallocate", "-l", "50M", filepath.Join(m.Path(), fmt.Sprint("file", n))); err != nil {
				t.Errorf("%s, file %d: %v", fs, n, err)
				break
			}
		}
		if err := m.Unmount(ctx); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Capacity(ctx, v); err != nil || c.Size < 2<<30 || c.Size > 8<<30 {
			t.Errorf("%s: %+v, %v", fs, c, err)
		}
		if err := s.DestroyVolume(ctx, v); err != nil {
			t.Fatal(err)
		}
	}
	if u, err := s.Usage(ctx); err != nil || u.Used > 1<<30 {
		t.Errorf("what was destroyed still takes space: %+v, %v", u, err)
	}
}

// TestManySmallFiles: an ext4 has room for so many files. It grows for them, too.
func TestManySmallFiles(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	v := made(t, s, Ext4)
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	before, err := roomIn(m.Path())
	if err != nil {
		t.Fatal(err)
	}
	for n := range before.files + 1000 {
		folder := filepath.Join(m.Path(), fmt.Sprint(n/1000))
		if n%1000 == 0 {
			if err := os.Mkdir(folder, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(folder, fmt.Sprint(n)), nil, 0o644); err != nil {
			t.Fatalf("file %d of a volume that had room for %d: %v", n, before.files, err)
		}
	}
	if err := errors.Join(m.Unmount(ctx), s.DestroyVolume(ctx, v)); err != nil {
		t.Fatal(err)
	}
}

// TestMakeRoom: who knows how much he will write has the room for it before.
func TestMakeRoom(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	v := made(t, s, XFS)
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	usage, err := s.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, bytes := range []int64{usage.Available * 3 / 4, 1 << 50} {
		if err := store.MakeRoom(ctx, s, v, bytes); err != nil {
			t.Fatal(err)
		}
		c, err := s.Capacity(ctx, v)
		if want := min(bytes, usage.Available); err != nil || c.Free < want*19/20 || c.Size > 2*want {
			t.Errorf("room for %d bytes: %+v, %v", bytes, c, err)
		}
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestGrowthIsFree: what is larger takes no space in the pool, inode tables of an
// ext4 included.
func TestGrowthIsFree(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	for _, fs := range []FileSystem{Ext4, XFS} {
		v := made(t, s, fs)
		m, err := s.MountVolume(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		before, err1 := s.Usage(ctx)
		err2 := s.Resize(ctx, v, 16<<30)
		after, err3 := s.Usage(ctx)
		if err := errors.Join(err1, err2, err3, m.Unmount(ctx)); err != nil {
			t.Fatal(err)
		}
		if took := after.Used - before.Used; took > 24<<20 {
			t.Errorf("%s: 16 GiB that nobody has written take %d MiB", fs, took>>20)
		}
	}
}
