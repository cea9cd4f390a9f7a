package build

import (
	"context"
	"errors"

	"sidus/image"
	"sidus/image/store"
)

// Head is the tree that is built, as the Builder sees it. Its caller holds the
// head's lock. ManagerHead is the real one.
type Head interface {
	// Base is the snapshot that the head starts from; "" if there is none.
	Base(ctx context.Context) (store.SnapshotID, error)
	// Changes lists what the head holds that its base does not, one short
	// text each, at most limit.
	Changes(ctx context.Context, limit int) ([]string, error)
	// Known finds, for each key, the snapshot to use: a complete one of this
	// tree rather than another, then the newest. Keys without one, or whose
	// snapshots are lost, are left out.
	Known(ctx context.Context, keys []string) (map[string]Snapshot, error)
	// Newest finds the newest snapshot of this tree for each of its phases.
	Newest(ctx context.Context) (map[string]Snapshot, error)
	// Save takes a snapshot of the head as it is, which no build uses.
	Save(ctx context.Context, message string) (Snapshot, error)
	// Work makes a writable volume beside the head that starts from a
	// snapshot, or from nothing if from is "".
	Work(ctx context.Context, from store.SnapshotID) (Workspace, error)
}

// Workspace is where a build works, so that the head stays as it is until the
// build has ended well.
type Workspace interface {
	Mount(ctx context.Context) (store.Mount, error)
	// Snapshot takes a snapshot that is the tree's.
	Snapshot(ctx context.Context, o image.SnapshotOptions) (Snapshot, error)
	// Adopt makes the workspace the head.
	Adopt(ctx context.Context) error
	// Discard removes the workspace unless it was adopted. It works after ctx
	// has ended.
	Discard(ctx context.Context) error
}

// ManagerHead builds a tree of an image.Manager. The lock is the tree's.
type ManagerHead struct {
	Manager *image.Manager
	Tree    string
	Lock    *image.HeadLock
}

func (h *ManagerHead) snapshot(s image.Snapshot, tree image.Tree) Snapshot {
	return Snapshot{ID: s.ID, Ref: s.Ref(), Phase: s.Phase, Key: s.Key, Complete: s.Complete, Own: s.TreeID == tree.ID}
}

// Base implements Head.
func (h *ManagerHead) Base(ctx context.Context) (store.SnapshotID, error) {
	tree, err := h.Manager.Tree(ctx, h.Tree)
	return tree.Base, err
}

// Changes implements Head.
func (h *ManagerHead) Changes(ctx context.Context, limit int) ([]string, error) {
	changes, err := h.Manager.HeadChanges(ctx, h.Lock, limit)
	var lost *image.LostError
	if errors.As(err, &lost) && lost.Head {
		return nil, nil // there is nothing left that a build could lose
	} else if errors.As(err, &lost) {
		return []string{"what, cannot be told: " + lost.Error()}, nil
	}
	list := make([]string, len(changes))
	for i, c := range changes {
		list[i] = c.String()
	}
	return list, err
}

// Known implements Head.
func (h *ManagerHead) Known(ctx context.Context, keys []string) (map[string]Snapshot, error) {
	tree, err := h.Manager.Tree(ctx, h.Tree)
	if err != nil {
		return nil, err
	}
	var list []image.Snapshot // of each key the newest first
	for _, key := range keys {
		some, err := h.Manager.SnapshotsByKey(ctx, key)
		if err != nil {
			return nil, err
		}
		list = append(list, some...)
	}
	if len(list) > 0 {
		if err := h.Manager.MarkLost(ctx, list); err != nil {
			return nil, err
		}
	}
	known, best := make(map[string]Snapshot), make(map[string]int)
	for _, s := range list {
		rank := 1
		if s.TreeID == tree.ID {
			rank++
			if s.Complete {
				rank++
			}
		}
		if !s.Lost && rank > best[s.Key] {
			best[s.Key] = rank
			known[s.Key] = h.snapshot(s, tree)
		}
	}
	return known, nil
}

// Newest implements Head.
func (h *ManagerHead) Newest(ctx context.Context) (map[string]Snapshot, error) {
	tree, err := h.Manager.Tree(ctx, h.Tree)
	if err != nil {
		return nil, err
	}
	list, err := h.Manager.Snapshots(ctx, tree) // the oldest first
	newest := make(map[string]Snapshot)
	for _, s := range list {
		if s.Phase != "" {
			newest[s.Phase] = h.snapshot(s, tree)
		}
	}
	return newest, err
}

// Save implements Head.
func (h *ManagerHead) Save(ctx context.Context, message string) (Snapshot, error) {
	tree, err := h.Manager.Tree(ctx, h.Tree)
	if err != nil {
		return Snapshot{}, err
	}
	s, err := h.Manager.Snapshot(ctx, h.Tree, h.Lock, false, image.SnapshotOptions{Message: message})
	return h.snapshot(s, tree), err
}

// Work implements Head.
func (h *ManagerHead) Work(ctx context.Context, from store.SnapshotID) (Workspace, error) {
	tree, err := h.Manager.Tree(ctx, h.Tree)
	if err != nil {
		return nil, err
	}
	w, err := h.Manager.NewWorkspace(ctx, h.Lock, from)
	if err != nil {
		return nil, err
	}
	return &managerWorkspace{w, h, tree}, nil
}

type managerWorkspace struct {
	*image.Workspace
	head *ManagerHead
	tree image.Tree
}

func (w *managerWorkspace) Snapshot(ctx context.Context, o image.SnapshotOptions) (Snapshot, error) {
	s, err := w.Workspace.Snapshot(ctx, o)
	return w.head.snapshot(s, w.tree), err
}
