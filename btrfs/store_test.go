package btrfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/image/tool"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// newBackend makes a store in a loop file.
func newBackend(t testing.TB) *storetest.Backend {
	return opened(t, loopOptions(t))
}

// loopOptions are those of a new loop file that goes away with the test.
func loopOptions(t testing.TB) Options {
	storetest.RequireRoot(t)
	dir := t.TempDir()
	return Options{File: filepath.Join(dir, "store.btrfs"), RunDir: filepath.Join(dir, "run"), Size: 2 << 30}
}

// detachAtEnd unmounts a loop file when the test ends.
func detachAtEnd(t testing.TB, o Options) {
	t.Cleanup(func() {
		if _, err := os.Stat(o.File); err != nil {
			return
		}
		if err := Detach(context.Background(), o); err != nil {
			t.Error(err)
		}
		if loops, err := o.loopsOf(context.Background(), o.File); err != nil || len(loops) > 0 {
			t.Errorf("loop devices are left: %v, %v", loops, err)
		}
	})
}

func opened(t testing.TB, o Options) *storetest.Backend {
	var before func(string) error
	o.Step = func(step string) error {
		if before == nil {
			return nil
		}
		return before(step)
	}
	detachAtEnd(t, o)
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &storetest.Backend{
		Store: s,
		Open: func(t testing.TB) store.Store {
			other, err := Open(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			return other
		},
		Inject: func(hook func(string) error) { before = hook },
		Nest: func(path string) error {
			return tool.Run(context.Background(), tool.Options{}, "btrfs", "subvolume", "create", path)
		},
	}
}

func TestLoopFile(t *testing.T) { storetest.Run(t, newBackend) }

func BenchmarkLoopFile(b *testing.B) { storetest.Benchmark(b, newBackend) }
