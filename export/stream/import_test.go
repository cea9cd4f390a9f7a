package stream

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/image/tool"
)

// newStore makes a btrfs store in a loop file.
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

// snapshotOf makes a snapshot of a new volume that appliers have filled.
func snapshotOf(t testing.TB, s store.Store, appliers ...storetest.Applier) store.SnapshotID {
	t.Helper()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	if err := s.CreateVolume(t.Context(), v); err != nil {
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
	return id
}

func mountOf(t testing.TB, s store.Store, id store.SnapshotID) string {
	t.Helper()
	m, err := s.MountSnapshot(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Unmount(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return m.Path()
}

func describe(t testing.TB, root string) string {
	t.Helper()
	text, err := storetest.Describe(t.Context(), root, storetest.AllFields)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func portableManifest(id store.SnapshotID) Manifest {
	return Manifest{Kind: Portable, Tree: "debian", Number: 3, Snapshot: id}
}

// exported returns a portable stream of a snapshot.
func exported(t testing.TB, s store.Store, id store.SnapshotID) []byte {
	t.Helper()
	var out bytes.Buffer
	result, err := Export(t.Context(), &out, Source{Manifest: portableManifest(id), Root: mountOf(t, s, id)}, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if result.OmittedCount > 0 {
		t.Logf("left out: %v", result.Omitted)
	}
	return out.Bytes()
}

// withoutSockets takes the lines of sockets out of a description.
func withoutSockets(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.Contains(line, `" s mode=`) {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func TestPortableKeepsAll(t *testing.T) {
	source, target := newStore(t), newStore(t)
	id := snapshotOf(t, source, storetest.AllMetadata(), storetest.Xattr("etc/passwd", "user.a=b%c", "odd name"))
	var out bytes.Buffer
	result, err := Export(t.Context(), &out, Source{Manifest: portableManifest(id), Root: mountOf(t, source, id)}, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if result.OmittedCount != 1 || len(result.Omitted) != 1 || result.Omitted[0] != "/socket" {
		t.Errorf("left out: %d, %q", result.OmittedCount, result.Omitted)
	}
	stream := out.Bytes()
	if again := exported(t, source, id); !bytes.Equal(again, stream) {
		t.Error("the same snapshot gives two streams")
	}
	r, err := Open(bytes.NewReader(stream), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Import(t.Context(), target, r, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	want := withoutSockets(describe(t, mountOf(t, source, id)))
	if diff := storetest.Diff(want, describe(t, mountOf(t, target, id))); diff != "" {
		t.Errorf("what came out differs:\n%s", diff)
	}
	// The holes are there, too.
	for name, most := range map[string]int64{"hole": 0, "sparse": 1 << 20} {
		info, err := tool.Output(t.Context(), tool.Options{}, "stat", "-c", "%b", filepath.Join(mountOf(t, target, id), name))
		if err != nil {
			t.Fatal(err)
		}
		var blocks int64
		for _, c := range strings.TrimSpace(string(info)) {
			blocks = blocks*10 + int64(c-'0')
		}
		if blocks*512 > most {
			t.Errorf("%s takes %d bytes", name, blocks*512)
		}
	}
	items, err := target.List(t.Context())
	if err != nil || len(items) != 1 {
		t.Errorf("the store holds %v, %v", items, err)
	}
	t.Run("tar", func(t *testing.T) {
		root := mountOf(t, source, id)
		other := newStore(t)
		copied := snapshotOf(t, other, func(dir string) error {
			return tool.Run(t.Context(), tool.Options{Stdin: bytes.NewReader(stream)}, "sh", "-c",
				`zstd -dc | tar -x -p --numeric-owner --acls --xattrs --xattrs-include='*' -C "$0"`, dir)
		})
		if diff := storetest.Diff(withoutSockets(describe(t, root)), describe(t, mountOf(t, other, copied))); diff != "" {
			t.Errorf("what tar(1) unpacks differs:\n%s", diff)
		}
	})
	t.Run("archive", func(t *testing.T) {
		// GNU tar by the name of the file, and Go's reader.
		file := filepath.Join(t.TempDir(), "x.tar.zst")
		if err := os.WriteFile(file, stream, 0o600); err != nil {
			t.Fatal(err)
		}
		var complaints bytes.Buffer
		if _, err := tool.Output(t.Context(), tool.Options{Stderr: &complaints}, "tar", "-tf", file); err != nil || complaints.Len() > 0 {
			t.Errorf("%v %s", err, &complaints)
		}
		r, err := Open(bytes.NewReader(stream), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for archive := tar.NewReader(r); ; {
			if _, err := archive.Next(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
		}
	})
}

func TestNothingShowsOfABadStream(t *testing.T) {
	source, target := newStore(t), newStore(t)
	big := string(payload(1, 2<<20))
	id := snapshotOf(t, source, storetest.File("a", big, 0o644), storetest.File("z", "end", 0o644))
	stream := exported(t, source, id)
	spoilt := bytes.Clone(stream)
	spoilt[len(spoilt)-3] ^= 1
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"cut":           {stream[:len(stream)/2], ErrTruncated},
		"cut at end":    {stream[:len(stream)-1], ErrTruncated},
		"spoilt at end": {spoilt, ErrDamaged},
	} {
		r, err := Open(bytes.NewReader(c.stream), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := Import(t.Context(), target, r, ImportOptions{}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		} else {
			t.Logf("%s: %v", name, err)
		}
		if items, err := target.List(t.Context()); err != nil || len(items) > 0 {
			t.Errorf("%s: the store holds %v, %v", name, items, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r, err := Open(bytes.NewReader(stream), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Import(ctx, target, r, ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	r, err = Open(bytes.NewReader(stream), ReaderOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := Import(t.Context(), source, r, ImportOptions{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("a snapshot that is there: %v", err)
	}
}

// An archive made by someone else reaches nothing outside of its directory.
func TestHostileArchive(t *testing.T) {
	storetest.RequireRoot(t)
	top := t.TempDir()
	victim := filepath.Join(top, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o600); err != nil {
		t.Fatal(err)
	}
	inside := func(h tar.Header) tar.Header { h.Mode = 0o666; return h }
	for name, headers := range map[string][]tar.Header{
		"dots":              {inside(tar.Header{Name: "../victim", Size: 4})},
		"absolute":          {inside(tar.Header{Name: victim, Size: 4})},
		"symlink file":      {{Name: "x", Typeflag: tar.TypeSymlink, Linkname: "../victim"}, inside(tar.Header{Name: "x", Size: 4})},
		"symlink directory": {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: ".."}, inside(tar.Header{Name: "d/victim", Size: 4})},
		"symlink chain":     {{Name: "a", Typeflag: tar.TypeSymlink, Linkname: "."}, {Name: "a/b", Typeflag: tar.TypeSymlink, Linkname: ".."}, inside(tar.Header{Name: "b/victim", Size: 4})},
		"absolute symlink":  {{Name: "d", Typeflag: tar.TypeSymlink, Linkname: top}, inside(tar.Header{Name: "d/victim", Size: 4})},
		"hard link":         {{Name: "h", Typeflag: tar.TypeLink, Linkname: victim}, inside(tar.Header{Name: "h", Size: 4})},
		"hard link dots":    {{Name: "h", Typeflag: tar.TypeLink, Linkname: "../victim"}, inside(tar.Header{Name: "h", Size: 4})},
		"mode by symlink":   {{Name: "x", Typeflag: tar.TypeSymlink, Linkname: victim}, {Name: "x", Typeflag: tar.TypeLink, Linkname: "x", Mode: 0o777}},
		"sparse name":       {inside(tar.Header{Name: "s", Size: 4, PAXRecords: map[string]string{"path": "../victim"}})},
	} {
		root := filepath.Join(top, "root")
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		var archive bytes.Buffer
		w := tar.NewWriter(&archive)
		for _, h := range headers {
			h.Uid, h.Gid = 4242, 4242
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(name, err)
			}
			if h.Size > 0 {
				_, _ = w.Write([]byte("evil"))
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		stream := writeStream(t, portableManifest(store.NewSnapshotID()), archive.Bytes(), WriterOptions{})
		r, err := Open(bytes.NewReader(stream), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		err = Unpack(t.Context(), r, root, nil)
		t.Logf("%s: %v", name, err)
		text, readErr := os.ReadFile(victim)
		info, statErr := os.Stat(victim)
		if readErr != nil || statErr != nil || string(text) != "untouched" || info.Mode() != 0o600 {
			t.Fatalf("%s: the file outside is now %q, %v", name, text, info)
		}
		if entries, err := os.ReadDir(top); err != nil || len(entries) != 2 {
			t.Errorf("%s: %v is outside", name, entries)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKindsThatAreNotTaken(t *testing.T) {
	s := newStore(t)
	m := testManifest()
	m.Kind = "punchcards"
	for _, o := range []ImportOptions{{}, {PortableOnly: true}} {
		r, err := Open(bytes.NewReader(writeStream(t, m, []byte("x"), WriterOptions{})), ReaderOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := Import(t.Context(), s, r, o); !errors.Is(err, ErrKind) || !strings.Contains(err.Error(), "--portable") {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

// A source that fails leaves a stream that nobody takes for a whole one.
func TestSourceThatFails(t *testing.T) {
	m := testManifest()
	for name, native := range map[string]io.ReadCloser{
		"read":  failing{strings.NewReader("abc"), errors.New("no more"), nil},
		"close": failing{strings.NewReader("abc"), io.EOF, errors.New("exit status 1")},
	} {
		var out bytes.Buffer
		if _, err := Export(t.Context(), &out, Source{Manifest: m, Native: native}, WriterOptions{}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := read(out.Bytes()); !errors.Is(err, ErrTruncated) {
			t.Errorf("%s: the stream reads as %v", name, err)
		}
	}
}

type failing struct {
	io.Reader
	read, closed error
}

func (f failing) Read(p []byte) (int, error) {
	n, err := f.Reader.Read(p)
	if errors.Is(err, io.EOF) {
		err = f.read
	}
	return n, err
}

func (f failing) Close() error { return f.closed }

func TestNativeThereAndBack(t *testing.T) {
	source, target := newStore(t), newStore(t)
	one := snapshotOf(t, source, storetest.AllMetadata())
	send := func(id, base store.SnapshotID) []byte {
		native, err := source.Send(t.Context(), id, base)
		if err != nil {
			t.Fatal(err)
		}
		m := Manifest{Kind: Kind(source.SendKind()), Tree: "debian", Number: 1, Snapshot: id, Parent: base, Base: base}
		var out bytes.Buffer
		if _, err := Export(t.Context(), &out, Source{Manifest: m, Native: native}, WriterOptions{}); err != nil {
			t.Fatal(err)
		}
		return out.Bytes()
	}
	receive := func(stream []byte) error {
		r, err := Open(bytes.NewReader(stream), ReaderOptions{})
		if err != nil {
			return err
		}
		return Import(t.Context(), target, r, ImportOptions{})
	}
	v, two := store.NewVolumeID(), store.NewSnapshotID()
	err := errors.Join(source.Clone(t.Context(), one, v), source.Snapshot(t.Context(), v, two))
	if err != nil {
		t.Fatal(err)
	}
	if err := receive(send(two, one)); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("without its base: %v", err)
	}
	for _, stream := range [][]byte{send(one, ""), send(two, one)} {
		spoilt := bytes.Clone(stream)
		spoilt[len(spoilt)-1] ^= 1
		before, err := target.List(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := receive(spoilt); !errors.Is(err, ErrDamaged) {
			t.Errorf("spoilt: %v", err)
		}
		if err := receive(stream[:len(stream)/2]); !errors.Is(err, ErrTruncated) {
			t.Errorf("cut: %v", err)
		}
		if after, err := target.List(t.Context()); err != nil || len(after) != len(before) {
			t.Errorf("%v, %v is there after bad streams", after, err)
		}
		if err := receive(stream); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []store.SnapshotID{one, two} {
		if diff := storetest.Diff(describe(t, mountOf(t, source, id)), describe(t, mountOf(t, target, id))); diff != "" {
			t.Errorf("%s differs:\n%s", id, diff)
		}
	}
}

// The stream of a snapshot in which 1 % of the files were replaced is about as
// long as these files are when compressed.
func TestDifferenceIsSmall(t *testing.T) {
	s := newStore(t)
	const count, size = 2000, 20 << 10
	write := func(root string, seed uint64, step int) error {
		for n := 0; n < count; n += step {
			if err := os.WriteFile(filepath.Join(root, "file-"+strconv.Itoa(n)), payload(seed+uint64(n), size), 0o644); err != nil {
				return err
			}
		}
		return nil
	}
	one := snapshotOf(t, s, func(root string) error { return write(root, 1, 1) })
	v, two := store.NewVolumeID(), store.NewSnapshotID()
	if err := s.Clone(t.Context(), one, v); err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	err = write(m.Path(), 1e6, 100)
	if err := errors.Join(err, m.Unmount(t.Context()), s.Snapshot(t.Context(), v, two)); err != nil {
		t.Fatal(err)
	}
	native, err := s.Send(t.Context(), two, one)
	if err != nil {
		t.Fatal(err)
	}
	result, err := Export(t.Context(), io.Discard, Source{Manifest: Manifest{Kind: Btrfs, Snapshot: two, Base: one}, Native: native}, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var replaced []byte
	for n := 0; n < count; n += 100 {
		replaced = append(replaced, payload(1e6+uint64(n), size)...)
	}
	compressed := int64(len(writeStream(t, testManifest(), replaced, WriterOptions{})))
	if most := compressed*13/10 + 1e6; result.Stream > most {
		t.Errorf("the stream has %d bytes; the files have %d when compressed", result.Stream, compressed)
	}
	if result.Stream > compressed*13/10+64<<10 { // the megabyte is not needed here
		t.Errorf("the stream has %d bytes more than the files", result.Stream-compressed)
	}
}

// The memory that is taken does not grow with the payload.
func TestMemoryIsBounded(t *testing.T) {
	const workers, most = 2, 150 << 20
	pattern := payload(4, 1<<20)
	measure := func(size int64) uint64 {
		w, err := NewWriter(io.Discard, testManifest(), WriterOptions{Workers: workers})
		if err != nil {
			t.Fatal(err)
		}
		defer w.Abort()
		for n := int64(0); n < size; n += int64(len(pattern)) {
			if _, err := w.Write(pattern); err != nil {
				t.Fatal(err)
			}
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
		runtime.ReadMemStats(&after)
		return max(before.HeapInuse, after.HeapInuse)
	}
	runtime.GC()
	small, large := measure(64<<20), measure(256<<20)
	t.Logf("%d MB for 64 MB, %d MB for 256 MB", small>>20, large>>20)
	if large > workers*most {
		t.Errorf("%d bytes are in use, with %d workers", large, workers)
	}
}
