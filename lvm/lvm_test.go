package lvm

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image/store"
)

func made(t *testing.T, s *Store, fs FileSystem) store.VolumeID {
	t.Helper()
	v := store.NewVolumeID()
	if err := s.createVolume(t.Context(), v, fs, MinVolumeSize); err != nil {
		t.Fatal(err)
	}
	return v
}

func taken(t *testing.T, s *Store, v store.VolumeID) store.SnapshotID {
	t.Helper()
	id := store.NewSnapshotID()
	if err := s.Snapshot(t.Context(), v, id); err != nil {
		t.Fatal(err)
	}
	return id
}

// TestFile makes a store in a loop file, with both file systems in it, takes
// it away, and opens it again.
func TestFile(t *testing.T) {
	o := fileOptions(t)
	o.DiskReserve = 1
	ctx := t.Context()
	s := open(t, o)
	if table := must(t, "dmsetup", "table", mapperName(s.group, s.pool)+"-tpool"); !strings.Contains(table, "error_if_no_space") || !strings.Contains(table, "skip_block_zeroing") {
		t.Errorf("the pool is not as it was asked for: %s", table)
	}
	files := map[store.SnapshotID]string{}
	for _, fs := range []FileSystem{Ext4, XFS} {
		v := made(t, s, fs)
		m, err := s.MountVolume(ctx, v)
		if err != nil {
			t.Fatal(err)
		}
		// Taken while a file is open and unlinked: what must not need recovery.
		file, err := os.Create(filepath.Join(m.Path(), "unlinked"))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.WriteFile(filepath.Join(m.Path(), "file"), []byte(fs), 0o644), os.Remove(file.Name())); err != nil {
			t.Fatal(err)
		}
		id := taken(t, s, v)
		files[id] = string(fs)
		if fs == Ext4 {
			name, _ := lvOfSnapshot(id)
			if err := s.activate(ctx, name); err != nil {
				t.Fatal(err)
			}
			if features := must(t, "dumpe2fs", "-h", s.node(name)); strings.Contains(features, "needs_recovery") {
				t.Error("the snapshot was not taken frozen")
			}
			if err := s.deactivate(ctx, name); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(file.Close(), m.Unmount(ctx)); err != nil {
			t.Fatal(err)
		}
		// The clone of a snapshot has the same UUID and is mounted beside it.
		w := store.NewVolumeID()
		if err := s.Clone(ctx, id, w); err != nil {
			t.Fatal(err)
		}
		one, err1 := s.MountSnapshot(ctx, id)
		two, err2 := s.MountVolume(ctx, w)
		three, err3 := s.MountVolume(ctx, v)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(one.Unmount(ctx), two.Unmount(ctx), three.Unmount(ctx)); err != nil {
			t.Fatal(err)
		}
		// It grows while it is in use.
		if m, err = s.MountVolume(ctx, w); err != nil {
			t.Fatal(err)
		}
		const large = 3 << 30
		if err := s.Resize(ctx, w, large); err != nil {
			t.Fatal(err)
		}
		if c, err := s.Capacity(ctx, w); err != nil || c.Size != large || c.Free < large*9/10 || c.Free > c.Size {
			t.Errorf("%s: %+v, %v", fs, c, err)
		}
		if err := s.Resize(ctx, w, MinVolumeSize); !errors.Is(err, store.ErrUnsupported) {
			t.Errorf("%s: it shrinks: %v", fs, err)
		}
		if err := m.Unmount(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Keep(ctx, "catalog", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	if err := s.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if loops := must(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"); strings.Contains(loops, o.File) {
		t.Errorf("the loop device is still there: %s", loops)
	}
	again, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	for id, want := range files {
		m, err := again.MountSnapshot(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(filepath.Join(m.Path(), "file")); string(text) != want {
			t.Errorf("the snapshot says %q, %v", text, err)
		}
		if err := m.Unmount(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	garbage := o
	garbage.File = filepath.Join(t.TempDir(), "garbage")
	if err := os.WriteFile(garbage.File, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(ctx, garbage); !errors.Is(err, ErrNotAStore) {
		t.Errorf("a file of zeros: %v", err)
	}
	if loops := must(t, "losetup", "--list", "--noheadings", "--output", "BACK-FILE"); strings.Contains(loops, garbage.File) {
		t.Errorf("a file that is no store keeps its loop device: %s", loops)
	}
}

// TestCutOff copies the file of a store whose volume is in use: what a reset
// leaves. The volume's journal is replayed before a snapshot is taken of it.
func TestCutOff(t *testing.T) {
	o := fileOptions(t)
	o.DiskReserve = 1
	ctx := t.Context()
	s := open(t, o)
	v := made(t, s, Ext4)
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(m.Path(), "file"), []byte("synced"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := syncFileSystem(m.Path()); err != nil {
		t.Fatal(err)
	}
	must(t, "cp", "--sparse=always", o.File, o.File+".copy")
	if err := errors.Join(m.Unmount(ctx), s.Detach(ctx), os.Rename(o.File+".copy", o.File)); err != nil {
		t.Fatal(err)
	}
	again, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	id := taken(t, again, v)
	if m, err = again.MountSnapshot(ctx, id); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(m.Path(), "file")); string(text) != "synced" {
		t.Errorf("the snapshot says %q, %v", text, err)
	}
	if err := errors.Join(m.Unmount(ctx), again.Close()); err != nil {
		t.Fatal(err)
	}
}

// TestWrongPlace opens what is no store.
func TestWrongPlace(t *testing.T) {
	o := poolOptions(t)
	ctx := t.Context()
	vg, pool, _ := splitThinPool(o.ThinPool)
	if _, err := Open(ctx, o); !errors.Is(err, ErrNotAStore) {
		t.Errorf("a pool that is no store: %v", err)
	}
	o.ThinPool = vg + "/none"
	if _, err := Init(ctx, o); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "lvcreate --type thin-pool") {
		t.Errorf("a volume group without such a pool: %v", err)
	}
	o.ThinPool = "sidusnone/" + pool
	if _, err := Init(ctx, o); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "vgs") {
		t.Errorf("no such volume group: %v", err)
	}
	must(t, "lvcreate", "--yes", "--size", "8m", "--name", "plain", vg)
	defer must(t, "lvremove", "--yes", vg+"/plain")
	o.ThinPool = vg + "/plain"
	if _, err := Init(ctx, o); !errors.Is(err, ErrNotAStore) {
		t.Errorf("a plain volume: %v", err)
	}
}

// TestImageIsNotInherited: the name of a received snapshot's blocks is not that of
// what is made from it, whose blocks become others.
func TestImageIsNotInherited(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	v := made(t, s, Ext4)
	id := taken(t, s, v)
	name, _ := lvOfSnapshot(id)
	must(t, "lvchange", "--addtag", tagImage+imageOne, s.full(name))
	w := store.NewVolumeID()
	if err := s.Clone(ctx, id, w); err != nil {
		t.Fatal(err)
	}
	again := taken(t, s, w)
	images := map[string]bool{}
	for _, id := range []store.SnapshotID{id, again} {
		name, _ := lvOfSnapshot(id)
		found, err := s.finished(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		images[imageOf(found)] = true
	}
	if !images[imageOne] || len(images) != 2 {
		t.Errorf("the images are %v", images)
	}
}

// TestMetadataSnapshot: a pool has one metadata snapshot. That of a process that
// was killed, or of a machine that was reset, is taken away by whoever needs it
// next and by check; that of another program is not.
func TestMetadataSnapshot(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	id := taken(t, s, made(t, s, Ext4))
	held := func() bool {
		t.Helper()
		status, err := s.poolStatus(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return status.held
	}
	left := func() []store.Remnant {
		t.Helper()
		left, err := s.Remnants(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return left
	}
	if err := s.messagePool(ctx, "reserve_metadata_snap"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Send(ctx, id, ""); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "release_metadata_snap") {
		t.Errorf("while another program reads the metadata: %v", err)
	}
	if l := left(); len(l) > 0 || !held() {
		t.Errorf("what another program uses is left over: %v", l)
	}
	if err := s.messagePool(ctx, "release_metadata_snap"); err != nil {
		t.Fatal(err)
	}
	// What a reset leaves: /run is empty, and the pool is as it was.
	cut := func() {
		t.Helper()
		if err := errors.Join(s.reserveMetadata(ctx), os.Remove(s.points.Path(metadataLock))); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	cut()
	r, err := s.Send(ctx, id, "")
	if err != nil {
		t.Fatalf("after a reset while it was read: %v", err)
	}
	if n, err := io.Copy(io.Discard, r); err != nil || n < 4096 {
		t.Errorf("%d bytes, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if l := left(); len(l) > 0 || held() {
		t.Errorf("after a stream there is left: %v", l)
	}
	cut()
	l := left()
	if len(l) != 1 || !strings.Contains(l[0].What, s.pool) {
		t.Fatalf("after a reset there is left: %v", l)
	}
	lock := s.metadataLock()
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	if now := left(); len(now) > 0 {
		t.Errorf("what is in use is left over: %v", now)
	}
	if err := errors.Join(s.Collect(ctx), lock.Close()); err != nil || !held() {
		t.Errorf("what is in use was mended: %v", err)
	}
	if err := s.Collect(ctx); err != nil || held() || len(left()) > 0 {
		t.Errorf("it is not mended: %v", err)
	}
}
