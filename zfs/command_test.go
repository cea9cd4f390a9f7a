package zfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/image/store"
)

// fakeTool puts a program before others in PATH.
func fakeTool(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// TestHangingZFS has a zfs that says nothing: each way to run it ends in time,
// with a message that says what to look at.
func TestHangingZFS(t *testing.T) {
	fakeTool(t, "zfs", "exec sleep 3")
	o, err := Options{Dataset: "tank/sidus", RunDir: t.TempDir(), Timeout: 50 * time.Millisecond}.normal()
	if errors.Is(err, os.ErrPermission) {
		t.Skip("SKIPPED: this test needs root")
	} else if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func() error{
		"our own": func() error { _, err := o.properties(t.Context(), "tank/sidus", "guid"); return err },
		"library": func() error { return o.destroy(t.Context(), "tank/sidus/x") },
	} {
		begin := time.Now()
		err := classify("it", "tank/sidus", do())
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zpool status") {
			t.Errorf("%s: got %v", what, err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("%s: it took %v", what, took)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := o.properties(ctx, "tank/sidus", "guid"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
