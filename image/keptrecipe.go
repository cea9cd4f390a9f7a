package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"sidus/image/store"
	"sidus/image/store/keptfiles"
)

const recipeSuffix = ".tar"

// Recipes is the folder of the recipes that trees were built from, one file a
// tree.
func (l Layout) Recipes() string { return filepath.Join(l.Dir, "recipes") }

func recipeName(treeID string) string { return treeID + recipeSuffix }

// KeptRecipes lists the IDs of the trees that a recipe is kept of.
func (l Layout) KeptRecipes() (trees []string, err error) {
	entries, err := os.ReadDir(l.Recipes())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	for _, entry := range entries {
		id, ok := strings.CutSuffix(entry.Name(), recipeSuffix)
		if ok && store.VolumeID(id).Validate() == nil && entry.Type().IsRegular() {
			trees = append(trees, id)
		}
	}
	return trees, err
}

// RecipeFiles lists the files of the recipes that are kept.
func (l Layout) RecipeFiles() (paths []string, err error) {
	trees, err := l.KeptRecipes()
	for _, id := range trees {
		paths = append(paths, filepath.Join(l.Recipes(), recipeName(id)))
	}
	return paths, err
}

// OpenRecipe opens the recipe that is kept of a tree: what its last build was
// given to keep. The error wraps store.ErrNotFound if there is none.
func (l Layout) OpenRecipe(treeID string) (io.ReadCloser, error) {
	file, err := os.Open(filepath.Join(l.Recipes(), recipeName(treeID)))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("a kept recipe: %w", store.ErrNotFound)
	}
	return file, err
}

// keepRecipe keeps a packed recipe as that of a tree. It is the old or the new
// one at any instant.
func (l Layout) keepRecipe(treeID string, packed []byte) error {
	if old, err := os.ReadFile(filepath.Join(l.Recipes(), recipeName(treeID))); err == nil && bytes.Equal(old, packed) {
		return nil
	}
	if err := os.MkdirAll(l.Recipes(), 0o700); err != nil {
		return err
	}
	return keptfiles.Keep(l.Recipes(), recipeName(treeID), bytes.NewReader(packed))
}

func (l Layout) removeRecipe(treeID string) error {
	err := os.Remove(filepath.Join(l.Recipes(), recipeName(treeID)))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// TakeRecipes makes the kept recipes of the state folder to those of from,
// one after the other.
func TakeRecipes(from, to Layout) error {
	theirs, err := from.KeptRecipes()
	if err != nil {
		return err
	}
	for _, id := range theirs {
		packed, err := os.ReadFile(filepath.Join(from.Recipes(), recipeName(id)))
		if err == nil {
			err = to.keepRecipe(id, packed)
		}
		if err != nil {
			return fmt.Errorf("take over the recipe of the tree %s: %w", id, err)
		}
	}
	ours, err := to.KeptRecipes()
	errs := []error{err}
	for _, id := range ours {
		if !slices.Contains(theirs, id) {
			errs = append(errs, to.removeRecipe(id))
		}
	}
	return errors.Join(errs...)
}

// KeepRecipe keeps a packed recipe with the tree whose head is locked, instead
// of the one that is kept. Nil: none is kept any more.
func (m *Manager) KeepRecipe(lock *HeadLock, packed []byte) (err error) {
	if packed == nil {
		err = m.layout.removeRecipe(lock.TreeID)
	} else {
		err = m.layout.keepRecipe(lock.TreeID, packed)
	}
	if err != nil {
		return fmt.Errorf("keep the recipe of %s: %w", lock.Tree, err)
	}
	return nil
}

// KeptRecipe opens the recipe that is kept with a tree. The error wraps
// store.ErrNotFound if there is none.
func (m *Manager) KeptRecipe(t Tree) (io.ReadCloser, error) {
	r, err := m.layout.OpenRecipe(t.ID)
	if err != nil {
		return nil, fmt.Errorf("tree %s: %w", t.Name, err)
	}
	return r, nil
}
