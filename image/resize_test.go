package image

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image/store"
)

// sized is a store whose volumes have a size.
type sized struct {
	store.Store
	sizes map[store.VolumeID]int64
}

func (s *sized) Capacity(_ context.Context, v store.VolumeID) (store.Capacity, error) {
	return store.Capacity{Size: s.sizes[v], Free: s.sizes[v] / 2}, nil
}

func (s *sized) Resize(_ context.Context, v store.VolumeID, size int64) error {
	s.sizes[v] = size
	return nil
}

func TestResize(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	tree, _ := b.tree("debian", 1)
	if _, _, err := b.Resize(ctx, "debian", 1<<30, false); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "no size of its own") {
		t.Errorf("a store without sizes: %v", err)
	}
	s := &sized{b.store, map[store.VolumeID]int64{tree.Head: 4 << 30}}
	b.Manager.store = s
	if was, is, err := b.Resize(ctx, "debian", 1<<30, true); err != nil || was.Size != 4<<30 || is.Size != 5<<30 {
		t.Errorf("one GiB more: %v, %v, %v", was, is, err)
	}
	if _, is, err := b.Resize(ctx, "debian", 6<<30, false); err != nil || is.Size != 6<<30 {
		t.Errorf("to six GiB: %v, %v", is, err)
	}
	if _, _, err := b.Resize(ctx, "debian", 2<<30, false); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "only grow") {
		t.Errorf("smaller: %v", err)
	}
	if _, _, err := b.Resize(ctx, "none", 2<<30, false); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("no such tree: %v", err)
	}
	events, err := b.catalog.Events(ctx, tree.ID, 0)
	b.must(err)
	made := 0
	for _, e := range events {
		if e.Action == "resize" {
			made++
		}
	}
	if made != 2 {
		t.Errorf("the history tells of %d, not 2: %v", made, events)
	}
}

// TestImportMakesRoom: what is imported may be larger than a new volume, if the
// store has the space.
func TestImportMakesRoom(t *testing.T) {
	b := newBench(t)
	b.Manager.store = &sized{b.store, map[store.VolumeID]int64{}}
	dir := t.TempDir()
	b.must(errors.Join(os.WriteFile(filepath.Join(dir, "file"), make([]byte, 1<<20), 0o644), os.Link(filepath.Join(dir, "file"), filepath.Join(dir, "again"))))
	plain, packed := filepath.Join(dir, "a.tar"), filepath.Join(t.TempDir(), "a.tar.gz")
	b.must(exec.Command("tar", "-cf", packed, "-z", "-C", dir, ".").Run())
	b.must(exec.Command("tar", "-cf", plain, "-C", dir, "file").Run())
	info, err := os.Stat(packed)
	b.must(err)
	fill := func(f Fill, err error) Fill {
		b.must(err)
		return f
	}
	for name, c := range map[string]struct {
		fill       Fill
		least, all int64
	}{
		"dir":    {fill(FillFromDirectory(dir, nil)), 2 << 20, 3 << 20},
		"plain":  {fill(FillFromTar(plain, nil)), 1 << 20, 2 << 20},
		"packed": {fill(FillFromTar(packed, nil)), 3 * info.Size(), 4 * info.Size()},
		"all":    {func(_ context.Context, _ string, room func(int64) error) error { return room(1 << 60) }, 1 << 40, 5 << 38},
		"small":  {func(_ context.Context, _ string, room func(int64) error) error { return room(0) }, 0, 0},
	} {
		snapshot, err := b.Import(t.Context(), name, ImportOptions{Source: "a test", Fill: c.fill})
		b.must(err)
		tree, err := b.Tree(t.Context(), snapshot.Tree)
		b.must(err)
		if got := b.Manager.store.(*sized).sizes[tree.Head]; got < c.least || got > c.all {
			t.Errorf("%s: the volume was made %d bytes large; it is to be %d to %d", name, got, c.least, c.all)
		}
	}
}
