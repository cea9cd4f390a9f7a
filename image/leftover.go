package image

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"sidus/image/catalog"
	"sidus/image/store"
)

// leftOf returns what an intent names that is left over if its process is dead.
func leftOf(intent catalog.Intent, held map[string]store.Item, known knowledge) (left []store.Item) {
	add := func(id string) {
		// What is half-made is nobody's, also under the ID of what is lost.
		if item, there := held[id]; there && (known.forgot(id) || item.Partial) {
			left = append(left, item)
		}
	}
	for _, v := range intent.Volumes {
		add(string(v))
	}
	for _, s := range intent.Snapshots {
		add(string(s))
	}
	return left
}

// settle removes what a dead process has left that had an intent, and ends it.
// It does nothing if another process does so, or has done so.
func (m *Manager) settle(ctx context.Context, intent catalog.Intent) error {
	var mine bool
	err := m.catalog.Update(ctx, func(tx *sql.Tx) (err error) {
		mine, err = catalog.Inherit(tx, intent.ID)
		return err
	})
	if err != nil || !mine {
		return err
	}
	err = m.destroyLeft(ctx, intent)
	return errors.Join(err, m.catalog.Update(context.WithoutCancel(ctx), func(tx *sql.Tx) error {
		if err != nil {
			return catalog.Abandon(tx, intent.ID)
		}
		return catalog.End(tx, intent.ID)
	}))
}

// destroyLeft destroys what is left of an intent that is this process's now.
func (m *Manager) destroyLeft(ctx context.Context, intent catalog.Intent) error {
	known, err := m.knowledge(ctx)
	if err != nil {
		return err
	}
	held, err := m.held(ctx)
	if err != nil {
		return err
	}
	for _, item := range leftOf(intent, held, known) {
		if err := m.destroyItem(ctx, item); err != nil {
			return err
		}
	}
	return nil
}

// held lists what the store holds, by ID.
func (m *Manager) held(ctx context.Context) (map[string]store.Item, error) {
	items, err := m.store.List(ctx)
	if err != nil {
		return nil, err
	}
	held := map[string]store.Item{}
	for _, item := range items {
		held[itemID(item)] = item
	}
	return held, nil
}

// SettleDead removes what processes have left that are dead, and that were
// doing one of the actions. What cannot be removed now is logged, and left to
// Repair.
func (m *Manager) SettleDead(ctx context.Context, actions ...string) error {
	known, err := m.knowledge(ctx)
	if err != nil {
		return err
	}
	for _, intent := range known.intents {
		if intent.Process.Alive() || !slices.Contains(actions, intent.Action) {
			continue
		}
		if err := m.settle(ctx, intent); err != nil {
			m.log.WithError(err).Warnf("what a cut %s has left stays", intent.Action)
		}
	}
	return ctx.Err()
}
