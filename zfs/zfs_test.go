package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"

	"sidus/image/store"
)

// filled makes a volume with a file in it.
func filled(t *testing.T, s *Store) store.VolumeID {
	t.Helper()
	v := store.NewVolumeID()
	if err := s.CreateVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	write(t, s, v, "file", strings.Repeat("x", 1<<20))
	return v
}

func write(t *testing.T, s *Store, v store.VolumeID, name, text string) {
	t.Helper()
	m, err := s.MountVolume(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(m.Path(), name), []byte(text), 0o644), m.Unmount(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func taken(t *testing.T, s *Store, v store.VolumeID) store.SnapshotID {
	t.Helper()
	id := store.NewSnapshotID()
	if err := s.Snapshot(t.Context(), v, id); err != nil {
		t.Fatal(err)
	}
	return id
}

func count(t *testing.T, s *Store) int {
	t.Helper()
	items, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return len(items)
}

// TestRetired destroys a chain of volumes and snapshots in the order in which
// ZFS would refuse each step. Nothing of it shows, and with the last clone all
// of it is gone from the pool.
func TestRetired(t *testing.T) {
	s, ctx := open(t, datasetOptions(t)), t.Context()
	v1 := filled(t, s)
	one := taken(t, s, v1)
	write(t, s, v1, "later", strings.Repeat("y", 1<<20))
	v2 := store.NewVolumeID()
	if err := s.Clone(ctx, one, v2); err != nil {
		t.Fatal(err)
	}
	two := taken(t, s, v2)
	v3 := store.NewVolumeID()
	if err := s.Clone(ctx, two, v3); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{s.DestroyVolume(ctx, v1), s.DestroySnapshot(ctx, one), s.DestroyVolume(ctx, v2), s.DestroySnapshot(ctx, two)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d things show, not one", n)
	}
	m, err := s.MountVolume(ctx, v3)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(m.Path(), "file")); len(text) != 1<<20 || err != nil {
		t.Errorf("the clone has %d bytes, %v", len(text), err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// Of the megabyte that came after the snapshot some metadata may be left.
	written, err := strconv.Atoi(must(t, "zfs", "get", "-Hp", "-o", "value", "written", s.parent+"/"+string(v1)))
	if err != nil || written > 64<<10 {
		t.Errorf("a retired volume has %d bytes that are not in its snapshot, %v", written, err)
	}
	if err := s.DestroyVolume(ctx, v3); err != nil {
		t.Fatal(err)
	}
	if left := must(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", s.parent); left != s.parent+"\n"+s.parent+"/kept" {
		t.Errorf("left:\n%s", left)
	}
}

func remnants(t *testing.T, s *Store) []store.Remnant {
	t.Helper()
	left, err := s.Remnants(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return left
}

// TestRemnants: what stays of destroyed volumes and snapshots is told, with what
// keeps it, and is collected when that is gone, whoever took it away.
func TestRemnants(t *testing.T) {
	s, ctx := open(t, datasetOptions(t)), t.Context()
	v := filled(t, s)
	one := taken(t, s, v)
	fs := s.parent + "/" + string(v)
	head := store.NewVolumeID()
	if err := s.Clone(ctx, one, head); err != nil {
		t.Fatal(err)
	}
	two := taken(t, s, head)
	expect := func(what string, want ...string) {
		t.Helper()
		left := remnants(t, s)
		if len(left) != len(want)/2 {
			t.Errorf("%s: left are %+v", what, left)
			return
		}
		for i, r := range left {
			if !strings.Contains(r.What, want[2*i]) || !strings.Contains(r.Reason, want[2*i+1]) || want[2*i+1] == "" && r.Reason != "" {
				t.Errorf("%s: %+v", what, r)
			}
		}
	}
	must(t, "zfs", "snapshot", fs+"@daily")
	expect("nothing is destroyed")
	if err := s.DestroyVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	expect("its snapshot is there")
	if err := s.DestroySnapshot(ctx, one); err != nil {
		t.Fatal(err)
	}
	expect("a clone and another tool's snapshot need it", fs, s.parent+"/"+string(head))
	expect("a clone and another tool's snapshot need it", fs, "zfs destroy "+fs+"@daily")
	if err := s.DestroyVolume(ctx, head); err != nil {
		t.Fatal(err)
	}
	expect("the clone has a snapshot", fs, s.parent+"/"+string(head))
	if err := s.DestroySnapshot(ctx, two); err != nil {
		t.Fatal(err)
	}
	expect("another tool's snapshot", fs, "zfs destroy "+fs+"@daily")
	if r := remnants(t, s); len(r) == 1 && r[0].Bytes < 4096 {
		t.Errorf("it takes %d bytes", r[0].Bytes)
	}
	if err := s.Collect(ctx); err != nil {
		t.Error(err)
	}
	must(t, "zfs", "list", fs+"@daily") // not ours
	must(t, "zfs", "destroy", fs+"@daily")
	expect("nothing keeps it", fs, "")
	if err := s.Collect(ctx); err != nil {
		t.Error(err)
	}
	expect("all is collected")
	if left := must(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", s.parent); left != s.parent+"\n"+s.parent+"/kept" {
		t.Errorf("left:\n%s", left)
	}
}

// TestByHand does to a store what people and other tools do.
func TestByHand(t *testing.T) {
	s, ctx := open(t, datasetOptions(t)), t.Context()
	v := filled(t, s)
	id := taken(t, s, v)
	fs := s.parent + "/" + string(v)
	foreign := store.NewSnapshotID()
	must(t, "zfs", "snapshot", fs+"@daily")
	must(t, "zfs", "snapshot", fs+"@"+string(foreign))
	must(t, "zfs", "create", "-o", "mountpoint=none", s.parent+"/"+string(store.NewVolumeID()))
	if n := count(t, s); n != 2 {
		t.Errorf("%d things show, not two", n)
	}
	if _, err := s.MountSnapshot(ctx, foreign); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a snapshot that Sidus did not make: %v", err)
	}
	if err := s.DestroySnapshot(ctx, foreign); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a snapshot that Sidus did not make: %v", err)
	}
	// A snapshot in use is the kernel's to protect.
	m, err := s.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := command("zfs", "destroy", fs+"@"+string(id)); err == nil {
		t.Error("zfs destroys a snapshot that is mounted")
	}
	// A volume that is retired while its snapshot is mounted gives its name.
	if err := errors.Join(s.DestroyVolume(ctx, v), s.CreateVolume(ctx, v)); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(filepath.Join(m.Path(), "file")); err != nil {
		t.Errorf("the snapshot that is mounted: %v", err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	if m, err = s.MountSnapshot(ctx, id); err != nil {
		t.Fatalf("the snapshot of a retired volume: %v", err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// Renamed, and renamed back.
	must(t, "zfs", "rename", fs, s.parent+"/mine")
	if _, err := s.MountVolume(ctx, v); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "zfs rename "+s.parent+"/mine "+fs) {
		t.Errorf("a volume that was renamed: %v", err)
	}
	must(t, "zfs", "rename", s.parent+"/mine", fs)
	if m, err = s.MountVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// A snapshot, too.
	d, _, err := s.find(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	mine := string(d.fileSystem()) + "@mine"
	must(t, "zfs", "rename", string(d), mine)
	if _, err := s.MountSnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "zfs rename "+mine+" "+string(d)) {
		t.Errorf("a snapshot that was renamed: %v", err)
	}
	if left := remnants(t, s); len(left) != 0 {
		t.Errorf("a snapshot that was renamed is taken for one that does not count: %v", left)
	}
	must(t, "zfs", "rename", mine, string(d))
	if text, err := content(t, s, id, "file"); len(text) != 1<<20 || err != nil {
		t.Errorf("when it is renamed back: %d bytes, %v", len(text), err)
	}
	// Removed.
	must(t, "zfs", "destroy", fs)
	if err := s.DestroyVolume(ctx, v); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a volume that was removed: %v", err)
	}
}

// TestParentGone takes the dataset of a store that is open away, and gives it back.
func TestParentGone(t *testing.T) {
	o := datasetOptions(t)
	s, ctx := open(t, o), t.Context()
	v := filled(t, s)
	id := taken(t, s, v)
	must(t, "zfs", "rename", "-u", s.parent, s.parent+"-away")
	for name, do := range map[string]func() error{
		"List":          func() error { _, err := s.List(ctx); return err },
		"Remnants":      func() error { _, err := s.Remnants(ctx); return err },
		"CreateVolume":  func() error { return s.CreateVolume(ctx, store.NewVolumeID()) },
		"Snapshot":      func() error { return s.Snapshot(ctx, v, store.NewSnapshotID()) },
		"MountSnapshot": func() error { _, err := s.MountSnapshot(ctx, id); return err },
	} {
		if err := do(); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zfs list") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(ctx, o); !errors.Is(err, store.ErrNotFound) || !strings.Contains(err.Error(), "renamed") {
		t.Errorf("Open: %v", err)
	}
	must(t, "zfs", "rename", "-u", s.parent+"-away", s.parent)
	if text, err := content(t, s, id, "file"); len(text) != 1<<20 || err != nil {
		t.Errorf("when it is back: %d bytes, %v", len(text), err)
	}
}

// TestAdopt adopts a dataset that an administrator made, and nothing else.
func TestAdopt(t *testing.T) {
	o := datasetOptions(t)
	ctx := t.Context()
	if _, err := Open(ctx, o); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("Open of what is missing: %v", err)
	}
	must(t, "zfs", "create", "-o", "mountpoint=none", "-o", "compression=gzip-1", o.Dataset)
	if _, err := Open(ctx, o); !errors.Is(err, ErrNotAStore) {
		t.Errorf("Open of something else: %v", err)
	}
	must(t, "zfs", "create", o.Dataset+"/home")
	if _, err := Init(ctx, o); !errors.Is(err, ErrNotAStore) || !strings.Contains(err.Error(), o.Dataset+"/home") {
		t.Errorf("Init of what is not empty: %v", err)
	}
	must(t, "zfs", "destroy", o.Dataset+"/home")
	s := open(t, o)
	v := filled(t, s)
	got := must(t, "zfs", "get", "-H", "-o", "value", "compression,xattr,acltype,atime,mountpoint", s.parent+"/"+string(v))
	if got != "gzip-1\nsa\nposix\noff\nlegacy" {
		t.Errorf("the volume's properties are %q", got)
	}
	for _, missing := range []string{"sidusnone/x", o.Dataset + "/no/such"} {
		wrong := o
		wrong.Dataset = missing
		if _, err := Init(ctx, wrong); !errors.Is(err, store.ErrUnavailable) {
			t.Errorf("Init in %s: %v", missing, err)
		}
	}
}

// TestProperties gives a volume properties; its clones have them too.
func TestProperties(t *testing.T) {
	s, ctx := open(t, datasetOptions(t)), t.Context()
	v, w := filled(t, s), store.NewVolumeID()
	if err := s.SetProperties(ctx, v, map[string]string{"recordsize": "16K", "refquota": "1G", "copies": "2"}); err != nil {
		t.Fatal(err)
	}
	if err := s.SetProperties(ctx, v, map[string]string{"copies": "inherit"}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range [][2]string{{"mountpoint", "/"}, {"sidus:volume", "x"}, {"recordsize", "17"}, {"recordsize", ""}, {"compression", "a,b"},
		{"compression", "best"}, {"quota", "much"}, {"refquota", "-1"}, {"copies", "9"}} {
		if err := s.SetProperties(ctx, v, map[string]string{"sync": "always", bad[0]: bad[1]}); !errors.Is(err, store.ErrBadName) || !strings.Contains(err.Error(), bad[0]) {
			t.Errorf("%v: %v", bad, err)
		}
	}
	if err := s.SetProperties(ctx, store.NewVolumeID(), map[string]string{"copies": "2"}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("a volume that is missing: %v", err)
	}
	if err := s.Clone(ctx, taken(t, s, v), w); err != nil {
		t.Fatal(err)
	}
	got, err := s.Properties(ctx, w)
	if err != nil || len(got) != 2 || got["recordsize"] != "16384" || got["refquota"] != "1073741824" {
		t.Errorf("%v, %v", got, err)
	}
}

// TestEncrypted serves an encrypted dataset, and takes its key away.
func TestEncrypted(t *testing.T) {
	s, _ := encrypted(t)
	ctx := t.Context()
	v := filled(t, s)
	id := taken(t, s, v)
	must(t, "zfs", "unload-key", "-r", s.parent)
	if _, err := s.MountSnapshot(ctx, id); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zfs load-key") {
		t.Errorf("without the key: %v", err)
	}
	must(t, "zfs", "load-key", "-r", s.parent)
	m, err := s.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
}

// TestFile makes a pool in a file, exports it, and opens it again.
func TestFile(t *testing.T) {
	o := fileOptions(t)
	o.DiskReserve = 1
	ctx := t.Context()
	small := o
	small.Size = MinSize - 1
	if _, err := Init(ctx, small); err == nil {
		t.Error("a file that is too small is taken")
	}
	s := open(t, o)
	v := filled(t, s)
	id := taken(t, s, v)
	if err := s.Keep(ctx, "catalog", strings.NewReader("kept")); err != nil {
		t.Fatal(err)
	}
	if err := s.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	if pools := must(t, "zpool", "list", "-H", "-o", "name"); strings.Contains(pools, s.parent) {
		t.Errorf("the pool is still there: %s", pools)
	}
	again, err := Open(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	m, err := again.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(m.Path(), "file")); len(text) != 1<<20 || err != nil {
		t.Errorf("the snapshot has %d bytes, %v", len(text), err)
	}
	if err := m.Unmount(ctx); err != nil {
		t.Fatal(err)
	}
	// Full: no work is begun, what was done can be kept. All but some of the space
	// is reserved, since to write it takes long.
	u, err := again.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	must(t, "zfs", "create", "-o", "mountpoint=none", "-o", fmt.Sprintf("reservation=%d", u.Available-32<<20), again.parent+"/ballast")
	if m, err = again.MountVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	noise, err := os.Create(filepath.Join(m.Path(), "noise"))
	if err != nil {
		t.Fatal(err)
	}
	random, err := os.Open("/dev/urandom")
	if err != nil {
		t.Fatal(err)
	}
	defer random.Close()
	for err == nil {
		if _, err = noise.ReadFrom(&limited{random, 16 << 20}); err == nil {
			err = noise.Sync()
		}
		if err == nil {
			if u, err = again.Usage(ctx); u.Available == 0 {
				break
			}
		}
	}
	if err := errors.Join(err, noise.Close(), m.Unmount(ctx)); err != nil {
		t.Fatal(err)
	}
	if err := again.Clone(ctx, id, store.NewVolumeID()); !errors.Is(err, store.ErrNoSpace) || !strings.Contains(err.Error(), "zpool add") {
		t.Errorf("Clone in a full store: %v", err)
	}
	if err := errors.Join(again.Snapshot(ctx, v, store.NewSnapshotID()), again.Keep(ctx, "catalog", strings.NewReader("last"))); err != nil {
		t.Errorf("what was done cannot be kept: %v", err)
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
}

// limited reads n bytes at most.
type limited struct {
	file *os.File
	n    int
}

func (l *limited) Read(p []byte) (int, error) {
	if l.n <= 0 {
		return 0, io.EOF
	}
	n, err := l.file.Read(p[:min(len(p), l.n)])
	l.n -= n
	return n, err
}

// TestSick opens stores in pools that are degraded, read-only and gone.
func TestSick(t *testing.T) {
	requireZFS(t)
	dir, ctx := t.TempDir(), t.Context()
	disks := []string{filepath.Join(dir, "a"), filepath.Join(dir, "b")}
	for _, d := range disks {
		if err := errors.Join(os.WriteFile(d, nil, 0o600), os.Truncate(d, 256<<20)); err != nil {
			t.Fatal(err)
		}
	}
	name := "sidussick-" + string(store.NewVolumeID())[:8]
	must(t, "zpool", "create", "-o", "cachefile=none", "-m", "none", name, "mirror", disks[0], disks[1])
	t.Cleanup(func() { _ = command("zpool", "destroy", "-f", name) })
	log, hook := logtest.NewNullLogger()
	log.SetLevel(logrus.WarnLevel)
	o := Options{Dataset: name + "/sidus", RunDir: filepath.Join(dir, "run"), Log: log}
	s, err := Init(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	v := filled(t, s)
	id := taken(t, s, v)
	if err := s.Detach(ctx); err != nil {
		t.Fatal(err)
	}
	must(t, "zpool", "offline", name, disks[1])
	hook.Reset()
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	if entry := hook.LastEntry(); entry == nil || !strings.Contains(entry.Message, "degraded") {
		t.Errorf("the log says %v", entry)
	}
	must(t, "zpool", "export", name)
	if _, err := s.List(ctx); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zpool import "+name) {
		t.Errorf("the pool is gone: %v", err)
	}
	must(t, "zpool", "import", "-d", dir, "-N", "-o", "readonly=on", "-o", "cachefile=none", name)
	if s, err = Open(ctx, o); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountSnapshot(ctx, id)
	if err != nil {
		t.Fatalf("a snapshot of a pool that is read-only: %v", err)
	}
	if err := m.Unmount(context.Background()); err != nil {
		t.Error(err)
	}
	if err := s.CreateVolume(ctx, store.NewVolumeID()); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zpool import "+name) {
		t.Errorf("a change of a pool that is read-only: %v", err)
	}
}
