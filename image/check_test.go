package image

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image/scratch"
)

// TestCheckScratch: what killed processes have left is removed, what a live one
// uses is not even mentioned.
func TestCheckScratch(t *testing.T) {
	b := newBench(t)
	b.tree("deb", 1)
	var left, used []string
	for _, folder := range []string{b.layout.Scratch(), filepath.Join(b.layout.Cache(), BuildWork)} {
		inUse, err := scratch.Make(folder, "backup")
		b.must(err)
		defer func() { b.must(inUse.Remove()) }()
		used = append(used, inUse.Path())
		for _, name := range []string{"backup-1", "restore-2", "recipe-3"} {
			path := filepath.Join(folder, name)
			b.must(os.MkdirAll(filepath.Join(path, "secrets"), 0o700))
			b.must(os.WriteFile(filepath.Join(path, "secrets", "site.key"), []byte("secret"), 0o600))
			left = append(left, path)
		}
	}
	findings, err := b.Check(t.Context())
	b.must(err)
	text := ""
	for _, f := range findings {
		if f.Kind != FindingLeftover || f.Fatal {
			t.Errorf("%s: %s", f.Kind, f.Text)
		}
		text += f.Text + "\n"
	}
	for _, path := range left {
		if !strings.Contains(text, path) {
			t.Errorf("%s is not found:\n%s", path, text)
		}
	}
	for _, path := range used {
		if strings.Contains(text, path) {
			t.Errorf("%s is in use, and found:\n%s", path, text)
		}
	}
	if _, err := b.Repair(t.Context(), findings); err != nil {
		t.Error(err)
	}
	for _, path := range left {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	for _, path := range used {
		if _, err := os.Lstat(path); err != nil {
			t.Error(err)
		}
	}
	b.sound()
}
