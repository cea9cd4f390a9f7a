package storebench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/lvm"
	"sidus/tests/labdisk"
	"sidus/zfs"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestInLab measures ZFS and LVM in the virtual machine of tests/labdisk. It
// fails if a benchmark cannot be run, and shows what was measured.
func TestInLab(t *testing.T) {
	if os.Getenv("SIDUS_LAB_TESTS") == "" {
		t.Skip("SKIPPED: the stores of ZFS and LVM were NOT measured: `make bench` does it in a machine of its own")
	}
	suite := func(kind string) labdisk.Suite {
		return labdisk.Suite{
			Package: "sidus/tests/storebench", Args: []string{"-test.run=^$", "-test.bench=.", "-test.benchtime=3x"}, Timeout: 20 * time.Minute,
			Env: []string{"SIDUS_BENCH_STORE=" + kind, "DM_DISABLE_UDEV=1"},
		}
	}
	labdisk.Run(t, suite("zfs"), suite("lvm"))
}

// bench is a store with what only some can do.
type bench interface {
	store.Store
	store.NativeSender
	Detach(context.Context) error
}

// kind is that of the store.
func kind() string {
	if k := os.Getenv("SIDUS_BENCH_STORE"); k != "" {
		return k
	}
	return "btrfs"
}

// newStore makes an embedded store that goes away with the benchmark.
func newStore(b *testing.B) bench {
	b.Helper()
	storetest.RequireRoot(b)
	dir := b.TempDir()
	file, run := filepath.Join(dir, "store"), filepath.Join(dir, "run")
	var s bench
	var err error
	switch kind() {
	case "btrfs":
		s, err = btrfs.Init(b.Context(), btrfs.Options{File: file, RunDir: run, Size: 2 << 30})
	case "zfs":
		s, err = zfs.Init(b.Context(), zfs.Options{File: file, RunDir: run, Size: 1 << 30, DiskReserve: 1})
	case "lvm":
		s, err = lvm.Init(b.Context(), lvm.Options{File: file, RunDir: run, Size: 1 << 30, VolumeSize: 600 << 20, DiskReserve: 1})
	default:
		b.Fatalf("SIDUS_BENCH_STORE=%s: it is btrfs, zfs or lvm", kind())
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := s.Detach(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return s
}

// snapshotOf makes a snapshot of a new volume that fill has filled.
func snapshotOf(b *testing.B, s store.Store, fill func(root string) error) store.SnapshotID {
	b.Helper()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	if err := s.CreateVolume(b.Context(), v); err != nil {
		b.Fatal(err)
	}
	m, err := s.MountVolume(b.Context(), v)
	if err != nil {
		b.Fatal(err)
	}
	if err := errors.Join(fill(m.Path()), m.Unmount(b.Context()), s.Snapshot(b.Context(), v, id), s.DestroyVolume(b.Context(), v)); err != nil {
		b.Fatal(err)
	}
	return id
}

func mountOf(b *testing.B, s store.Store, id store.SnapshotID) string {
	b.Helper()
	m, err := s.MountSnapshot(b.Context(), id)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := m.Unmount(context.Background()); err != nil {
			b.Error(err)
		}
	})
	return m.Path()
}
