package transfer

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image"
	"sidus/image/store"
)

// TestTemporaryFiles: only root reads what a transfer keeps for a while, and
// what one has left that was killed goes with the next, or by a repair.
func TestTemporaryFiles(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	leave := func() (left []string) {
		for _, path := range []string{filepath.Join(a.layout.Scratch(), "replicate-1", "sidus.db"), filepath.Join(b.layout.IncomingState(), "secrets", "site.key")} {
			must(t, os.MkdirAll(filepath.Dir(path), 0o700))
			must(t, os.WriteFile(path, []byte("half of it"), 0o600))
			left = append(left, path)
		}
		return left
	}
	gone := func(left []string) {
		t.Helper()
		for _, path := range left {
			if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s: %v", path, err)
			}
		}
	}
	left := leave()
	looked := 0
	connect, ended := dial(b.receiver(), 0, func(p []byte) {
		if !bytes.Contains(p, []byte(`"kind":"state"`)) {
			return
		}
		must(t, filepath.WalkDir(a.layout.Dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 && strings.HasPrefix(path, a.layout.Scratch()) {
				t.Errorf("%s: %v", path, info.Mode())
			}
			if entry.Name() == "state.tar.zst" {
				looked++
			}
			return err
		}))
	})
	_, err := a.sender().Replicate(ctx, connect)
	must(t, err)
	must(t, ended())
	if looked == 0 {
		t.Error("no state was looked at")
	}
	gone(left)

	left = leave()
	for _, s := range []*testSite{a, b} {
		findings, err := s.manager.Check(ctx)
		must(t, err)
		if len(findings) != 1 || findings[0].Kind != image.FindingLeftover {
			t.Errorf("%s: %+v", s.name, findings)
		}
		_, err = s.manager.Repair(ctx, findings)
		must(t, err)
		s.sound()
	}
	gone(left)
}

// TestLateState: a server that has taken over meanwhile keeps its secrets.
func TestLateState(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	own := filepath.Join(b.layout.Secrets(), "nodes", "own")
	connect, ended := dial(b.receiver(), 0, func(p []byte) {
		if bytes.Contains(p, []byte(`"kind":"state"`)) {
			_, _, err := b.manager.Takeover(ctx)
			must(t, err)
			must(t, os.MkdirAll(filepath.Dir(own), 0o700))
			must(t, os.WriteFile(own, []byte("new"), 0o600))
		}
	})
	if _, err := a.sender().Replicate(ctx, connect); !errors.Is(err, store.ErrInUse) {
		t.Errorf("%v", err)
	}
	_ = ended()
	if text, err := os.ReadFile(own); err != nil || string(text) != "new" {
		t.Errorf("the new primary's secret: %q, %v", text, err)
	}
	b.sound()
}

// keepRecipe keeps a recipe with a tree.
func (s *testSite) keepRecipe(tree string, packed []byte) {
	s.t.Helper()
	lock, err := s.manager.LockHead(s.t.Context(), tree, false)
	must(s.t, err)
	must(s.t, s.manager.KeepRecipe(lock, packed))
	must(s.t, lock.Release())
}

// recipe reads the recipe that is kept with a tree.
func (s *testSite) recipe(name string) (string, error) {
	s.t.Helper()
	tree, err := s.manager.Tree(s.t.Context(), name)
	must(s.t, err)
	r, err := s.manager.KeptRecipe(tree)
	if err != nil {
		return "", err
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	return string(text), err
}

func TestRecipesAreReplicated(t *testing.T) {
	a, b, _ := pair(t, true)
	a.keepRecipe("deb", []byte("one"))
	a.keepRecipe("gpu", []byte("two"))
	mark, err := a.manager.ChangeMark(t.Context())
	must(t, err)
	_, err = replicateTo(a, b)
	must(t, err)
	for tree, want := range map[string]string{"deb": "one", "gpu": "two"} {
		if got, err := b.recipe(tree); err != nil || got != want {
			t.Errorf("%s: %q, %v", tree, got, err)
		}
	}
	a.keepRecipe("deb", []byte("three"))
	a.keepRecipe("gpu", nil)
	if now, err := a.manager.ChangeMark(t.Context()); err != nil || now == mark {
		t.Errorf("a new recipe is no change: %v", err)
	}
	_, err = replicateTo(a, b)
	must(t, err)
	if got, err := b.recipe("deb"); err != nil || got != "three" {
		t.Errorf("%q, %v", got, err)
	}
	if got, err := b.recipe("gpu"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("%q, %v", got, err)
	}
	b.sound()

	// A sender that does not know of recipes leaves them alone, and a receiver
	// that does not gets none.
	old := b.receiver()
	old.hello = &hello{Min: minVersion, Max: maxVersion}
	connect, ended := dial(old, 0, nil)
	_, err = a.sender().Replicate(t.Context(), connect)
	must(t, err)
	must(t, ended())
	if got, err := b.recipe("deb"); err != nil || got != "three" {
		t.Errorf("after a sender without recipes: %q, %v", got, err)
	}
}
