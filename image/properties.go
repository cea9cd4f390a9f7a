package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sidus/image/store"
)

// WithProperties returns a Manager whose new trees (of CreateTree, Branch and
// Import) get properties of the store, see store.PropertySetter. With a store
// that has none, making a tree fails with store.ErrUnsupported.
func (m *Manager) WithProperties(values map[string]string) *Manager {
	other := *m
	other.properties = maps.Clone(values)
	return &other
}

// SetProperties gives the head of a tree properties of the store: all of them,
// or none. What the head is replaced by later, in a build or a rollback, has
// them too. The error wraps store.ErrUnsupported if the store has none, and
// store.ErrBadName if a name or value is not known.
func (m *Manager) SetProperties(ctx context.Context, tree string, values map[string]string, wait bool) error {
	return m.withHead(ctx, tree, nil, wait, func(t Tree) error {
		if err := m.setProperties(ctx, t.Head, values); err != nil {
			return fmt.Errorf("tree %s: %w", t.Name, err)
		}
		err := m.catalog.Update(ctx, func(tx *sql.Tx) error {
			return m.record(tx, "set", t.ID, "set %s of %s", assignments(values), t.Name)
		})
		if err == nil {
			m.keepCatalog(ctx)
		}
		return err
	})
}

// assignments writes properties for people.
func assignments(values map[string]string) string {
	var list []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		list = append(list, name+"="+values[name])
	}
	return strings.Join(list, " ")
}

// Properties returns what was set on the head of a tree, as the store writes
// it. The error wraps store.ErrUnsupported if the store has no properties.
func (m *Manager) Properties(ctx context.Context, t Tree) (map[string]string, error) {
	setter, ok := m.store.(store.PropertySetter)
	if !ok {
		return nil, store.ErrNoProperties
	}
	return setter.Properties(ctx, t.Head)
}

// PropertiesOfTrees returns what was set on the heads of all trees, by the IDs
// of the trees. It is nil if the store has no properties.
func (m *Manager) PropertiesOfTrees(ctx context.Context) (map[string]map[string]string, error) {
	setter, ok := m.store.(store.PropertySetter)
	if !ok {
		return nil, nil
	}
	trees, err := m.Trees(ctx)
	if err != nil {
		return nil, err
	}
	all := make(map[string]map[string]string, len(trees))
	for _, t := range trees {
		values, err := setter.Properties(ctx, t.Head)
		if errors.Is(err, store.ErrNotFound) {
			continue // deleted meanwhile, or lost: nothing is known of it
		} else if err != nil {
			return nil, fmt.Errorf("tree %s: %w", t.Name, err)
		}
		all[t.ID] = values
	}
	return all, nil
}

// adoptProperties gives the heads of a replica's trees the properties that the
// primary's have. What this store does not take is said in the log: a smaller
// disk or an older ZFS must not keep snapshots from being replicated.
func (m *Manager) adoptProperties(ctx context.Context, theirs map[string]map[string]string) error {
	if len(theirs) == 0 {
		return nil
	}
	ours, err := m.PropertiesOfTrees(ctx)
	if err != nil || len(ours) == 0 {
		return err
	}
	trees, err := m.Trees(ctx)
	if err != nil {
		return err
	}
	for _, t := range trees {
		want, known := theirs[t.ID]
		have, here := ours[t.ID]
		if !known || !here {
			continue
		}
		changes := map[string]string{}
		for name := range have {
			changes[name] = "inherit"
		}
		maps.Copy(changes, want)
		// One by one: what can be taken is.
		for _, name := range slices.Sorted(maps.Keys(changes)) {
			if have[name] == changes[name] {
				continue
			}
			if err := m.setProperties(ctx, t.Head, map[string]string{name: changes[name]}); err != nil {
				m.log.WithError(err).Warnf("tree %s does not get %s=%s, which it has on the primary", t.Name, name, changes[name])
			}
		}
	}
	return nil
}

func (m *Manager) setProperties(ctx context.Context, v store.VolumeID, values map[string]string) error {
	if len(values) == 0 {
		return nil
	}
	setter, ok := m.store.(store.PropertySetter)
	if !ok {
		return store.ErrNoProperties
	}
	return setter.SetProperties(ctx, v, values)
}

// createVolume makes the head of a new tree.
func (m *Manager) createVolume(ctx context.Context, v store.VolumeID) error {
	return store.CreateVolumeWith(ctx, m.store, v, m.properties)
}

// createInPlace makes an empty volume that takes the place of a head, with the
// properties of that.
func (m *Manager) createInPlace(ctx context.Context, head, v store.VolumeID) error {
	values, err := m.propertiesOf(ctx, head)
	if err != nil {
		return err
	}
	return store.CreateVolumeWith(ctx, m.store, v, values)
}

// propertiesOf returns what was set on a head; nothing if it is lost, or the store
// has no properties.
func (m *Manager) propertiesOf(ctx context.Context, head store.VolumeID) (map[string]string, error) {
	setter, ok := m.store.(store.PropertySetter)
	if !ok {
		return nil, nil
	}
	values, err := setter.Properties(ctx, head)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil // a head that is lost is what a rollback or a build replaces
	}
	return values, err
}

// carryProperties gives a volume that takes the place of a head the properties
// of that.
func (m *Manager) carryProperties(ctx context.Context, from, to store.VolumeID) error {
	values, err := m.propertiesOf(ctx, from)
	if err != nil {
		return err
	}
	return m.setProperties(ctx, to, values)
}
