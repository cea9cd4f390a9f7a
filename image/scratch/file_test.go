package scratch

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "out")
	names := func() (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	begin := func(text string, replace bool) *File {
		t.Helper()
		f, err := NewFile(path, replace)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		return f
	}
	holds := func(want string) {
		t.Helper()
		if text, err := os.ReadFile(path); err != nil || string(text) != want {
			t.Errorf("it holds %q, %v; want %q", text, err, want)
		}
		if n := names(); len(n) != 1 {
			t.Errorf("there is %v", n)
		}
	}
	given := begin("given up", false)
	if n := names(); len(n) != 0 {
		t.Errorf("before it is kept there is %v", n)
	}
	given.Discard()
	first, second := begin("first", false), begin("second", false)
	if err := first.Keep(); err != nil {
		t.Fatal(err)
	}
	first.Discard()
	if err := second.Keep(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("the second of two that may not replace: %v", err)
	}
	second.Discard()
	holds("first")
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	if _, err := NewFile(path, false); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a name that is taken: %v", err)
	}
	third := begin("third", true)
	holds("first")
	if err := third.Keep(); err != nil {
		t.Fatal(err)
	}
	third.Discard()
	holds("third")
	if _, err := NewFile(dir, true); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a folder is to be replaced: %v", err)
	}
}
