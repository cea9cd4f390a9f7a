package diff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/image/tool"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

func newStore(t testing.TB) *btrfs.Store {
	t.Helper()
	storetest.RequireRoot(t)
	dir := t.TempDir()
	s, err := btrfs.Init(t.Context(), btrfs.Options{File: filepath.Join(dir, "store.btrfs"), RunDir: filepath.Join(dir, "run"), Size: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Detach(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// snapshot makes a snapshot of what appliers make of base, and returns its root.
func snapshot(t testing.TB, s *btrfs.Store, base store.SnapshotID, appliers ...storetest.Applier) (store.SnapshotID, string) {
	t.Helper()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	var err error
	if base == "" {
		err = s.CreateVolume(t.Context(), v)
	} else {
		err = s.Clone(t.Context(), base, v)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	err = storetest.Apply(appliers...)(m.Path())
	if err := errors.Join(err, m.Unmount(t.Context()), s.Snapshot(t.Context(), v, id), s.DestroyVolume(t.Context(), v)); err != nil {
		t.Fatal(err)
	}
	mount, err := s.MountSnapshot(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mount.Unmount(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return id, mount.Path()
}

func text(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %q", c.Kind, c.Path)
		for _, a := range c.Aspects {
			fmt.Fprintf(&b, " %s", a)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func files(t testing.TB, a, b string, o Options) []Change {
	t.Helper()
	changes, err := Files(t.Context(), a, b, o)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

var edits = []storetest.Applier{
	storetest.File("new", "file", 0o644), storetest.Dir("folder/deep", 0o755), storetest.File("folder/deep/x", "", 0o644),
	storetest.Remove("spool"), storetest.Remove("-rf"),
	sameLength("big", "X"), storetest.File("empty", "no more", 0o644),
	storetest.Chmod("wall", 0o755), storetest.Chown("none", 7, 8), storetest.Capability("ping", "cap_net_admin=ep"),
	storetest.ACL("etc/shadow", "u:34:r--"), storetest.Xattr("etc", "user.binary", "else"),
	storetest.Remove("link-to-link"), storetest.Symlink("elsewhere", "link-to-link"),
	storetest.Remove("fifo"), storetest.Dir("fifo", 0o755), storetest.File("fifo/inside", "a folder now", 0o644),
	storetest.Remove("both"), storetest.File("both", "a file now", 0o644),
	storetest.Remove("null"), storetest.Node("null", 0o020666, 1, 5),
	storetest.Remove("passwd"), storetest.File("passwd", "root:x:0:0::/root:/bin/sh\n", 0o644),
	storetest.Rename("*", "moved"), storetest.Chtime("sticky", time.Unix(99, 0)),
}

// sameLength changes a byte and keeps size and modification time.
func sameLength(name, with string) storetest.Applier {
	return func(root string) error {
		path := filepath.Join(root, name)
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		file, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = file.WriteAt([]byte(with), info.Size()/2)
		return errors.Join(err, file.Close(), os.Chtimes(path, info.ModTime(), info.ModTime()))
	}
}

func TestFiles(t *testing.T) {
	s := newStore(t)
	one, oldRoot := snapshot(t, s, "", storetest.AllMetadata())
	common := time.Now()
	waitForClock(t, oldRoot, common)
	_, newRoot := snapshot(t, s, one, edits...)
	_, again := snapshot(t, s, one)
	if changes := files(t, oldRoot, again, Options{Times: true}); len(changes) > 0 {
		t.Errorf("a clone differs:\n%s", text(changes))
	}
	got := text(files(t, oldRoot, newRoot, Options{}))
	golden(t, "testdata/edits.txt", got)

	// The other way round.
	back := files(t, newRoot, oldRoot, Options{})
	swap := strings.NewReplacer("added ", "removed ", "removed ", "added ")
	if swapped := swap.Replace(text(back)); swapped != got {
		t.Errorf("backwards:\n%s", storetest.Diff(got, swapped))
	}
	if shared := text(files(t, oldRoot, newRoot, Options{Common: common})); shared != got {
		t.Errorf("with a shared history:\n%s", storetest.Diff(got, shared))
	}
	if one := text(files(t, oldRoot, newRoot, Options{Workers: 1})); one != got {
		t.Errorf("with one worker:\n%s", storetest.Diff(got, one))
	}

	// Without a shared history: the same trees on another file system.
	other := newStore(t)
	_, copied := snapshot(t, other, "", func(root string) error {
		return tool.Run(t.Context(), tool.Options{}, "cp", "-a", newRoot+"/.", root)
	})
	if foreign := text(files(t, oldRoot, copied, Options{})); foreign != got {
		t.Errorf("without a shared history:\n%s", storetest.Diff(got, foreign))
	}
	if same := files(t, newRoot, copied, Options{Times: true}); len(same) > 0 {
		t.Errorf("a copy differs:\n%s", text(same))
	}

	// What find, stat, getfattr, getfacl and sha256sum say.
	if a, b := paths(files(t, oldRoot, newRoot, Options{Times: true})), described(t, oldRoot, newRoot); !slices.Equal(a, b) {
		t.Errorf("got  %q\nwant %q", a, b)
	}
}

// waitForClock waits until the file system's clock, which ticks slower than
// that of time.Now, has passed a moment.
func waitForClock(t *testing.T, root string, moment time.Time) {
	t.Helper()
	probe := filepath.Join(t.TempDir(), "probe")
	for {
		if err := os.WriteFile(probe, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(probe)
		if err != nil {
			t.Fatal(err)
		}
		if info.ModTime().After(moment) {
			return
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if os.Getenv("UPDATE_GOLDEN") != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := storetest.Diff(string(want), got); diff != "" {
		t.Errorf("not as in %s (UPDATE_GOLDEN=1 writes it):\n%s", file, diff)
	}
}

func paths(changes []Change) []string {
	var names []string
	for _, c := range changes {
		names = append(names, c.Path)
	}
	return names
}

// described returns the paths whose descriptions differ.
func described(t *testing.T, a, b string) []string {
	t.Helper()
	lines := [2]map[string]string{{}, {}}
	for i, root := range []string{a, b} {
		described, err := storetest.Describe(t.Context(), root, storetest.AllFields)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(described) {
			quoted, err := strconv.QuotedPrefix(line)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := strconv.Unquote(quoted)
			lines[i][filepath.Clean("/"+name)] = line
		}
	}
	var names []string
	for name, line := range lines[0] {
		if lines[1][name] != line {
			names = append(names, name)
		}
	}
	for name := range lines[1] {
		if _, ok := lines[0][name]; !ok {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func TestFilesRefuses(t *testing.T) {
	dir := t.TempDir()
	if _, err := Files(t.Context(), dir, filepath.Join(dir, "missing"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Files(ctx, dir, dir, Options{}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

func BenchmarkFiles(b *testing.B) {
	s := newStore(b)
	one, oldRoot := snapshot(b, s, "", storetest.Many("many", 50000))
	common := time.Now()
	_, newRoot := snapshot(b, s, one, storetest.File("many/0007/file-007123", "another", 0o644))
	for name, o := range map[string]Options{"contents": {}, "shared": {Common: common}} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				if changes := files(b, oldRoot, newRoot, o); len(changes) != 1 {
					b.Fatalf("%s", text(changes))
				}
			}
			b.ReportMetric(50000*float64(b.N)/b.Elapsed().Seconds(), "files/s")
		})
	}
}

// TestLinksOfWhatBecameAnother: a file that loses a name to something of another
// type is linked with others than before, and so is one that gains one.
func TestLinksOfWhatBecameAnother(t *testing.T) {
	roots := [2]string{t.TempDir(), t.TempDir()}
	for i, linked := range []string{"lost", "gained"} {
		for _, name := range []string{"lost", "gained"} {
			path := filepath.Join(roots[i], name)
			if err := os.WriteFile(path, []byte("same"), 0o644); err != nil {
				t.Fatal(err)
			}
			var err error
			if name == linked {
				err = os.Link(path, filepath.Join(roots[i], name+"-too"))
			} else {
				err = os.Symlink("elsewhere", filepath.Join(roots[i], name+"-too"))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	changes, err := Files(t.Context(), roots[0], roots[1], Options{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string][]Aspect{}
	for _, c := range changes {
		got[c.Path] = c.Aspects
	}
	for path, want := range map[string]Aspect{"/lost": Links, "/gained": Links, "/lost-too": Type, "/gained-too": Type} {
		if !slices.Equal(got[path], []Aspect{want}) {
			t.Errorf("%s: %v, want %v", path, got[path], want)
		}
	}
	if len(got) != 4 {
		t.Errorf("%v", got)
	}
}
