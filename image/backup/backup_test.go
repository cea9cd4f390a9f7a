package backup

import (
	"archive/tar"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/keptfiles"
)

// newState makes a state folder with a catalog that says who it is.
func newState(t *testing.T, name string) (image.Layout, *catalog.Catalog) {
	t.Helper()
	layout := image.Layout{Dir: filepath.Join(t.TempDir(), "state")}
	must(t, layout.Make())
	cat, err := catalog.Create(t.Context(), layout.Catalog())
	must(t, err)
	t.Cleanup(func() { _ = cat.Close() })
	must(t, cat.Update(t.Context(), func(tx *sql.Tx) error {
		if _, err := catalog.Begin(tx, catalog.Intent{Action: "build", Volumes: []store.VolumeID{store.NewVolumeID()}}); err != nil {
			return err
		}
		return catalog.SetMeta(tx, "name", name)
	}))
	for path, text := range map[string]string{
		"secrets/site.key":      strings.Repeat("k", 31) + name[:1],
		"secrets/nodes/n1/key":  "munge",
		"settings.yaml":         "a: b\n",
		"store/store.img":       strings.Repeat("big", 1000),
		"cache/packages/a.deb":  "package",
		"log/build/base.log":    "log",
		"locks/head.lock":       "",
		".scratch/backup-1/key": "cut",
	} {
		path = filepath.Join(layout.Dir, path)
		must(t, os.MkdirAll(filepath.Dir(path), 0o700))
		must(t, os.WriteFile(path, []byte(text), 0o600))
	}
	return layout, cat
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return string(text)
}

func nameOf(t *testing.T, layout image.Layout) (name string, intents int) {
	t.Helper()
	cat, err := catalog.Open(t.Context(), layout.Catalog())
	must(t, err)
	defer cat.Close()
	must(t, cat.View(t.Context(), func(tx *sql.Tx) error {
		name, _, err = catalog.Meta(tx, "name")
		list, listErr := catalog.Intents(tx)
		intents = len(list)
		return errors.Join(err, listErr)
	}))
	return name, intents
}

// scratchOf lists the temporary folders, those in use included.
func scratchOf(layout image.Layout) ([]string, error) {
	return filepath.Glob(filepath.Join(layout.Scratch(), "*"))
}

func backupOf(t *testing.T, layout image.Layout, cat *catalog.Catalog) []byte {
	t.Helper()
	var b bytes.Buffer
	_, err := Write(t.Context(), &b, layout, cat, "sidus test")
	must(t, err)
	return b.Bytes()
}

// bring restores a backup into a state folder.
func bring(t *testing.T, data []byte, layout image.Layout) (aside string, err error) {
	t.Helper()
	stage, err := NewStage(layout)
	must(t, err)
	defer func() { must(t, stage.Discard()) }()
	if _, err := Unpack(t.Context(), bytes.NewReader(data), stage.Layout.Dir); err != nil {
		return "", err
	}
	if err := stage.Prepare(t.Context(), nil); err != nil {
		return "", err
	}
	return stage.Install(time.Now())
}

func TestThereAndBack(t *testing.T) {
	from, cat := newState(t, "one")
	path := filepath.Join(t.TempDir(), "b.tar.zst")
	m, err := WriteFile(t.Context(), path, false, from, cat, "sidus test")
	must(t, err)
	info, err := os.Stat(path)
	must(t, err)
	if info.Mode() != 0o600 || !m.Secrets() || m.State != from.Dir {
		t.Errorf("mode %v, manifest %+v", info.Mode(), m)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	if left, _ := scratchOf(from); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	to := image.Layout{Dir: filepath.Join(t.TempDir(), "new", "state")}
	aside, err := bring(t, []byte(read(t, path)), to)
	must(t, err)
	if aside != "" {
		t.Errorf("something was put aside: %s", aside)
	}
	var got []string
	must(t, filepath.WalkDir(to.Dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			relative, _ := filepath.Rel(to.Dir, path)
			got = append(got, relative)
			if info, _ := d.Info(); info.Mode().Perm() != 0o600 && relative != "sidus.db" {
				t.Errorf("%s has the mode %v", relative, info.Mode())
			}
		}
		return err
	}))
	if list := strings.Join(got, " "); list != "secrets/nodes/n1/key secrets/site.key settings.yaml sidus.db" {
		t.Errorf("brought back: %s", list)
	}
	if read(t, to.SiteKey()) != read(t, from.SiteKey()) {
		t.Error("the key is another")
	}
	if name, intents := nameOf(t, to); name != "one" || intents != 0 {
		t.Errorf("the catalog is %q's with %d intents", name, intents)
	}
}

func TestWriteFileReplacesOnlyIfTold(t *testing.T) {
	layout, cat := newState(t, "one")
	path := filepath.Join(t.TempDir(), "b")
	must(t, os.WriteFile(path, []byte("mine"), 0o644))
	if _, err := WriteFile(t.Context(), path, false, layout, cat, ""); !errors.Is(err, fs.ErrExist) || read(t, path) != "mine" {
		t.Errorf("it was replaced: %v", err)
	}
	if _, err := WriteFile(t.Context(), filepath.Dir(path), true, layout, cat, ""); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a folder: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := WriteFile(ctx, path, true, layout, cat, ""); err == nil || read(t, path) != "mine" {
		t.Errorf("interrupted: %v", err)
	}
	_, err := WriteFile(t.Context(), path, true, layout, cat, "")
	must(t, err)
	if info, _ := os.Stat(path); info.Mode() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// While others write to the catalog, the copy is of one moment.
func TestBackupBesideWriters(t *testing.T) {
	layout, cat := newState(t, "one")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 50 {
			_ = cat.Update(context.Background(), func(tx *sql.Tx) error {
				for _, key := range []string{"a", "b"} {
					if err := catalog.SetMeta(tx, key, string(rune('0'+i))); err != nil {
						return err
					}
				}
				return nil
			})
		}
	}()
	for range 4 {
		to := image.Layout{Dir: t.TempDir()}
		_, err := bring(t, backupOf(t, layout, cat), to)
		must(t, err)
		copied, err := catalog.Open(t.Context(), to.Catalog())
		must(t, err)
		must(t, copied.View(t.Context(), func(tx *sql.Tx) error {
			a, _, _ := catalog.Meta(tx, "a")
			b, _, err := catalog.Meta(tx, "b")
			if a != b {
				t.Errorf("half a transaction: %q and %q", a, b)
			}
			return err
		}))
		must(t, copied.Close())
	}
	<-done
}

// Files that are replaced, and that come and go, while a backup is written are
// in it as they were, or not at all.
func TestBackupBesideReplacements(t *testing.T) {
	layout, cat := newState(t, "one")
	must(t, os.MkdirAll(layout.Recipes(), 0o700))
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		text := bytes.Repeat([]byte("x"), 1<<20)
		for i := 0; ; i++ {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			text[0] = byte(i)
			if err := keptfiles.Write(layout.Recipes(), "a.tar", bytes.NewReader(text)); err != nil {
				done <- err
				return
			}
			if i%3 == 0 {
				_ = os.Remove(filepath.Join(layout.Recipes(), "a.tar"))
			}
		}
	}()
	for range 20 {
		if _, err := bring(t, backupOf(t, layout, cat), image.Layout{Dir: t.TempDir()}); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	must(t, <-done)
}

// A state that is there is kept aside, with its store and caches in place.
func TestInstallKeepsTheOldAside(t *testing.T) {
	from, cat := newState(t, "one")
	data := backupOf(t, from, cat)
	to, old := newState(t, "two")
	if _, err := bring(t, data, to); !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "process ") {
		t.Fatalf("while its catalog is open: %v", err)
	}
	must(t, old.Close())
	if name, _ := nameOf(t, to); name != "two" || !strings.HasSuffix(read(t, to.SiteKey()), "t") {
		t.Fatal("a refused restore has changed something")
	}
	if !Occupied(to) || Occupied(image.Layout{Dir: t.TempDir()}) {
		t.Error("Occupied is wrong")
	}
	aside, err := bring(t, data, to)
	must(t, err)
	if name, _ := nameOf(t, to); name != "one" || !strings.HasSuffix(read(t, to.SiteKey()), "o") {
		t.Error("the new state is not there")
	}
	if name, _ := nameOf(t, image.Layout{Dir: aside}); name != "two" || !strings.HasSuffix(read(t, filepath.Join(aside, "secrets", "site.key")), "t") {
		t.Error("the old state is not aside")
	}
	if len(read(t, to.StoreFile())) != 3000 || read(t, filepath.Join(to.Cache(), "packages", "a.deb")) == "" {
		t.Error("the store has gone")
	}
	// Twice in one second.
	now := time.Now()
	if first, err := makeAside(to.Dir, now); err != nil {
		t.Error(err)
	} else if second, err := makeAside(to.Dir, now); err != nil || first == second {
		t.Errorf("%s and %s, %v", first, second, err)
	}
	// What is aside goes into no backup.
	opened, err := catalog.Open(t.Context(), to.Catalog())
	must(t, err)
	defer opened.Close()
	again, err := Write(t.Context(), &bytes.Buffer{}, to, opened, "")
	must(t, err)
	for _, f := range again.Files {
		if strings.HasPrefix(f.Path, asidePrefix) {
			t.Errorf("the backup has %s", f.Path)
		}
	}
}

// Whatever step of Install fails, all is as before. When it is killed there,
// no command takes what is there for a state, and another restore mends it.
func TestInstallFailsAtEveryStep(t *testing.T) {
	broken := errors.New("broken on purpose")
	from, cat := newState(t, "one")
	data := backupOf(t, from, cat)
	for n := 1; ; n++ {
		for _, killed := range []bool{false, true} {
			to, old := newState(t, "two")
			must(t, old.Close())
			stage, err := NewStage(to)
			must(t, err)
			_, err = Unpack(t.Context(), bytes.NewReader(data), stage.Layout.Dir)
			must(t, err)
			must(t, stage.Prepare(t.Context(), nil))
			step := 0
			stage.before = func(string) error {
				if step++; step < n {
					return nil
				}
				if killed {
					panic(broken)
				}
				return broken
			}
			err = func() (err error) {
				defer func() {
					if p := recover(); p != nil {
						err = broken
					}
				}()
				_, err = stage.Install(time.Now().Add(-time.Minute))
				return err
			}()
			if err == nil {
				if n != 7 { // three leave, three arrive
					t.Errorf("%d steps", n-1)
				}
				return
			}
			if !errors.Is(err, broken) {
				t.Fatal(err)
			}
			if !killed {
				must(t, stage.Discard())
				if name, _ := nameOf(t, to); name != "two" || !strings.HasSuffix(read(t, to.SiteKey()), "t") || read(t, filepath.Join(to.Dir, "settings.yaml")) == "" {
					t.Errorf("step %d: the old state is not as it was", n)
				}
				if left, _ := filepath.Glob(filepath.Join(to.Dir, asidePrefix+"*")); len(left) > 0 {
					t.Errorf("step %d left %v", n, left)
				}
				continue
			}
			if _, err := os.Stat(to.Catalog()); n > 1 && err == nil {
				t.Errorf("killed at step %d: there is a catalog", n)
			}
			_, err = bring(t, data, to)
			must(t, err)
			if name, _ := nameOf(t, to); name != "one" || !strings.HasSuffix(read(t, to.SiteKey()), "o") {
				t.Errorf("killed at step %d, and brought back: %q", n, name)
			}
		}
	}
}

func refused(t *testing.T, what string, data []byte, want error) {
	t.Helper()
	to, old := newState(t, "two")
	must(t, old.Close())
	before, err := names(to.Dir)
	must(t, err)
	if _, err := bring(t, data, to); !errors.Is(err, want) {
		t.Errorf("%s: %v, want %v", what, err, want)
	}
	after, err := names(to.Dir)
	must(t, err)
	if strings.Join(before, " ") != strings.Join(after, " ") {
		t.Errorf("%s: the state has %v instead of %v", what, after, before)
	}
	if name, _ := nameOf(t, to); name != "two" {
		t.Errorf("%s: the catalog is %q's", what, name)
	}
}

// pack makes an archive by hand.
func pack(t *testing.T, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	z, err := zstd.NewWriter(&b)
	must(t, err)
	w := tar.NewWriter(z)
	for i := 0; i < len(files); i += 2 {
		must(t, w.WriteHeader(&tar.Header{Name: files[i], Mode: 0o600, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}))
		_, err := w.Write([]byte(files[i+1]))
		must(t, err)
	}
	must(t, errors.Join(w.Close(), z.Close()))
	return b.Bytes()
}

func manifestText(t *testing.T, m Manifest) string {
	t.Helper()
	text, err := json.Marshal(m)
	must(t, err)
	return string(text)
}

func TestRefusesForeignAndNewer(t *testing.T) {
	refused(t, "nothing", nil, ErrForeign)
	refused(t, "text", []byte("hello, world"), ErrForeign)
	refused(t, "another archive", pack(t, "etc/passwd", "root"), ErrForeign)
	refused(t, "an archive with another manifest", pack(t, "manifest.json", `{"name":"app"}`), ErrForeign)
	refused(t, "no JSON", pack(t, "manifest.json", "hello"), ErrForeign)
	refused(t, "a newer format", pack(t, "manifest.json", manifestText(t, Manifest{Kind: kind, Format: Format + 1})), ErrNewer)
	zeros := strings.Repeat("0", 64)
	for _, path := range []string{"../x", "/etc/x", "a/../../x", "store/x", "cache/x", ".x", "a//b", "manifest.json", "sidus.db-wal", ""} {
		m := Manifest{Kind: kind, Format: 1, Files: []File{{catalogName, 0, zeros}, {path, 0, zeros}}}
		refused(t, "the path "+path, pack(t, "manifest.json", manifestText(t, m)), ErrDamaged)
	}
	refused(t, "no catalog", pack(t, "manifest.json", manifestText(t, Manifest{Kind: kind, Format: 1})), ErrDamaged)

	text := "no database, but long enough to be taken for one at first glance by nobody"
	size, sum, err := digest(func() string {
		path := filepath.Join(t.TempDir(), "x")
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}())
	must(t, err)
	m := Manifest{Kind: kind, Format: 1, Files: []File{{catalogName, size, sum}}}
	refused(t, "no database", pack(t, "manifest.json", manifestText(t, m), catalogName, text), ErrDamaged)
	refused(t, "more files than it names", pack(t, "manifest.json", manifestText(t, m), catalogName, text, "more", ""), ErrDamaged)
	refused(t, "another file", pack(t, "manifest.json", manifestText(t, m), "other", text), ErrDamaged)
	refused(t, "another content", pack(t, "manifest.json", manifestText(t, m), catalogName, strings.ToUpper(text)), ErrDamaged)

	layout, cat := newState(t, "one")
	must(t, cat.Update(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.Exec(`PRAGMA user_version = 9999`)
		return err
	}))
	refused(t, "a newer catalog", backupOf(t, layout, cat), ErrNewer)
}

func TestRefusesDamage(t *testing.T) {
	layout, cat := newState(t, "one")
	var b bytes.Buffer
	m, err := Write(t.Context(), &b, layout, cat, "sidus test")
	must(t, err)
	data := b.Bytes()
	for _, length := range []int{4, 20, len(data) / 3, len(data) / 2, len(data) - 5, len(data) - 1} {
		_, err := Unpack(t.Context(), bytes.NewReader(data[:length]), t.TempDir())
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("cut after %d of %d bytes: %v", length, len(data), err)
		}
	}
	for at := 4; at < len(data); at += max(1, len(data)/300) {
		altered := bytes.Clone(data)
		altered[at] ^= 0x10
		dir := t.TempDir()
		_, err := Unpack(t.Context(), bytes.NewReader(altered), dir)
		if _, sum, _ := digest(filepath.Join(dir, catalogName)); err == nil && sum == m.Files[0].SHA256 {
			continue // zstd has bits that mean nothing, and more than one way to say a thing
		}
		if !errors.Is(err, ErrDamaged) && !errors.Is(err, ErrForeign) {
			t.Errorf("byte %d altered: %v", at, err)
		}
	}
	for _, tail := range []string{"x", "\x00\x00\x00\x00", string(data)} {
		if _, err := Unpack(t.Context(), strings.NewReader(string(data)+tail), t.TempDir()); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes more: %v", len(tail), err)
		}
	}
	refused(t, "cut", data[:len(data)-1], ErrDamaged)
	broken := errors.New("broken on purpose")
	if _, err := Unpack(t.Context(), &failing{data: data[:len(data)/2], err: broken}, t.TempDir()); !errors.Is(err, broken) {
		t.Errorf("a disk that fails: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(data), t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}

type failing struct {
	data []byte
	err  error
}

func (f *failing) Read(p []byte) (int, error) {
	if len(f.data) == 0 {
		return 0, f.err
	}
	n := copy(p, f.data)
	f.data = f.data[n:]
	return n, nil
}

func TestTakeCatalog(t *testing.T) {
	_, cat := newState(t, "one")
	copied := filepath.Join(t.TempDir(), "copy.db")
	must(t, cat.CopyTo(t.Context(), copied))
	to, old := newState(t, "two")
	must(t, old.Close())
	stage, err := NewStage(to)
	must(t, err)
	file, err := os.Open(copied)
	must(t, err)
	defer file.Close()
	must(t, stage.TakeCatalog(file))
	must(t, stage.Prepare(t.Context(), func(tx *sql.Tx) error { return catalog.SetMeta(tx, "name", "three") }))
	aside, err := stage.Install(time.Now())
	must(t, err)
	must(t, stage.Discard())
	if name, intents := nameOf(t, to); name != "three" || intents != 0 {
		t.Errorf("the catalog is %q's with %d intents", name, intents)
	}
	copied = filepath.Join(t.TempDir(), "copy.db")
	happened := time.Now().Truncate(time.Millisecond)
	must(t, cat.Update(t.Context(), func(tx *sql.Tx) error { return catalog.Record(tx, catalog.Actor{}, "test", "x", "x", "") }))
	must(t, cat.CopyTo(t.Context(), copied))
	again, err := os.Open(copied)
	must(t, err)
	defer again.Close()
	if at, err := NewestEvent(t.Context(), again, to.Dir); err != nil || at.Before(happened) || at.After(time.Now()) {
		t.Errorf("the newest event is of %v, %v; want %v", at, err, happened)
	}
	// The key stays in place.
	if !strings.HasSuffix(read(t, to.SiteKey()), "t") || aside == "" {
		t.Error("the key is another")
	}
}

// SQLite takes an empty file for a new database.
func TestTakeCatalogThatIsEmpty(t *testing.T) {
	layout := image.Layout{Dir: t.TempDir()}
	stage, err := NewStage(layout)
	must(t, err)
	if err := stage.TakeCatalog(strings.NewReader("")); !errors.Is(err, ErrDamaged) {
		t.Errorf("an empty copy: %v", err)
	}
	must(t, stage.Discard())
}
