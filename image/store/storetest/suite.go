package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/tool"
)

// cases are all cases of the suite, each on a store of its own.
var cases = []struct {
	name string
	run  func(t *testing.T, b *Backend)
}{
	{"life-cycle", lifeCycle},
	{"empty-volume", emptyVolume},
	{"isolation", isolation},
	{"metadata", metadata},
	{"sparse", sparse},
	{"bad-names", badNames},
	{"nested-subvolume", nestedSubvolume},
	{"nested-mount", nestedMount},
	{"errors", wrongCalls},
	{"in-use", inUse},
	{"mounts", mounts},
	{"read-only", readOnly},
	{"destroyed", destroyed},
	{"reopen", reopen},
	{"failure-at-each-step", failures},
	{"crash-at-each-step", crashes},
	{"cancelled", cancelled},
	{"concurrency", concurrency},
	{"one-winner", oneWinner},
	{"many-snapshots", manySnapshots},
	{"usage", usage},
	{"kept-files", keptFiles},
}

// alone are the cases that change something of the whole process, or measure it.
var alone = []string{"empty-volume", "many-snapshots", "usage"}

// Run runs the suite on a backend.
func Run(t *testing.T, factory Factory) { run(t, factory, false) }

// RunParallel is Run with several cases at once, for a backend whose programs
// take long to start.
func RunParallel(t *testing.T, factory Factory) { run(t, factory, true) }

func run(t *testing.T, factory Factory, parallel bool) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if parallel && !slices.Contains(alone, c.name) {
				t.Parallel()
			}
			b := factory(t)
			if why := b.Skip[c.name]; why != "" {
				t.Skipf("SKIPPED: %s", why)
			}
			c.run(t, b)
		})
	}
}

func lifeCycle(t *testing.T, b *Backend) {
	s := b.Store
	if items, err := s.List(t.Context()); err != nil || len(items) != 0 {
		t.Fatalf("a new store holds %v, %v", items, err)
	}
	begin := time.Now()
	v := create(t, s)
	change(t, s, v, File("a", "one", 0o644))
	first := describeVolume(t, s, v)
	one := snapshot(t, s, v)
	change(t, s, v, File("a", "two", 0o644))
	second := describeVolume(t, s, v)
	two := snapshot(t, s, v)
	w := clone(t, s, one)
	same(t, "first snapshot", first, describeSnapshot(t, s, one))
	same(t, "second snapshot", second, describeSnapshot(t, s, two))
	same(t, "clone of the first", first, describeVolume(t, s, w))

	items, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		got = append(got, fmt.Sprint(i.Kind, i.Volume, i.Snapshot, i.Partial))
		if i.Created.Before(begin.Add(-time.Minute)) || i.Created.After(time.Now().Add(time.Minute)) {
			t.Errorf("%v: made at %v", i, i.Created)
		}
	}
	want := []string{
		fmt.Sprint(store.KindVolume, v, "", false), fmt.Sprint(store.KindVolume, w, "", false),
		fmt.Sprint(store.KindSnapshot, "", one, false), fmt.Sprint(store.KindSnapshot, "", two, false),
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("List: got %v, want %v", got, want)
	}
	for _, err := range []error{s.DestroyVolume(t.Context(), v), s.DestroySnapshot(t.Context(), two), s.DestroyVolume(t.Context(), w), s.DestroySnapshot(t.Context(), one)} {
		if err != nil {
			t.Error(err)
		}
	}
	if items, err := s.List(t.Context()); err != nil || len(items) != 0 {
		t.Errorf("the emptied store holds %v, %v", items, err)
	}
}

func emptyVolume(t *testing.T, b *Backend) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	v := create(t, b.Store)
	m := mounted(t, b.Store, store.Item{Kind: store.KindVolume, Volume: v})
	defer unmount(t, m)
	out, err := tool.Output(t.Context(), tool.Options{}, "find", m.Path(), "-printf", "%P %y %m %U:%G\n")
	if err != nil {
		t.Fatal(err)
	}
	want := " d 755 0:0\n"
	if b.Unprivileged {
		want = fmt.Sprintf(" d 755 %d:%d\n", os.Getuid(), os.Getgid())
	}
	if string(out) != want {
		t.Errorf("find says %q, want %q", out, want)
	}
}

func isolation(t *testing.T, b *Backend) {
	s := b.Store
	v := create(t, s)
	change(t, s, v, Dir("d", 0o755), File("d/changed", "before", 0o644), File("removed", "before", 0o644),
		File("renamed", "before", 0o644), File("mode", "before", 0o644), File("appended", "before", 0o644), File("mapped", strings.Repeat("m", 8192), 0o644))
	before := describeVolume(t, s, v)
	id := snapshot(t, s, v)
	w := clone(t, s, id)
	upset := func(word string) []Applier {
		return []Applier{
			File("d/changed", word, 0o644), Remove("removed"), Rename("renamed", "d/renamed-"+word), Chmod("mode", 0o600),
			File("new-"+word, word, 0o644), Xattr("mode", "user.word", word),
			func(root string) error {
				file, err := os.OpenFile(filepath.Join(root, "appended"), os.O_WRONLY|os.O_APPEND, 0)
				if err != nil {
					return err
				}
				defer file.Close()
				_, err = file.WriteString(word)
				return err
			},
			func(root string) error { return writeMapped(filepath.Join(root, "mapped"), word) },
		}
	}
	change(t, s, v, upset("head")...)
	head := describeVolume(t, s, v)
	same(t, "snapshot after the head changed", before, describeSnapshot(t, s, id))
	same(t, "clone after the head changed", before, describeVolume(t, s, w))
	change(t, s, w, upset("clone")...)
	cloned := describeVolume(t, s, w)
	same(t, "snapshot after the clone changed", before, describeSnapshot(t, s, id))
	same(t, "head after the clone changed", head, describeVolume(t, s, v))
	if head == before || cloned == before || head == cloned {
		t.Error("the changes do not show")
	}
	again := snapshot(t, s, w)
	same(t, "snapshot of the clone", cloned, describeSnapshot(t, s, again))
	same(t, "another clone of the first snapshot", before, describeVolume(t, s, clone(t, s, id)))
}

// writeMapped writes through a mapping, which no write call flushes.
func writeMapped(path, text string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer file.Close()
	memory, err := unix.Mmap(int(file.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(memory[4096:], text)
	return unix.Munmap(memory)
}

func metadata(t *testing.T, b *Backend) {
	s := b.Store
	v := create(t, s)
	apply := AllMetadata()
	if b.Unprivileged {
		apply = PlainMetadata()
	}
	change(t, s, v, apply)
	want := describeVolume(t, s, v)
	checkDescription(t, want, !b.Unprivileged)
	id := snapshot(t, s, v)
	w := clone(t, s, id)
	second := snapshot(t, s, w)
	same(t, "snapshot", want, describeSnapshot(t, s, id))
	same(t, "clone", want, describeVolume(t, s, w))
	same(t, "snapshot of the clone", want, describeSnapshot(t, s, second))
	same(t, "head", want, describeVolume(t, s, v))
	if b.Unprivileged {
		return
	}
	m := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: second})
	defer unmount(t, m)
	out, err := tool.Output(t.Context(), tool.Options{Dir: m.Path()}, "getcap", "ping")
	if err != nil || string(out) != "ping cap_net_raw=ep\n" {
		t.Errorf("getcap says %q, %v", out, err)
	}
}

// checkDescription looks for some things in the description of a tree of
// AllMetadata: a comparison proves nothing if both sides lack them.
func checkDescription(t *testing.T, text string, root bool) {
	t.Helper()
	wanted := []string{
		`"su" f mode=4755`, `"wall" f mode=2755`, `"tmp" d mode=1777`, `"both" d mode=7755`, `"fifo" p mode=620`, `"socket" s mode=755`,
		`time=981173106.1234567890`, `"empty" f mode=644`, `time=0.0000000010`, `"latin-\xe9\xff\xfe" f`, `"blank and\nnewline\\back\tslash\"quote'" f`,
		`"link" l`, `target="etc/passwd"`, `links=3 same="etc/passwd"`, `"link-to-link" l`, `target="/nowhere/at/all"`,
		`sha256=`, `user.note=0x612076616c7565`, `user.binary=0x0001ff`, `user:33:r--`, `default:user:33:rwx`, `size=8388608`,
	}
	if root {
		wanted = append(wanted, `"null" c mode=666`, `device=1:3`, `device=103:11170`, `owner=4294967294:65534`, `security.capability=0x`,
			`trusted.overlay.opaque=0x79`, `security.selinux=0x`, `trusted.of.link=0x6c`, `"whiteout" c mode=0`, `"none" f mode=0 `)
	}
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("the tree's description lacks %s", want)
		}
	}
	if t.Failed() {
		t.Logf("the description:\n%s", text)
	}
}

func sparse(t *testing.T, b *Backend) {
	s := b.Store
	v := create(t, s)
	const size = 256 << 20
	change(t, s, v, Sparse("sparse", size, map[int64]string{0: "begin", size / 2: "middle", size - 3: "end"}), Sparse("hole", size, nil))
	id := snapshot(t, s, v)
	w := clone(t, s, id)
	for what, i := range map[string]store.Item{"snapshot": {Kind: store.KindSnapshot, Snapshot: id}, "clone": {Kind: store.KindVolume, Volume: w}} {
		m := mounted(t, s, i)
		for _, name := range []string{"sparse", "hole"} {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(m.Path(), name), &st); err != nil {
				t.Error(err)
			} else if st.Size != size || st.Blocks*512 > 1<<20 {
				t.Errorf("%s: %s has %d bytes and takes %d", what, name, st.Size, st.Blocks*512)
			}
		}
		unmount(t, m)
	}
}

func badNames(t *testing.T, b *Backend) {
	s, ctx := b.Store, t.Context()
	v := create(t, s)
	id := snapshot(t, s, v)
	before := state(t, s)
	good := string(store.NewVolumeID())
	bad := []string{
		"", ".", "..", "/", "a", "../" + good[3:], good[:31] + "/", good[:31], good + "0", strings.ToUpper(good[:31]) + "A", "-" + good[1:],
		good[:31] + " ", good[:31] + "\n", good[:31] + "\x00", good[:30] + "\xc3\xa9", "." + good[1:], ".new-" + good, ".gone-" + good, good[:31] + "g", strings.Repeat("a", 300),
	}
	for _, name := range bad {
		volume, snap := store.VolumeID(name), store.SnapshotID(name)
		calls := map[string]func() error{
			"CreateVolume":    func() error { return s.CreateVolume(ctx, volume) },
			"Snapshot of":     func() error { return s.Snapshot(ctx, volume, store.NewSnapshotID()) },
			"Snapshot as":     func() error { return s.Snapshot(ctx, v, snap) },
			"Clone of":        func() error { return s.Clone(ctx, snap, store.NewVolumeID()) },
			"Clone as":        func() error { return s.Clone(ctx, id, volume) },
			"MountVolume":     func() error { _, err := s.MountVolume(ctx, volume); return err },
			"MountSnapshot":   func() error { _, err := s.MountSnapshot(ctx, snap); return err },
			"DestroyVolume":   func() error { return s.DestroyVolume(ctx, volume) },
			"DestroySnapshot": func() error { return s.DestroySnapshot(ctx, snap) },
		}
		for call, do := range calls {
			if err := do(); !errors.Is(err, store.ErrBadName) {
				t.Errorf("%s %q: got %v, want ErrBadName", call, name, err)
			}
		}
	}
	same(t, "store", before, state(t, s))
}

func nestedSubvolume(t *testing.T, b *Backend) {
	if b.Nest == nil {
		t.Skip("SKIPPED: this backend has no nested subvolumes")
	}
	s := b.Store
	v := create(t, s)
	change(t, s, v, Dir("a/b", 0o755), func(root string) error { return b.Nest(filepath.Join(root, "a/b/nested")) })
	change(t, s, v, File("a/b/nested/file", "inside", 0o644))
	before := state(t, s)
	err := s.Snapshot(t.Context(), v, store.NewSnapshotID())
	if !errors.Is(err, store.ErrNestedVolume) {
		t.Fatalf("got %v, want ErrNestedVolume", err)
	}
	if !strings.Contains(err.Error(), "a/b/nested") {
		t.Errorf("the message does not name it: %v", err)
	}
	same(t, "store", before, state(t, s))
	change(t, s, v, func(root string) error { return b.Nest(filepath.Join(root, "a/b/nested/deeper")) },
		func(root string) error { return b.Nest(filepath.Join(root, "other")) })
	if err := s.DestroyVolume(t.Context(), v); err != nil {
		t.Fatalf("a volume with nested subvolumes cannot be destroyed: %v", err)
	}
	if items, err := s.List(t.Context()); err != nil || len(items) != 0 {
		t.Errorf("the store holds %v, %v", items, err)
	}
}

func nestedMount(t *testing.T, b *Backend) {
	RequireRoot(t)
	s := b.Store
	v := create(t, s)
	change(t, s, v, Dir("proc", 0o755))
	m := mounted(t, s, store.Item{Kind: store.KindVolume, Volume: v})
	defer unmount(t, m)
	elsewhere := t.TempDir()
	// The volume seen through a bind mount, as a sandbox sees it.
	if err := unix.Mount(m.Path(), elsewhere, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(elsewhere, 0); err != nil {
			t.Error(err)
		}
	}()
	for _, target := range []string{filepath.Join(m.Path(), "proc"), filepath.Join(elsewhere, "proc")} {
		if err := unix.Mount("tmpfs", target, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		err := s.Snapshot(t.Context(), v, store.NewSnapshotID())
		if unmountErr := unix.Unmount(target, 0); unmountErr != nil {
			t.Fatal(unmountErr)
		}
		if !errors.Is(err, store.ErrNestedVolume) || !strings.Contains(err.Error(), "proc") {
			t.Errorf("got %v, want ErrNestedVolume that names the mount", err)
		}
	}
	if err := s.Snapshot(t.Context(), v, store.NewSnapshotID()); err != nil {
		t.Errorf("a bind mount of the volume elsewhere is in the way: %v", err)
	}
}

func wrongCalls(t *testing.T, b *Backend) {
	s, ctx := b.Store, t.Context()
	v := create(t, s)
	change(t, s, v, File("a", "a", 0o644))
	id := snapshot(t, s, v)
	w := clone(t, s, id)
	before := state(t, s)
	noVolume, noSnapshot := store.NewVolumeID(), store.NewSnapshotID()
	for _, c := range []struct {
		call string
		err  error
		want error
		name string
	}{
		{"CreateVolume", s.CreateVolume(ctx, v), store.ErrExists, string(v)},
		{"CreateVolume", s.CreateVolume(ctx, w), store.ErrExists, string(w)},
		{"Snapshot", s.Snapshot(ctx, v, id), store.ErrExists, string(id)},
		{"Snapshot", s.Snapshot(ctx, noVolume, noSnapshot), store.ErrNotFound, string(noVolume)},
		{"Clone", s.Clone(ctx, id, v), store.ErrExists, string(v)},
		{"Clone", s.Clone(ctx, noSnapshot, noVolume), store.ErrNotFound, string(noSnapshot)},
		{"DestroyVolume", s.DestroyVolume(ctx, noVolume), store.ErrNotFound, string(noVolume)},
		{"DestroySnapshot", s.DestroySnapshot(ctx, noSnapshot), store.ErrNotFound, string(noSnapshot)},
		// A volume's ID is no snapshot, and the other way round.
		{"DestroyVolume", s.DestroyVolume(ctx, store.VolumeID(id)), store.ErrNotFound, string(id)},
		{"DestroySnapshot", s.DestroySnapshot(ctx, store.SnapshotID(v)), store.ErrNotFound, string(v)},
		{"Clone", s.Clone(ctx, store.SnapshotID(v), noVolume), store.ErrNotFound, string(v)},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: got %v, want %v", c.call, c.err, c.want)
		} else if !strings.Contains(c.err.Error(), c.name) {
			t.Errorf("%s: the message does not name %s: %v", c.call, c.name, c.err)
		}
	}
	if _, err := s.MountVolume(ctx, noVolume); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("MountVolume: got %v, want ErrNotFound", err)
	}
	if _, err := s.MountSnapshot(ctx, noSnapshot); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("MountSnapshot: got %v, want ErrNotFound", err)
	}
	same(t, "store", before, state(t, s))
}

func inUse(t *testing.T, b *Backend) {
	ctx := t.Context()
	stores := map[string]store.Store{"the same handle": b.Store}
	if b.Open != nil {
		other := b.Open(t)
		defer other.Close()
		stores["another handle"] = other
	}
	for who, other := range stores {
		v := create(t, b.Store)
		id := snapshot(t, b.Store, v)
		volume := mounted(t, b.Store, store.Item{Kind: store.KindVolume, Volume: v})
		first := mounted(t, b.Store, store.Item{Kind: store.KindSnapshot, Snapshot: id})
		second := mounted(t, b.Store, store.Item{Kind: store.KindSnapshot, Snapshot: id})
		if err := other.DestroyVolume(ctx, v); !errors.Is(err, store.ErrInUse) {
			t.Errorf("%s: DestroyVolume: got %v, want ErrInUse", who, err)
		}
		if err := other.DestroySnapshot(ctx, id); !errors.Is(err, store.ErrInUse) {
			t.Errorf("%s: DestroySnapshot: got %v, want ErrInUse", who, err)
		}
		unmount(t, first)
		if err := other.DestroySnapshot(ctx, id); !errors.Is(err, store.ErrInUse) {
			t.Errorf("%s: DestroySnapshot with one mount left: got %v, want ErrInUse", who, err)
		}
		if _, err := os.ReadDir(second.Path()); err != nil {
			t.Errorf("%s: the mount that is held is gone: %v", who, err)
		}
		unmount(t, second)
		unmount(t, volume)
		if err := other.DestroySnapshot(ctx, id); err != nil {
			t.Errorf("%s: DestroySnapshot: %v", who, err)
		}
		if err := other.DestroyVolume(ctx, v); err != nil {
			t.Errorf("%s: DestroyVolume: %v", who, err)
		}
	}
}

func mounts(t *testing.T, b *Backend) {
	s := b.Store
	v := create(t, s)
	change(t, s, v, File("a", "a", 0o644))
	id := snapshot(t, s, v)
	one := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: id})
	two := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: id})
	if !filepath.IsAbs(one.Path()) {
		t.Errorf("%q is no absolute path", one.Path())
	}
	unmount(t, one)
	unmount(t, one) // does nothing
	if text, err := os.ReadFile(filepath.Join(two.Path(), "a")); err != nil || string(text) != "a" {
		t.Errorf("the second mount: %q, %v", text, err)
	}
	unmount(t, two)
	// A snapshot may be taken, and cloned from, while things are mounted.
	head := mounted(t, s, store.Item{Kind: store.KindVolume, Volume: v})
	defer unmount(t, head)
	file, err := os.Create(filepath.Join(head.Path(), "open"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString("written, not synced, not closed"); err != nil {
		t.Fatal(err)
	}
	snap := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: snapshot(t, s, v)})
	defer unmount(t, snap)
	if text, err := os.ReadFile(filepath.Join(snap.Path(), "open")); string(text) != "written, not synced, not closed" {
		t.Errorf("the snapshot lacks what was written before it: %q, %v", text, err)
	}
}

func readOnly(t *testing.T, b *Backend) {
	s := b.Store
	v := create(t, s)
	change(t, s, v, Dir("dir", 0o777), File("file", "text", 0o666), Symlink("file", "link"))
	id := snapshot(t, s, v)
	before := describeSnapshot(t, s, id)
	m := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: id})
	in := func(name string) string { return filepath.Join(m.Path(), name) }
	open := func(name string, flags int) error {
		fd, err := unix.Open(in(name), flags, 0o644)
		if err == nil {
			_ = unix.Close(fd)
		}
		return err
	}
	for what, err := range map[string]error{
		"create":       open("new", unix.O_CREAT|unix.O_WRONLY),
		"write":        open("file", unix.O_WRONLY),
		"truncate":     unix.Truncate(in("file"), 0),
		"mkdir":        unix.Mkdir(in("new"), 0o755),
		"unlink":       unix.Unlink(in("file")),
		"rmdir":        unix.Rmdir(in("dir")),
		"rename":       unix.Rename(in("file"), in("dir/file")),
		"link":         unix.Link(in("file"), in("new")),
		"symlink":      unix.Symlink("x", in("new")),
		"chmod":        unix.Chmod(in("file"), 0o600),
		"chmod root":   unix.Chmod(m.Path(), 0o700),
		"chown":        unix.Lchown(in("file"), 1, 1),
		"utimes":       unix.UtimesNanoAt(unix.AT_FDCWD, in("file"), []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0),
		"setxattr":     unix.Setxattr(in("file"), "user.x", []byte("x"), 0),
		"mknod":        unix.Mknod(in("new"), unix.S_IFIFO|0o644, 0),
		"create below": open("dir/new", unix.O_CREAT|unix.O_WRONLY),
	} {
		if !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: got %v, want EROFS", what, err)
		}
	}
	unmount(t, m)
	same(t, "snapshot", before, describeSnapshot(t, s, id))
}

func destroyed(t *testing.T, b *Backend) {
	s, ctx := b.Store, t.Context()
	v := create(t, s)
	change(t, s, v, File("a", "first", 0o644))
	id := snapshot(t, s, v)
	want := describeSnapshot(t, s, id)
	if err := s.DestroyVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	same(t, "snapshot without its volume", want, describeSnapshot(t, s, id))
	w := clone(t, s, id)
	err := s.DestroySnapshot(ctx, id)
	if err != nil && !errors.Is(err, store.ErrInUse) { // a backend may need it for the clone
		t.Fatal(err)
	}
	same(t, "clone", want, describeVolume(t, s, w))
	if err != nil {
		return
	}
	for n, s := range reopened(t, b) {
		if _, err := s.MountVolume(ctx, v); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: a destroyed volume: %v", n, err)
		}
		if _, err := s.MountSnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: a destroyed snapshot: %v", n, err)
		}
		if err := s.DestroyVolume(ctx, v); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: a destroyed volume: %v", n, err)
		}
		if err := s.DestroySnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("%s: a destroyed snapshot: %v", n, err)
		}
		items, err := s.List(ctx)
		if err != nil || len(items) != 1 {
			t.Errorf("%s: the store holds %v, %v", n, items, err)
		}
	}
	// The name is free again, and what comes under it is new.
	if err := s.CreateVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	if text := describeVolume(t, s, v); strings.Count(text, "\n") != 1 {
		t.Errorf("what was destroyed is back:\n%s", text)
	}
}

// reopened returns the store, and the store opened once more if that can be
// done.
func reopened(t *testing.T, b *Backend) map[string]store.Store {
	stores := map[string]store.Store{"as it was": b.Store}
	if b.Open != nil {
		other := b.Open(t)
		t.Cleanup(func() {
			if err := other.Close(); err != nil {
				t.Error(err)
			}
		})
		stores["opened again"] = other
	}
	return stores
}

func reopen(t *testing.T, b *Backend) {
	if b.Open == nil {
		t.Skip("SKIPPED: this backend cannot be opened again")
	}
	v := create(t, b.Store)
	change(t, b.Store, v, File("a", "a", 0o600), Dir("d", 0o711))
	id := snapshot(t, b.Store, v)
	clone(t, b.Store, id)
	change(t, b.Store, v, File("a", "b", 0o600))
	want := state(t, b.Store)
	if err := b.Store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Store.Close(); err != nil {
		t.Errorf("Close a second time: %v", err)
	}
	again := b.Open(t)
	defer again.Close()
	same(t, "store", want, state(t, again))
	change(t, again, clone(t, again, id), File("more", "more", 0o600))
}

// operation is something that changes a store, for the cases that break it.
type operation struct {
	name string
	// prepare makes what the operation needs and returns it.
	prepare func(t testing.TB, b *Backend) func(ctx context.Context) error
}

func operations(b *Backend) []operation {
	s := b.Store
	list := []operation{
		{"CreateVolume", func(testing.TB, *Backend) func(context.Context) error {
			v := store.NewVolumeID()
			return func(ctx context.Context) error { return s.CreateVolume(ctx, v) }
		}},
		{"Snapshot", func(t testing.TB, _ *Backend) func(context.Context) error {
			v, id := create(t, s), store.NewSnapshotID()
			change(t, s, v, File("a", "in a snapshot", 0o644))
			return func(ctx context.Context) error { return s.Snapshot(ctx, v, id) }
		}},
		{"Clone", func(t testing.TB, _ *Backend) func(context.Context) error {
			v := create(t, s)
			change(t, s, v, File("a", "in a clone", 0o644))
			id, w := snapshot(t, s, v), store.NewVolumeID()
			return func(ctx context.Context) error { return s.Clone(ctx, id, w) }
		}},
		{"DestroyVolume", func(t testing.TB, _ *Backend) func(context.Context) error {
			v := create(t, s)
			change(t, s, v, File("a", "in a volume", 0o644))
			return func(ctx context.Context) error { return s.DestroyVolume(ctx, v) }
		}},
		{"DestroySnapshot", func(t testing.TB, _ *Backend) func(context.Context) error {
			v := create(t, s)
			change(t, s, v, File("a", "in a snapshot", 0o644))
			id := snapshot(t, s, v)
			return func(ctx context.Context) error { return s.DestroySnapshot(ctx, id) }
		}},
	}
	if b.Nest != nil {
		list = append(list, operation{"DestroyVolume with nested ones", func(t testing.TB, b *Backend) func(context.Context) error {
			v := create(t, s)
			for _, name := range []string{"one", "two", "one/three"} {
				change(t, s, v, func(root string) error { return b.Nest(filepath.Join(root, name)) })
			}
			return func(ctx context.Context) error { return s.DestroyVolume(ctx, v) }
		}})
	}
	return list
}

var errInjected = errors.New("injected failure")

// steps are the numbers of the steps at which an operation is broken, from 1:
// all that it has, with -short the last and one in the middle. It does the
// operation once for that, unbroken.
func steps(t *testing.T, b *Backend, op operation) []int {
	t.Helper()
	do := op.prepare(t, b)
	total := 0
	b.Inject(func(string) error {
		total++
		return nil
	})
	err := do(t.Context())
	b.Inject(nil)
	if err != nil {
		t.Errorf("%s: %v", op.name, err)
	}
	if total == 0 {
		t.Errorf("%s has no steps to break", op.name)
	}
	var chosen []int
	for n := 1; n <= total; n++ {
		if !testing.Short() || n == total || n == (total+1)/2 {
			chosen = append(chosen, n)
		}
	}
	t.Logf("%s: broken at %d of %d steps", op.name, len(chosen), total)
	return chosen
}

// failures breaks each operation at each of its steps. Afterwards the store is
// as before, and the operation works. An operation that is past the point of
// no return may also succeed and leave something partial, which is destroyed.
func failures(t *testing.T, b *Backend) {
	if b.Inject == nil {
		t.Skip("SKIPPED: this backend has no hook to inject failures")
	}
	s := b.Store
	// What the operations are not about; with -short it is not there, since it
	// would be described anew each time.
	var keep store.VolumeID
	var kept store.SnapshotID
	if !testing.Short() {
		keep = create(t, s)
		change(t, s, keep, File("kept", "kept", 0o644))
		kept = snapshot(t, s, keep)
	}
	for _, op := range operations(b) {
		for _, n := range steps(t, b, op) {
			destroyOthers(t, s, keep, kept)
			do := op.prepare(t, b)
			before := state(t, s)
			reached := 0
			var at string
			b.Inject(func(step string) error {
				if reached++; reached == n {
					at = step
					return errInjected
				}
				return nil
			})
			err := do(t.Context())
			b.Inject(nil)
			if reached < n {
				t.Errorf("%s had %d steps and now has %d", op.name, n, reached)
			}
			if err == nil {
				collectPartial(t, s)
				continue
			}
			if !errors.Is(err, errInjected) {
				t.Errorf("%s fails at %q: the first error is lost: %v", op.name, at, err)
			}
			same(t, fmt.Sprintf("store after %s failed at %q", op.name, at), before, state(t, s))
			if err := do(t.Context()); err != nil {
				t.Errorf("%s after it failed at %q: %v", op.name, at, err)
			}
		}
	}
}

// closeLost closes the files that a panic has left open in a store: the kernel
// does it for a process that crashes, here the collector does.
func closeLost() {
	for range 3 { // what one has found is closed before the next ends
		done := make(chan struct{})
		sentinel := new([32]byte)
		runtime.SetFinalizer(sentinel, func(*[32]byte) { close(done) })
		runtime.GC()
		<-done
	}
}

// destroyOthers destroys all but a volume and a snapshot: a store that grows
// with each step makes a case slow, since all of it is described each time.
func destroyOthers(t testing.TB, s store.Store, keep store.VolumeID, kept store.SnapshotID) {
	t.Helper()
	items, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []store.Kind{store.KindVolume, store.KindSnapshot} { // a backend may need a snapshot for its clones
		for _, i := range items {
			switch {
			case i.Kind != kind, keep != "" && i.Volume == keep, kept != "" && i.Snapshot == kept:
			case kind == store.KindVolume:
				err = errors.Join(err, s.DestroyVolume(t.Context(), i.Volume))
			default:
				err = errors.Join(err, s.DestroySnapshot(t.Context(), i.Snapshot))
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// collectPartial destroys what is partial.
func collectPartial(t testing.TB, s store.Store) (found int) {
	t.Helper()
	items, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range items {
		if !i.Partial {
			continue
		}
		found++
		if i.Kind == store.KindVolume {
			if _, err = s.MountVolume(t.Context(), i.Volume); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a partial volume can be mounted: %v", err)
			}
			err = s.DestroyVolume(t.Context(), i.Volume)
		} else {
			if _, err = s.MountSnapshot(t.Context(), i.Snapshot); !errors.Is(err, store.ErrNotFound) {
				t.Errorf("a partial snapshot can be mounted: %v", err)
			}
			err = s.DestroySnapshot(t.Context(), i.Snapshot)
		}
		if err != nil {
			t.Errorf("a partial item cannot be destroyed: %v", err)
		}
	}
	return found
}

// crashes stops each operation dead before each of its steps. When what is
// partial has been destroyed, the store is as before or as after.
func crashes(t *testing.T, b *Backend) {
	if b.Inject == nil {
		t.Skip("SKIPPED: this backend has no hook to inject failures")
	}
	s := b.Store
	for _, op := range operations(b) {
		for _, n := range steps(t, b, op) {
			destroyOthers(t, s, "", "")
			do := op.prepare(t, b)
			before := state(t, s)
			reached := 0
			crash := func(string) error {
				if reached++; reached == n {
					panic(errInjected)
				}
				return nil
			}
			crashed := func() (crashed bool) {
				defer func() {
					if err := recover(); err == errInjected {
						crashed = true
					} else if err != nil {
						panic(err)
					}
				}()
				b.Inject(crash)
				defer b.Inject(nil)
				if err := do(t.Context()); err != nil {
					t.Errorf("%s: %v", op.name, err)
				}
				return false
			}()
			if !crashed {
				t.Errorf("%s had %d steps and now has %d", op.name, n, reached)
				continue
			}
			closeLost()
			partial := collectPartial(t, s)
			middle := state(t, s)
			if middle == before && partial == 0 {
				// Nothing has happened yet: the operation works now.
				if err := do(t.Context()); err != nil {
					t.Errorf("%s after a crash before step %d: %v", op.name, n, err)
				}
				continue
			}
			if diff := Diff(before, middle); strings.Contains(diff, "partial=true") {
				t.Errorf("%s after a crash before step %d:\n%s", op.name, n, diff)
			}
			if err := do(t.Context()); err != nil && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("%s after a crash before step %d: %v", op.name, n, err)
			}
		}
	}
}

func cancelled(t *testing.T, b *Backend) {
	for _, op := range operations(b) {
		do := op.prepare(t, b)
		before := state(t, b.Store)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := do(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: got %v, want context.Canceled", op.name, err)
		}
		same(t, "store after "+op.name, before, state(t, b.Store))
	}
}

func concurrency(t *testing.T, b *Backend) {
	s, ctx := b.Store, t.Context()
	base := create(t, s)
	change(t, s, base, Many("many", 50))
	id := snapshot(t, s, base)
	want := describeSnapshot(t, s, id)
	workers, rounds := 8, 5
	if testing.Short() {
		workers, rounds = 4, 2
	}
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			word := fmt.Sprint("worker ", worker)
			v := store.NewVolumeID()
			if err := s.Clone(ctx, id, v); err != nil {
				t.Errorf("%s: %v", word, err)
				return
			}
			m, err := s.MountVolume(ctx, v)
			if err != nil {
				t.Errorf("%s: %v", word, err)
				return
			}
			for round := range rounds {
				text := fmt.Sprint(word, " round ", round)
				if err := os.WriteFile(filepath.Join(m.Path(), "word"), []byte(text), 0o644); err != nil {
					t.Error(err)
				}
				snap := store.NewSnapshotID()
				if err := s.Snapshot(ctx, v, snap); err != nil {
					t.Errorf("%s: %v", text, err)
					continue
				}
				sm, err := s.MountSnapshot(ctx, snap)
				if err != nil {
					t.Errorf("%s: %v", text, err)
					continue
				}
				if got, err := os.ReadFile(filepath.Join(sm.Path(), "word")); string(got) != text {
					t.Errorf("%s: the snapshot says %q, %v", text, got, err)
				}
				if _, err := s.List(ctx); err != nil {
					t.Errorf("%s: List: %v", text, err)
				}
				if err := errors.Join(sm.Unmount(ctx), s.DestroySnapshot(ctx, snap)); err != nil {
					t.Errorf("%s: %v", text, err)
				}
			}
			if err := errors.Join(m.Unmount(ctx), s.DestroyVolume(ctx, v)); err != nil {
				t.Errorf("%s: %v", word, err)
			}
		})
	}
	group.Wait()
	same(t, "the snapshot that all cloned", want, describeSnapshot(t, s, id))
	items, err := s.List(ctx)
	if err != nil || len(items) != 2 {
		t.Errorf("the store holds %v, %v", items, err)
	}
}

// oneWinner lets several callers do the same thing at once: one succeeds.
func oneWinner(t *testing.T, b *Backend) {
	s, ctx := b.Store, t.Context()
	race := func(what string, allowed []error, do func() error) {
		t.Helper()
		var group sync.WaitGroup
		var lock sync.Mutex
		won := 0
		for range 8 {
			group.Go(func() {
				err := do()
				lock.Lock()
				defer lock.Unlock()
				if err == nil {
					won++
				} else if !slices.ContainsFunc(allowed, func(class error) bool { return errors.Is(err, class) }) {
					t.Errorf("%s: a loser got %v", what, err)
				}
			})
		}
		group.Wait()
		if won != 1 {
			t.Errorf("%s: %d callers succeeded", what, won)
		}
	}
	v, id, w := store.NewVolumeID(), store.NewSnapshotID(), store.NewVolumeID()
	exists, gone := []error{store.ErrExists}, []error{store.ErrNotFound, store.ErrInUse}
	race("CreateVolume", exists, func() error { return s.CreateVolume(ctx, v) })
	race("Snapshot", exists, func() error { return s.Snapshot(ctx, v, id) })
	race("Clone", exists, func() error { return s.Clone(ctx, id, w) })
	race("DestroyVolume", gone, func() error { return s.DestroyVolume(ctx, w) })
	race("DestroySnapshot", gone, func() error { return s.DestroySnapshot(ctx, id) })
	race("DestroyVolume", gone, func() error { return s.DestroyVolume(ctx, v) })
	if items, err := s.List(ctx); err != nil || len(items) != 0 {
		t.Errorf("the store holds %v, %v", items, err)
	}
}

// manySnapshots takes 1,000 snapshots (50 with -short).
func manySnapshots(t *testing.T, b *Backend) {
	s := b.Store
	count := 1000
	if testing.Short() {
		count = 50
	}
	v := create(t, s)
	change(t, s, v, Many("many", 20))
	m := mounted(t, s, store.Item{Kind: store.KindVolume, Volume: v})
	ids := make([]store.SnapshotID, count)
	times := make([]time.Duration, count)
	for n := range ids {
		if err := os.WriteFile(filepath.Join(m.Path(), "number"), fmt.Appendln(nil, n), 0o644); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		ids[n] = snapshot(t, s, v)
		times[n] = time.Since(begin)
	}
	unmount(t, m)
	tenth := count / 10
	first, last := median(times[:tenth]), median(times[count-tenth:])
	t.Logf("a snapshot takes %v at first, %v after %d", first, last, count)
	if last > 10*first+20*time.Millisecond {
		t.Errorf("a snapshot took %v at first and %v after %d others", first, last, count)
	}
	items, err := s.List(t.Context())
	if err != nil || len(items) != count+1 {
		t.Fatalf("List names %d items, %v", len(items), err)
	}
	for n, id := range ids {
		m := mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: id})
		if text, err := os.ReadFile(filepath.Join(m.Path(), "number")); string(text) != fmt.Sprintln(n) {
			t.Errorf("snapshot %d says %q, %v", n, text, err)
		}
		unmount(t, m)
	}
	for n, id := range ids {
		if n%2 == 0 {
			if err := s.DestroySnapshot(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	}
	items, err = s.List(t.Context())
	if err != nil || len(items) != count/2+1 {
		t.Errorf("List names %d items, %v", len(items), err)
	}
}

func median(times []time.Duration) time.Duration {
	sorted := slices.Clone(times)
	slices.Sort(sorted)
	return sorted[len(sorted)/2]
}

func usage(t *testing.T, b *Backend) {
	s := b.Store
	read := func() store.Usage {
		t.Helper()
		unix.Sync()
		u, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Size <= 0 || u.Used < 0 || u.Available < 0 || u.Used > u.Size || u.Available > u.Size-u.Used {
			t.Errorf("it makes no sense: %+v", u)
		}
		return u
	}
	v := create(t, s)
	before := read()
	const size = 16 << 20
	noise := make([]byte, size)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(noise)
	change(t, s, v, func(root string) error { return os.WriteFile(filepath.Join(root, "noise"), noise, 0o644) })
	full := read()
	if grown := full.Used - before.Used; grown < size/2 || grown > 4*size {
		t.Errorf("%d bytes were written, and %d more are used", size, grown)
	}
	id := snapshot(t, s, v)
	clone(t, s, id)
	if grown := read().Used - full.Used; grown > size/2 {
		t.Errorf("a snapshot and a clone of %d bytes take %d", size, grown)
	}
}

func keptFiles(t *testing.T, b *Backend) {
	keeper, ok := b.Store.(store.Keeper)
	if !ok {
		t.Skip("SKIPPED: this backend keeps no files")
	}
	ctx := t.Context()
	if _, err := keeper.Kept(ctx, "catalog"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nothing was kept: %v", err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "../a", "/a", ".hidden", "A", "a b", "a\x00", "-a", strings.Repeat("a", 65)} {
		if err := keeper.Keep(ctx, name, strings.NewReader("x")); !errors.Is(err, store.ErrBadName) {
			t.Errorf("Keep %q: %v", name, err)
		}
		if _, err := keeper.Kept(ctx, name); !errors.Is(err, store.ErrBadName) {
			t.Errorf("Kept %q: %v", name, err)
		}
	}
	read := func(k store.Keeper) string {
		t.Helper()
		file, err := k.Kept(ctx, "catalog.db-1")
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		text, err := io.ReadAll(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	first, second := strings.Repeat("first", 100_000), "second"
	for _, text := range []string{first, second} {
		if err := keeper.Keep(ctx, "catalog.db-1", strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		if read(keeper) != text {
			t.Error("what is kept is not what was given")
		}
	}
	broken := io.MultiReader(bytes.NewReader([]byte("third")), brokenReader{})
	if err := keeper.Keep(ctx, "catalog.db-1", broken); !errors.Is(err, errInjected) {
		t.Errorf("a reader that fails: %v", err)
	}
	for n, s := range reopened(t, b) {
		if got := read(s.(store.Keeper)); got != second {
			t.Errorf("%s: the file says %.20q", n, got)
		}
	}
	var group sync.WaitGroup
	for worker := range 8 {
		group.Go(func() {
			text := strings.Repeat(fmt.Sprint(worker), 50_000)
			if err := keeper.Keep(ctx, "catalog.db-1", strings.NewReader(text)); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := read(keeper); len(got) != 50_000 || strings.Count(got, got[:1]) != 50_000 {
		t.Errorf("several writers were mixed: %d bytes", len(got))
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errInjected }
