package image

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"sidus/image/store"
)

func (b *bench) keptRecipe(t Tree) string {
	b.t.Helper()
	r, err := b.KeptRecipe(t)
	if errors.Is(err, store.ErrNotFound) {
		return ""
	}
	b.must(err)
	defer r.Close()
	text, err := io.ReadAll(r)
	b.must(err)
	return string(text)
}

func (b *bench) keepRecipe(tree, text string) {
	b.t.Helper()
	lock, err := b.LockHead(b.t.Context(), tree, false)
	b.must(err)
	packed := []byte(text)
	if text == "" {
		packed = nil
	}
	b.must(b.KeepRecipe(lock, packed))
	b.must(lock.Release())
}

func TestKeptRecipes(t *testing.T) {
	b := newBench(t)
	deb, _ := b.tree("deb", 1)
	web, _ := b.tree("web", 1)
	if got := b.keptRecipe(deb); got != "" {
		t.Errorf("a tree that was not built has the recipe %q", got)
	}
	b.keepRecipe("deb", "first")
	b.keepRecipe("deb", "second")
	b.keepRecipe("web", "third")
	b.must(b.Rename(t.Context(), "deb", "debian"))
	if got := b.keptRecipe(deb); got != "second" {
		t.Errorf("kept is %q", got)
	}
	b.sound()

	b.must(b.DeleteTree(t.Context(), "debian", false))
	if kept, err := b.layout.KeptRecipes(); err != nil || !slices.Equal(kept, []string{web.ID}) {
		t.Errorf("after one of two trees was deleted the recipes of %v are kept, %v", kept, err)
	}
	b.keepRecipe("web", "")
	if got := b.keptRecipe(web); got != "" {
		t.Errorf("a recipe that is to be kept no more is %q", got)
	}
	// A deletion that was cut.
	b.must(b.layout.keepRecipe(deb.ID, []byte("old")))
	findings, err := b.Check(t.Context())
	if err != nil || len(findings) != 1 || findings[0].Kind != FindingLeftover {
		t.Fatalf("%+v, %v", findings, err)
	}
	if _, err := b.Repair(t.Context(), findings); err != nil {
		t.Error(err)
	}
	b.sound()
}

func TestTakeRecipes(t *testing.T) {
	from, to := Layout{Dir: t.TempDir()}, Layout{Dir: t.TempDir()}
	a, b, c := newTree("a", "").ID, newTree("b", "").ID, newTree("c", "").ID
	for _, err := range []error{
		from.keepRecipe(a, []byte("a")), from.keepRecipe(b, []byte("new b")),
		to.keepRecipe(b, []byte("b")), to.keepRecipe(c, []byte("c")),
		TakeRecipes(from, to),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{a: "a", b: "new b", c: ""} {
		if got, err := os.ReadFile(filepath.Join(to.Recipes(), recipeName(id))); string(got) != want || (err == nil) != (want != "") {
			t.Errorf("got %q, %v; want %q", got, err, want)
		}
	}
	if err := TakeRecipes(Layout{Dir: t.TempDir()}, to); err != nil {
		t.Error(err)
	}
	if kept, err := to.KeptRecipes(); err != nil || len(kept) > 0 {
		t.Errorf("after those of somebody without any, %v are kept, %v", kept, err)
	}
}
