package image

import (
	"context"
	"errors"
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
