package zfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
)

// hostID changes the number by which this machine signs pools, until the test
// ends.
func hostID(t *testing.T, id string) {
	t.Helper()
	const path = "/sys/module/spl/parameters/spl_hostid"
	old, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(id), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile(path, old, 0o644) })
}

// TestPoolOfAnotherMachine opens a file whose pool another machine has used last
// and did not export: it may be in use there.
func TestPoolOfAnotherMachine(t *testing.T) {
	o := fileOptions(t)
	o.DiskReserve = 1
	hostID(t, "1111111")
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	taken := o
	taken.File += ".taken"
	must(t, "zpool", "sync", s.parent)
	must(t, "cp", "--sparse=always", o.File, taken.File)
	// Two files with one pool: the second is not taken for the first.
	if _, err := Open(t.Context(), taken); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), o.File) {
		t.Errorf("a copy of the file: %v", err)
	}
	if err := s.Detach(t.Context()); err != nil {
		t.Fatal(err)
	}
	hostID(t, "2222222")
	if _, err := Open(t.Context(), taken); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zpool import -f") {
		t.Errorf("the pool of another machine: %v", err)
	}
	if s, err = Open(t.Context(), o); err != nil { // that one was exported
		t.Fatal(err)
	}
	if err := s.Detach(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestSuspended takes the disk away from a pool: what it does ends in time, with
// what helps in the message, and works again when the disk is back.
func TestSuspended(t *testing.T) {
	requireZFS(t)
	dir, ctx := t.TempDir(), t.Context()
	const size = 256 << 20
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	loop := must(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { _ = command("losetup", "-d", loop) })
	name := "sidusgone-" + string(store.NewVolumeID())[:8]
	table := func(target string) string { return fmt.Sprintf("0 %d %s", size/512, target) }
	must(t, "dmsetup", "create", name, "--noudevsync", "--table", table("linear "+loop+" 0"))
	t.Cleanup(func() { _ = command("dmsetup", "remove", "--noudevsync", name) })
	change := func(target string) {
		t.Helper()
		must(t, "dmsetup", "reload", name, "--table", table(target))
		must(t, "dmsetup", "suspend", "--noflush", "--nolockfs", name)
		must(t, "dmsetup", "resume", "--noudevsync", name)
	}
	if _, err := os.Stat("/dev/mapper/" + name); err != nil {
		must(t, "dmsetup", "mknodes", name)
	}
	must(t, "zpool", "create", "-o", "cachefile=none", "-m", "none", name, "/dev/mapper/"+name)
	t.Cleanup(func() { _ = command("zpool", "destroy", "-f", name) })
	o := Options{Dataset: name + "/sidus", RunDir: filepath.Join(dir, "run"), Timeout: 10 * time.Second}
	s, err := Init(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	v, w := filled(t, s), filled(t, s)
	id := taken(t, s, v)
	dirty, err := s.MountVolume(ctx, w)
	if err != nil {
		t.Fatal(err)
	}

	change("error")
	// It shows when this is to be written back.
	if err := os.WriteFile(filepath.Join(dirty.Path(), "dirty"), []byte(strings.Repeat("d", 1<<20)), 0o644); err != nil {
		t.Fatal(err)
	}
	type call struct {
		name string
		do   func() error
	}
	keep := call{"Keep", func() error { return s.Keep(ctx, "catalog", strings.NewReader("kept")) }}
	try := func(calls ...call) {
		t.Helper()
		for _, call := range calls {
			begin := time.Now()
			err := call.do()
			if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zpool") {
				t.Errorf("%s in a pool that does not answer: %v", call.name, err)
			}
			if took := time.Since(begin); took > 45*time.Second {
				t.Errorf("%s took %v", call.name, took)
			}
		}
	}
	try(
		call{"Snapshot of what is mounted", func() error { return s.Snapshot(ctx, w, store.NewSnapshotID()) }},
		call{"Snapshot", func() error { return s.Snapshot(ctx, v, store.NewSnapshotID()) }},
		call{"MountVolume", func() error { _, err := s.MountVolume(ctx, v); return err }},
		keep,
		call{"Unmount", func() error { return dirty.Unmount(ctx) }},
		call{"CreateVolume", func() error { return s.CreateVolume(ctx, store.NewVolumeID()) }},
		call{"Open", func() error { _, err := Open(ctx, o); return err }},
	)
	change("linear " + loop + " 0")
	must(t, "zpool", "clear", name)
	if err := s.Snapshot(ctx, v, store.NewSnapshotID()); err != nil {
		t.Errorf("when the disk is back: %v", err)
	}
	if text, err := content(t, s, id, "file"); len(text) != 1<<20 || err != nil {
		t.Errorf("when the disk is back: %d bytes, %v", len(text), err)
	}
	if err := keep.do(); err != nil {
		t.Errorf("when the disk is back: %v", err)
	}
	// One that is slow without end has no such state.
	must(t, "dmsetup", "suspend", "--noflush", "--nolockfs", name)
	try(keep)
	must(t, "dmsetup", "resume", "--noudevsync", name)
	if err := keep.do(); err != nil {
		t.Errorf("when the disk goes on: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
