package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"sidus/image"
	"sidus/image/build/sandbox"
	"sidus/image/store"
)

func TestMain(m *testing.M) {
	sandbox.Main()
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root")
	}
	t.Skip("SKIPPED: this test needs root")
}

// folderHead is a Head whose volumes are plain folders and whose snapshots
// are copies of them.
type folderHead struct {
	t    *testing.T
	dir  string
	head string // folder of the head
	base store.SnapshotID
	list []folderSnapshot

	changes []string
	works   int // workspaces that were made
	open    int // workspaces that are neither adopted nor discarded
	mounts  int
}

type folderSnapshot struct {
	Snapshot
	dir string
	o   image.SnapshotOptions
}

func newFolderHead(t *testing.T) *folderHead {
	h := &folderHead{t: t, dir: t.TempDir()}
	t.Cleanup(func() {
		if h.open != 0 || h.mounts != 0 {
			t.Errorf("%d workspaces and %d mounts were left", h.open, h.mounts)
		}
	})
	return h
}

func (h *folderHead) Base(context.Context) (store.SnapshotID, error) { return h.base, nil }

func (h *folderHead) Changes(context.Context, int) ([]string, error) { return h.changes, nil }

func (h *folderHead) Known(_ context.Context, keys []string) (map[string]Snapshot, error) {
	known := make(map[string]Snapshot)
	for _, s := range h.list {
		if old, ok := known[s.Key]; slices.Contains(keys, s.Key) && (!ok || s.Complete || !old.Complete) {
			known[s.Key] = s.Snapshot
		}
	}
	return known, nil
}

func (h *folderHead) Newest(context.Context) (map[string]Snapshot, error) {
	newest := make(map[string]Snapshot)
	for _, s := range h.list {
		if s.Phase != "" {
			newest[s.Phase] = s.Snapshot
		}
	}
	return newest, nil
}

func (h *folderHead) Save(_ context.Context, message string) (Snapshot, error) {
	h.changes = nil
	return h.take(h.head, image.SnapshotOptions{Message: message})
}

func (h *folderHead) take(from string, o image.SnapshotOptions) (Snapshot, error) {
	n := len(h.list) + 1
	s := folderSnapshot{
		Snapshot: Snapshot{ID: store.NewSnapshotID(), Ref: fmt.Sprintf("test@%d", n), Phase: o.Phase, Key: o.Key, Complete: o.Complete, Own: true},
		dir:      filepath.Join(h.dir, fmt.Sprintf("snapshot-%d", n)), o: o,
	}
	if from != "" {
		if err := copyFolder(from, s.dir); err != nil {
			return Snapshot{}, err
		}
	}
	h.list = append(h.list, s)
	return s.Snapshot, nil
}

func copyFolder(from, to string) error {
	out, err := exec.Command("cp", "-a", "--reflink=auto", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

func (h *folderHead) find(id store.SnapshotID) *folderSnapshot {
	for i := range h.list {
		if h.list[i].ID == id {
			return &h.list[i]
		}
	}
	return nil
}

func (h *folderHead) Work(_ context.Context, from store.SnapshotID) (Workspace, error) {
	h.works++
	w := &folderWork{h: h, dir: filepath.Join(h.dir, fmt.Sprintf("work-%d", h.works)), base: from}
	if from == "" {
		if err := os.Mkdir(w.dir, 0o755); err != nil {
			return nil, err
		}
	} else if err := copyFolder(h.find(from).dir, w.dir); err != nil {
		return nil, err
	}
	h.open++
	return w, nil
}

type folderWork struct {
	h       *folderHead
	dir     string
	base    store.SnapshotID
	adopted bool
	gone    bool
}

func (w *folderWork) Mount(context.Context) (store.Mount, error) {
	w.h.mounts++
	return &folderMount{w: w}, nil
}

func (w *folderWork) Snapshot(_ context.Context, o image.SnapshotOptions) (Snapshot, error) {
	s, err := w.h.take(w.dir, o)
	w.base = s.ID
	return s, err
}

func (w *folderWork) Adopt(context.Context) error {
	w.h.head, w.h.base, w.adopted = w.dir, w.base, true
	return nil
}

func (w *folderWork) Discard(context.Context) error {
	if w.gone {
		return nil
	}
	w.gone = true
	w.h.open--
	if w.adopted {
		return nil
	}
	return os.RemoveAll(w.dir)
}

type folderMount struct {
	w    *folderWork
	done bool
}

func (m *folderMount) Path() string { return m.w.dir }

func (m *folderMount) Unmount(context.Context) error {
	if !m.done {
		m.done = true
		m.w.h.mounts--
	}
	return nil
}

// recorder keeps the events of a build.
type recorder struct {
	mu     sync.Mutex
	events []Event
}

func (r *recorder) Event(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}

var errTest = errors.New("enough of it")

func writeRecipe(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "recipe.yaml")
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}

func mustLoad(t *testing.T, name string, set map[string]string) *Recipe {
	t.Helper()
	r, err := Load(name, set)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// logOf is the text of all logs, to be shown when a test fails.
func logOf(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	names, _ := filepath.Glob(filepath.Join(dir, "*", "*.log"))
	for _, name := range names {
		text, _ := os.ReadFile(name)
		fmt.Fprintf(&b, "== %s\n%s", filepath.Base(name), text)
	}
	return b.String()
}
