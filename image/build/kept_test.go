package build

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// keysOf are the names of the phases for the cache.
func keysOf(t *testing.T, r *Recipe) (keys []string) {
	t.Helper()
	inputs, err := gather(t.Context(), r, "boot", openDigests(""))
	if err != nil {
		t.Fatal(err)
	}
	parent := ""
	for _, in := range inputs {
		parent = in.Key(parent)
		keys = append(keys, parent)
	}
	return keys
}

func writeAll(t *testing.T, dir string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKeptRecipe packs a recipe, takes all of its files away and finds the same
// phases, with the same keys, in what was kept, and again in what is kept of
// that.
func TestKeptRecipe(t *testing.T) {
	dir, elsewhere := t.TempDir(), t.TempDir()
	writeAll(t, elsewhere, map[string]string{"first.yaml": "vars: {suite: bookworm}\nphases:\n  - base: {suite: '${suite}', keyring: keys/our.gpg}\n", "keys/our.gpg": "key"})
	writeAll(t, dir, map[string]string{
		"site/node.yaml":       "tree: node\nfrom: ../common/base.yaml\nvars: {domain: }\nphases:\n  - files:\n      - {to: /etc/x, from: files}\n      - {to: /etc/y, from: files/etc/template, template: true}\n      - {to: /z, from: linked}\n",
		"common/base.yaml":     "from: " + filepath.Join(elsewhere, "first.yaml") + "\nphases:\n  - files: [{to: /usr/local/bin/tool, from: tool}]\n",
		"common/tool":          "#!/bin/sh\n",
		"site/files/etc/plain": "plain", "site/files/etc/template": "of ${domain}", "site/sub/deep/a": "a",
	})
	for _, err := range []error{
		os.Chmod(filepath.Join(dir, "common/tool"), 0o755),
		os.Symlink("/nowhere", filepath.Join(dir, "site/files/etc/link")),
		os.Symlink("sub/deep", filepath.Join(dir, "site/linked")),
		os.Mkdir(filepath.Join(dir, "site/files/empty"), 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(filepath.Join(dir, "common"))
	recipe, err := Load("../site/node.yaml", map[string]string{"domain": "example.org", "suite": "trixie"})
	if err != nil {
		t.Fatal(err)
	}
	want := keysOf(t, recipe)
	packed, err := recipe.Pack(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{dir, elsewhere} {
		if err := os.RemoveAll(gone); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir("/")
	again, err := LoadKept(bytes.NewReader(packed), t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, again); !slices.Equal(got, want) {
		t.Errorf("the phases of the kept recipe have the keys %v instead of %v", got, want)
	}
	if again.File != recipe.File || again.Tree != "node" || again.Vars["domain"] != "example.org" || again.Vars["suite"] != "trixie" {
		t.Errorf("the kept recipe is %s of %s, with %v", again.File, again.Tree, again.Vars)
	}
	if text, err := os.ReadFile(again.Phases[0].Base.keyring); err != nil || string(text) != "key" {
		t.Errorf("the keyring is %q, %v", text, err)
	}
	if repacked, err := again.Pack(t.Context()); err != nil || !bytes.Equal(repacked, packed) {
		t.Errorf("kept once more it is another one (%v)", err)
	}
	other, err := LoadKept(bytes.NewReader(packed), t.TempDir(), map[string]string{"domain": "example.com"})
	if err != nil {
		t.Fatal(err)
	}
	if got := keysOf(t, other); got[1] != want[1] || got[2] == want[2] {
		t.Errorf("with another value the keys are %v, and were %v", got, want)
	}
	for _, cut := range []int{0, 100, 700, len(packed) / 2} {
		if _, err := LoadKept(bytes.NewReader(packed[:cut]), t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("the first %d bytes: %v", cut, err)
		}
	}
}

// TestRecipesThatAreNotKept: too much, and what cannot be told apart.
func TestRecipesThatAreNotKept(t *testing.T) {
	dir := t.TempDir()
	writeAll(t, dir, map[string]string{
		"large.yaml": "phases:\n  - files: [{to: /large, from: large}]\n",
		"many.yaml":  "phases:\n  - files: [{to: /a, from: a}, {to: /b, from: b}]\n",
		"twice.yaml": "phases:\n  - files: [{to: /x, from: link}, {to: /y, from: .}]\n",
		"a":          strings.Repeat("x", MaxKept/2), "b": strings.Repeat("y", MaxKept/2), "large": "", "d/f": "f",
	})
	if err := os.Truncate(filepath.Join(dir, "large"), 1<<40); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("d", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"large", "many", "twice"} {
		recipe, err := Load(filepath.Join(dir, name+".yaml"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if name == "twice" {
			_ = os.Remove(filepath.Join(dir, "large"))
			_ = os.Remove(filepath.Join(dir, "a"))
		}
		if _, err := recipe.Pack(t.Context()); err == nil || errors.Is(err, ErrTooLarge) == (name == "twice") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
