package keptfiles

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
)

func content(t *testing.T, folder, name string) string {
	t.Helper()
	file, err := Open(folder, name)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	text, err := io.ReadAll(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestReplaced(t *testing.T) {
	dir := t.TempDir()
	if _, err := Open(dir, "a"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("nothing is there: %v", err)
	}
	// What a writer leaves that was killed between its last two steps.
	if err := os.WriteFile(filepath.Join(dir, newPrefix+"a"), []byte("cut"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first, and longer", "second"} {
		if err := Keep(dir, "a", strings.NewReader(want)); err != nil {
			t.Fatal(err)
		}
		if got := content(t, dir, "a"); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	broken := io.MultiReader(strings.NewReader("third"), failing{})
	if err := Keep(dir, "a", broken); !errors.Is(err, errBroken) {
		t.Errorf("a reader that fails: %v", err)
	}
	if got := content(t, dir, "a"); got != "second" {
		t.Errorf("a write that failed left %q", got)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("the folder holds %v, %v", entries, err)
	}
}

// TestOneWriter lets a second writer come while the first is slow: he waits,
// reads what he writes only then, and his is what stays.
func TestOneWriter(t *testing.T) {
	dir := t.TempDir()
	out, in := io.Pipe()
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- Keep(dir, "a", out) }()
	if _, err := in.Write([]byte("older")); err != nil { // it has the lock now
		t.Fatal(err)
	}
	go func() { second <- Keep(dir, "a", strings.NewReader("newer")) }()
	select {
	case err := <-second:
		t.Fatalf("two wrote at once: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	_ = in.Close()
	if err := errors.Join(<-first, <-second); err != nil {
		t.Fatal(err)
	}
	if got := content(t, dir, "a"); got != "newer" {
		t.Errorf("the folder has %q", got)
	}
}

var errBroken = errors.New("broken")

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errBroken }
