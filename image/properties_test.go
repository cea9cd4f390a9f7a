package image

import (
	"context"
	"errors"
	"maps"
	"os"
	"testing"

	"sidus/image/store"
)

// expectProperties compares what is set on the head that a tree has now.
func (b *bench) expectProperties(tree string, want map[string]string) {
	b.t.Helper()
	t, err := b.Tree(b.t.Context(), tree)
	b.must(err)
	if got, err := b.Properties(b.t.Context(), t); err != nil || !maps.Equal(got, want) {
		b.t.Errorf("%s has %v, %v; want %v", tree, got, err, want)
	}
}

// The properties of a tree stay when its head is replaced.
func TestPropertiesStayWithTheTree(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	_, list := b.tree("debian", 2)
	quota := map[string]string{"quota": "10G"}
	b.must(b.SetProperties(ctx, "debian", map[string]string{"quota": "10G", "compression": "zstd"}, false))
	b.must(b.SetProperties(ctx, "debian", map[string]string{"compression": "inherit"}, false))
	b.expectProperties("debian", quota)
	if _, err := b.Rollback(ctx, "debian", list[0].ID, false); err != nil {
		t.Fatal(err)
	}
	b.expectProperties("debian", quota)
	lock, err := b.LockHead(ctx, "debian", false)
	b.must(err)
	w, err := b.NewWorkspace(ctx, lock, "")
	b.must(err)
	b.must(errors.Join(w.Adopt(ctx), lock.Release()))
	b.expectProperties("debian", quota)

	b.must(ignore(b.WithProperties(quota).Branch(ctx, list[0].ID, "gpu")))
	b.expectProperties("gpu", quota)
	b.must(ignore(b.WithProperties(quota).Import(ctx, "node", ImportOptions{Fill: func(context.Context, string, func(int64) error) error { return nil }})))
	b.expectProperties("node", quota)
	b.must(ignore(b.WithProperties(quota).CreateTree(ctx, "new")))
	b.expectProperties("new", quota)

	received := b.received(1, string(store.NewVolumeID()))
	received.Tree = "came"
	b.must(ignore(b.WithProperties(quota).Receive(ctx, received)))
	b.expectProperties("came", quota)
	again := b.received(2, received.Snapshot.TreeID)
	if _, err := b.WithProperties(quota).Receive(ctx, again); !errors.Is(err, store.ErrExists) {
		t.Errorf("properties for a tree that is there: %v", err)
	}
}

func ignore[T any](_ T, err error) error { return err }

// A property that the store refuses leaves no tree, and changes none.
func TestPropertiesThatAreRefused(t *testing.T) {
	b := newBench(t)
	ctx := t.Context()
	_, list := b.tree("debian", 1)
	bad := map[string]string{"mountpoint": "/"}
	if err := b.SetProperties(ctx, "debian", bad, false); !errors.Is(err, store.ErrBadName) {
		t.Errorf("SetProperties: %v", err)
	}
	if _, err := b.WithProperties(bad).Branch(ctx, list[0].ID, "gpu"); !errors.Is(err, store.ErrBadName) {
		t.Errorf("Branch: %v", err)
	}
	if _, err := b.WithProperties(bad).CreateTree(ctx, "new"); !errors.Is(err, store.ErrBadName) {
		t.Errorf("CreateTree: %v", err)
	}
	b.expectProperties("debian", nil)
	if trees, err := b.Trees(ctx); err != nil || len(trees) != 1 {
		t.Errorf("there are %v, %v", trees, err)
	}
	if items, err := b.store.List(ctx); err != nil || len(items) != 2 {
		t.Errorf("the store holds %v, %v", items, err)
	}
	b.store.FailOn("Properties", os.ErrPermission)
	if _, err := b.Rollback(ctx, "debian", list[0].ID, false); !errors.Is(err, os.ErrPermission) {
		t.Errorf("Rollback of a tree whose properties cannot be read: %v", err)
	}
}
