package lvm

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
)

// TestHangingLVM has a program that says nothing: whoever opens a store is told
// in time, and what to look at.
func TestHangingLVM(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lvm"), []byte("#!/bin/sh\nexec sleep 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	begin := time.Now()
	_, err := Open(t.Context(), Options{ThinPool: "vg/pool", RunDir: t.TempDir(), Timeout: 50 * time.Millisecond})
	if errors.Is(err, os.ErrPermission) {
		t.Skip("SKIPPED: this test needs root")
	}
	if !errors.Is(err, ErrTimeout) || !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "dmsetup info") {
		t.Errorf("got %v", err)
	}
	if took := time.Since(begin); took > 2500*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}

// TestRead: a program that fails is told by its own words, and one whose words
// cannot be read by those of who reads.
func TestRead(t *testing.T) {
	o := Options{Timeout: time.Minute}
	bad := errors.New("what is this")
	all := func(r io.Reader) error { _, err := io.ReadAll(r); return err }
	if err := o.read(t.Context(), all, "sh", "-c", "echo half; echo broken >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "broken") {
		t.Errorf("a program that fails: %v", err)
	}
	// It would write for ever.
	if err := o.read(t.Context(), func(io.Reader) error { return bad }, "yes"); !errors.Is(err, bad) {
		t.Errorf("words that cannot be read: %v", err)
	}
	if out, err := o.output(t.Context(), "echo", "word"); string(out) != "word\n" || err != nil {
		t.Errorf("%q, %v", out, err)
	}
}

// TestSecondStore: a volume group has room for one store. A second is refused
// before anything is touched, with what to do; so is one whose making fails.
func TestSecondStore(t *testing.T) {
	requireThin(t)
	ctx := t.Context()
	g := &group{metadata: "1m"}
	t.Cleanup(func() {
		if err := g.destroy(); err != nil {
			t.Error(err)
		}
	})
	vg := g.get(t)
	pool := func(name string) Options {
		must(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "1g", "--chunksize", "64k", "--poolmetadatasize", "8m", "--name", name, vg)
		return Options{ThinPool: vg + "/" + name, RunDir: filepath.Join(t.TempDir(), "run"), VolumeSize: 1 << 30}
	}
	first := pool("first")
	tags := func(o Options) string { return must(t, "lvs", "--noheadings", "-o", "lv_tags", o.ThinPool) }
	stop := errors.New("stop")
	first.Step = func(step string) error {
		if step == "create" {
			return stop
		}
		return nil
	}
	if _, err := Init(ctx, first); !errors.Is(err, stop) {
		t.Fatal(err)
	}
	if got := tags(first); got != "" {
		t.Errorf("an init that failed has left the tags %s", got)
	}
	first.Step = nil
	s := open(t, first)
	second := pool("second")
	before := must(t, "vgs", "--noheadings", "-o", "vg_seqno", vg)
	_, err := Init(ctx, second)
	if !errors.Is(err, store.ErrExists) || !strings.Contains(err.Error(), first.ThinPool) || !strings.Contains(err.Error(), "vgcreate") {
		t.Errorf("a second store: %v", err)
	}
	if after := must(t, "vgs", "--noheadings", "-o", "vg_seqno", vg); after != before || tags(second) != "" {
		t.Errorf("a store that was refused has changed the volume group: %s, then %s", before, after)
	}
	if _, err := Open(ctx, second); !errors.Is(err, ErrNotAStore) {
		t.Errorf("the pool without a store: %v", err)
	}
	if again, err := Init(ctx, first); err != nil {
		t.Errorf("the first once more: %v", err)
	} else if err := again.Close(); err != nil {
		t.Error(err)
	}
	// What no tag says the volumes do.
	must(t, "lvchange", "--deltag", tagStore+layoutVersion, first.ThinPool)
	if _, err := Init(ctx, second); !errors.Is(err, store.ErrExists) {
		t.Errorf("beside volumes of a store: %v", err)
	}
	must(t, "lvchange", "--addtag", tagStore+layoutVersion, first.ThinPool)
	// A pool that was renamed.
	must(t, "lvrename", vg, s.pool, "renamed")
	_, err = Open(ctx, first)
	must(t, "lvrename", vg, "renamed", s.pool)
	if !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "lvrename "+vg+" renamed "+s.pool) {
		t.Errorf("a pool that was renamed: %v", err)
	}
}

// TestByHand does to a store what people and other tools do.
func TestByHand(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	v := made(t, s, Ext4)
	id := taken(t, s, v)
	fs, snap := s.group+"/"+volumePrefix+string(v), s.group+"/"+snapshotPrefix+string(id)
	must(t, "lvcreate", "--yes", "--snapshot", "--name", "daily", fs)
	must(t, "lvcreate", "--yes", "--snapshot", "--name", "sidus.v.daily", fs)
	defer must(t, "lvremove", "--yes", s.group+"/daily", s.group+"/sidus.v.daily")
	items, err := s.List(ctx)
	if err != nil || len(items) != 2 {
		t.Errorf("with snapshots of another tool there are %v, %v", items, err)
	}
	// Renamed, and renamed back.
	must(t, "lvrename", fs, s.group+"/mine")
	if _, err := s.MountVolume(ctx, v); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "lvrename "+s.group) {
		t.Errorf("a volume that was renamed: %v", err)
	}
	if err := s.Snapshot(ctx, v, store.NewSnapshotID()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a snapshot of a volume that was renamed: %v", err)
	}
	must(t, "lvrename", s.group+"/mine", fs)
	m, err := s.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// In use, LVM protects it.
	if m, err = s.MountSnapshot(ctx, id); err != nil {
		t.Fatal(err)
	}
	if err := command("lvremove", "--yes", snap); err == nil {
		t.Error("LVM removes a snapshot that is mounted")
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// Removed.
	must(t, "lvremove", "--yes", snap)
	if _, err := s.MountSnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a snapshot that was removed: %v", err)
	}
	if err := s.DestroySnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("destroy what was removed: %v", err)
	}
	if err := s.Clone(ctx, id, store.NewVolumeID()); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("clone what was removed: %v", err)
	}
	// What others have made of it does not keep it.
	if err := s.DestroyVolume(ctx, v); err != nil {
		t.Error(err)
	}
	if items, err := s.List(ctx); err != nil || len(items) != 0 {
		t.Errorf("left: %v, %v", items, err)
	}
}

// TestReadOnlyPool: what is there can be read, and work is refused with what to
// look at.
func TestReadOnlyPool(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	v := made(t, s, Ext4)
	id := taken(t, s, v)
	device := mapperName(s.group, s.pool) + "-tpool"
	table := strings.Fields(must(t, "dmsetup", "table", device))
	reload := func(fields []string) {
		t.Helper()
		must(t, "dmsetup", "reload", device, "--table", strings.Join(fields, " "))
		must(t, "dmsetup", "suspend", device)
		must(t, "dmsetup", "resume", device)
	}
	// start length thin-pool metadata data chunk low-water number-of-features ...
	readOnly := append(slices.Clone(table[:7]), "1", "read_only")
	reload(readOnly)
	defer reload(table)
	for what, err := range map[string]error{
		"CreateVolume": s.CreateVolume(ctx, store.NewVolumeID()),
		"Snapshot":     s.Snapshot(ctx, v, store.NewSnapshotID()),
		"Clone":        s.Clone(ctx, id, store.NewVolumeID()),
		"Resize":       s.Resize(ctx, v, 1<<30),
	} {
		if !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") || !strings.Contains(err.Error(), "lvmthin(7)") {
			t.Errorf("%s: %v", what, err)
		}
	}
	m, err := s.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatalf("a snapshot cannot be read: %v", err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Error(err)
	}
}

// TestReadOnlyGroup: a volume group whose metadata says that it is read-only.
func TestReadOnlyGroup(t *testing.T) {
	requireThin(t)
	ctx := t.Context()
	g := &group{metadata: "1m"}
	t.Cleanup(func() {
		if err := g.destroy(); err != nil {
			t.Error(err)
		}
	})
	vg := g.get(t)
	must(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "1g", "--chunksize", "64k", "--poolmetadatasize", "8m", "--name", "pool", vg)
	o := Options{ThinPool: vg + "/pool", RunDir: filepath.Join(t.TempDir(), "run"), VolumeSize: 1 << 30}
	file := filepath.Join(t.TempDir(), "metadata")
	status := func(from, to string) {
		t.Helper()
		must(t, "vgcfgbackup", "-f", file, vg)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// The first is that of the group.
		changed := bytes.Replace(text, []byte(from), []byte(to), 1)
		if bytes.Equal(text, changed) {
			t.Fatalf("no %s in\n%s", from, text)
		}
		if err := os.WriteFile(file, changed, 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "vgcfgrestore", "--yes", "--force", "-f", file, vg)
	}
	const writable, readOnly = `["RESIZEABLE", "READ", "WRITE"]`, `["RESIZEABLE", "READ"]`
	status(writable, readOnly)
	if _, err := Init(ctx, o); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "vgcfgrestore") {
		t.Errorf("init in a volume group that is read-only: %v", err)
	}
	status(readOnly, writable)
	s, err := Init(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	id := taken(t, s, made(t, s, Ext4))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	status(writable, readOnly)
	if _, err := Open(ctx, o); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "vgcfgrestore") {
		t.Errorf("a store in a volume group that is read-only: %v", err)
	}
	status(readOnly, writable)
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(m.Unmount(ctx), s.Close()); err != nil {
		t.Error(err)
	}
}

// TestHalfReceived: what a machine that was reset has begun to receive is in the
// way of nobody.
func TestHalfReceived(t *testing.T) {
	ctx := t.Context()
	s, other := open(t, sharedOptions(t)), open(t, sharedOptions(t))
	id := taken(t, s, made(t, s, Ext4))
	r, err := s.Send(ctx, id, "")
	if err != nil {
		t.Fatal(err)
	}
	stream, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	name := lv(snapshotPrefix + id)
	header, err := newStreamReader(bytes.NewReader(stream))
	if err != nil {
		t.Fatal(err)
	}
	if err := other.createTarget(ctx, name, header.header, nil); err != nil {
		t.Fatal(err)
	}
	if items, err := other.List(ctx); err != nil || len(items) != 1 || !items[0].Partial {
		t.Errorf("a half-made snapshot is %v, %v", items, err)
	}
	// Not while somebody is at work on it.
	held, err := other.points.Hold(pointOfSnapshot(id), func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Receive(ctx, sendKind, bytes.NewReader(stream), id, ""); !errors.Is(err, store.ErrInUse) {
		t.Errorf("beside another who receives it: %v", err)
	}
	if err := held.Release(); err != nil {
		t.Fatal(err)
	}
	if err := other.Receive(ctx, sendKind, bytes.NewReader(stream), id, ""); err != nil {
		t.Errorf("after a reset: %v", err)
	}
	if err := other.Receive(ctx, sendKind, bytes.NewReader(stream), id, ""); !errors.Is(err, store.ErrExists) {
		t.Errorf("once more: %v", err)
	}
}
