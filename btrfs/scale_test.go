package btrfs

import (
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

// TestBranchIsConstant branches a tree of 200,000 files (5,000 with -short): in
// less than a second, for less than 1 MB. Making the files is what takes long:
// 5 s and more.
func TestBranchIsConstant(t *testing.T) {
	files := 200_000
	if testing.Short() {
		files = 5_000
	}
	s, ctx := newBackend(t).Store.(*Store), t.Context()
	v, id, w := store.NewVolumeID(), store.NewSnapshotID(), store.NewVolumeID()
	if err := s.CreateVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := storetest.Many("files", files)(m.Path()); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d files were made in %v", files, time.Since(begin))
	used := func() int64 {
		t.Helper()
		if out, err := exec.Command("btrfs", "filesystem", "sync", s.Root()).CombinedOutput(); err != nil {
			t.Fatal(err, string(out))
		}
		u, err := s.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return u.Used
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"snapshot", func() error { return s.Snapshot(ctx, v, id) }},
		{"branch", func() error { return s.Clone(ctx, id, w) }},
	} {
		before := used()
		begin := time.Now()
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		took, grown := time.Since(begin), used()-before
		t.Logf("%s of %d files: %v, %d bytes", step.name, files, took, grown)
		if took > time.Second || grown > 1_000_000 {
			t.Errorf("%s of %d files: it took %v and %d bytes", step.name, files, took, grown)
		}
	}
	out, err := exec.Command("find", s.path(volumesDir, string(w)), "-type", "f", "-printf", ".").Output()
	if err != nil || len(out) != files {
		t.Errorf("find counts %d files in the branch, %v", len(out), err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	if err := s.DestroyVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	// No limit: the kernel drops its cached inodes of the subvolume first.
	t.Logf("destroying: %v", time.Since(begin))
}

// TestSnapshotIsDurable copies the loop file the moment a snapshot has been
// taken, as if the power had gone then, and looks into the copy.
func TestSnapshotIsDurable(t *testing.T) {
	o := loopOptions(t)
	s, ctx := opened(t, o).Store.(*Store), t.Context()
	v, id, w := store.NewVolumeID(), store.NewSnapshotID(), store.NewVolumeID()
	if err := s.CreateVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := storetest.Apply(storetest.AllMetadata(), storetest.Many("files", 2000))(m.Path()); err != nil {
		t.Fatal(err)
	}
	want, err := storetest.Describe(ctx, m.Path(), storetest.AllFields)
	if err != nil {
		t.Fatal(err)
	}
	look := func(after string, at ...string) {
		t.Helper()
		crashed := Options{File: filepath.Join(t.TempDir(), "copy.btrfs"), RunDir: o.RunDir}
		// The device writes directly, so that the file holds what has reached
		// the disk. The copy gets a UUID of its own: both are mounted at once.
		for _, command := range [][]string{{"cp", "--sparse=always", o.File, crashed.File}, {"btrfstune", "-f", "-m", crashed.File}} {
			if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", command, err, out)
			}
		}
		detachAtEnd(t, crashed)
		c, err := Open(ctx, crashed)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if c.Root() == s.Root() {
			t.Fatal("the copy is not looked at")
		}
		got, err := storetest.Describe(ctx, filepath.Join(append([]string{c.Root()}, at...)...), storetest.AllFields)
		if err != nil {
			t.Fatal(err)
		}
		if diff := storetest.Diff(want, got); diff != "" {
			t.Errorf("after %s and a crash:\n%s", after, diff)
		}
	}
	if err := s.Snapshot(ctx, v, id); err != nil {
		t.Fatal(err)
	}
	look("Snapshot", snapsDir, string(id))
	if err := s.Clone(ctx, id, w); err != nil {
		t.Fatal(err)
	}
	look("Clone", volumesDir, string(w))
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
}
