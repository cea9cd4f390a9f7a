package zfs

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	if err := testPool.destroy(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// testPool is a pool that is made for the first test that needs it: what an
// administrator has already.
var testPool pool

type pool struct {
	once sync.Once
	name string
	dir  string
	err  error
}

// requireZFS ends a test that cannot run here. In the lab it can: there it
// fails.
func requireZFS(t testing.TB) {
	t.Helper()
	storetest.RequireRoot(t)
	if _, err := os.Stat("/dev/zfs"); err == nil {
		return
	}
	if os.Getenv("SIDUS_LAB") != "" {
		t.Fatal("the lab's kernel has no ZFS")
	}
	t.Skip("SKIPPED: this kernel has no ZFS; the test runs in the lab (go test ./tests/labdisk)")
}

func (p *pool) get(t testing.TB) string {
	t.Helper()
	p.once.Do(func() {
		var dir string
		if dir, p.err = os.MkdirTemp("", "sidus-zfs-test-"); p.err != nil {
			return
		}
		p.dir, p.name = dir, "sidustest-"+strings.ToLower(rand.Text()[:8])
		file := filepath.Join(dir, "disk")
		if p.err = os.WriteFile(file, nil, 0o600); p.err == nil {
			p.err = os.Truncate(file, 6<<30)
		}
		if p.err == nil {
			p.err = command("zpool", "create", "-o", "cachefile=none", "-o", "ashift=12", "-m", "none", p.name, file)
		}
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.name
}

func (p *pool) destroy() error {
	if p.dir == "" {
		return nil
	}
	return errors.Join(command("zpool", "destroy", "-f", p.name), os.RemoveAll(p.dir))
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// must runs a program.
func must(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// datasetOptions are those of a store in the test pool that goes away with the
// test.
func datasetOptions(t testing.TB) Options {
	requireZFS(t)
	o := Options{Dataset: testPool.get(t) + "/" + strings.ToLower(rand.Text()[:8]), RunDir: filepath.Join(t.TempDir(), "run")}
	t.Cleanup(func() {
		if exec.Command("zfs", "list", o.Dataset).Run() != nil {
			return
		}
		if err := command("zfs", "destroy", "-R", o.Dataset); err != nil {
			t.Error(err)
		}
	})
	return o
}

func fileOptions(t testing.TB) Options {
	requireZFS(t)
	dir := t.TempDir()
	return Options{File: filepath.Join(dir, "store.zfs"), RunDir: filepath.Join(dir, "run"), Size: MinSize}
}

func opened(t testing.TB, o Options) *storetest.Backend {
	var before func(string) error
	o.Step = func(step string) error {
		if before == nil {
			return nil
		}
		return before(step)
	}
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		before = nil
		if err := s.Detach(context.Background()); err != nil {
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
	}
}

func newBackend(t testing.TB) *storetest.Backend { return opened(t, datasetOptions(t)) }

func TestDataset(t *testing.T) { storetest.RunParallel(t, newBackend) }

// TestNative exchanges streams between stores in one pool.
func TestNative(t *testing.T) { storetest.RunNativeParallel(t, newBackend) }

func BenchmarkDataset(b *testing.B) { storetest.Benchmark(b, newBackend) }

// open makes a store for a test of this backend alone.
func open(t testing.TB, o Options) *Store {
	return opened(t, o).Store.(*Store)
}
