package image

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/dustin/go-humanize"

	"sidus/image/store"
)

// Resize makes the head of a tree size bytes large, or that much larger if more
// is set, also while somebody works in it: what he has written stays as it is.
// Snapshots keep their size. store.ErrUnsupported where trees have no size of
// their own, and if the head is larger already.
func (m *Manager) Resize(ctx context.Context, tree string, size int64, more bool) (was, is store.Capacity, err error) {
	t, err := m.Tree(ctx, tree)
	if err != nil {
		return was, is, err
	}
	resizer, ok := m.store.(store.Resizer)
	if !ok {
		return was, is, fmt.Errorf("tree %s: %w: in this store a tree has no size of its own, each can fill the store", tree, store.ErrUnsupported)
	}
	if was, err = resizer.Capacity(ctx, t.Head); err != nil {
		return was, is, fmt.Errorf("tree %s: %w", tree, err)
	}
	if more {
		size += was.Size
	}
	if size < was.Size {
		return was, is, fmt.Errorf("tree %s: %w: it has %s and can only grow; to make it smaller, import its latest snapshot as a new tree",
			tree, store.ErrUnsupported, humanize.IBytes(uint64(was.Size)))
	}
	if err := resizer.Resize(ctx, t.Head, size); err != nil {
		return was, is, fmt.Errorf("tree %s: %w", tree, err)
	}
	if is, err = resizer.Capacity(ctx, t.Head); err != nil {
		return was, is, fmt.Errorf("tree %s: %w", tree, err)
	}
	err = m.catalog.Update(ctx, func(tx *sql.Tx) error {
		return m.record(tx, "resize", t.ID, "made %s %s large, from %s", tree, humanize.IBytes(uint64(is.Size)), humanize.IBytes(uint64(was.Size)))
	})
	if err == nil {
		m.keepCatalog(ctx)
	}
	return was, is, err
}
