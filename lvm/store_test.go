package lvm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	for _, g := range append([]*slot{{group: testGroup}}, slots...) {
		if err := g.group.destroy(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// testGroup is a volume group that is made for the first test that needs it:
// what an administrator has already.
var testGroup = &group{metadata: "16m"}

type group struct {
	once   sync.Once
	name   string
	dir    string
	device string
	err    error
	// metadata is the size of its metadata, as pvcreate takes it.
	metadata string
}

// requireThin ends a test that cannot run here. In the lab it can: there it
// fails.
func requireThin(t testing.TB) {
	t.Helper()
	storetest.RequireRoot(t)
	// Any program that is linked to libdevmapper makes the device node, also
	// where there is nothing behind it: only opening it tells.
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err == nil {
		_ = control.Close()
		return
	}
	if os.Getenv("SIDUS_LAB") != "" {
		t.Fatal("the lab's kernel has no device mapper")
	}
	t.Skip("SKIPPED: this kernel has no device mapper; the test runs in the lab (go test ./tests/labdisk)")
}

func (g *group) get(t testing.TB) string {
	t.Helper()
	g.once.Do(func() {
		if g.dir, g.err = os.MkdirTemp("", "sidus-lvm-test-"); g.err != nil {
			return
		}
		// With a hyphen, which the device mapper doubles.
		g.name = "sidustest-" + strings.ToLower(rand.Text()[:8])
		file := filepath.Join(g.dir, "disk")
		g.err = errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 40<<30))
		if g.err != nil {
			return
		}
		var out []byte
		if out, g.err = exec.Command("losetup", "--find", "--show", file).Output(); g.err != nil {
			return
		}
		g.device = strings.TrimSpace(string(out))
		if g.err = command("pvcreate", "--yes", "--metadatasize", g.metadata, g.device); g.err == nil {
			g.err = command("vgcreate", g.name, g.device)
		}
	})
	if g.err != nil {
		t.Fatal(g.err)
	}
	return g.name
}

func (g *group) destroy() error {
	if g.dir == "" {
		return nil
	}
	var err error
	if g.device != "" {
		err = errors.Join(command("vgremove", "--yes", "--force", g.name), command("losetup", "--detach", g.device))
	}
	return errors.Join(err, os.RemoveAll(g.dir))
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

// poolOptions are those of a store in a new thin pool of the test group, which
// goes away with the test.
func poolOptions(t testing.TB) Options { return poolOf(t, "2g", "32m") }

func poolOf(t testing.TB, size, metadata string) Options { return poolIn(t, testGroup, size, metadata) }

func poolIn(t testing.TB, g *group, size, metadata string) Options {
	requireThin(t)
	vg := g.get(t)
	pool := "pool-" + strings.ToLower(rand.Text()[:8])
	must(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", size, "--chunksize", "64k", "--poolmetadatasize", metadata, "--name", pool, vg)
	t.Cleanup(func() {
		if err := command("lvremove", "--yes", "--force", vg+"/"+pool); err != nil {
			t.Error(err)
		}
		// The next pool has volumes of the same names.
		if out := must(t, "lvs", "--noheadings", "-o", "lv_name", vg); strings.Contains(out, "sidus.") {
			t.Errorf("left: %s", out)
		}
	})
	return Options{ThinPool: vg + "/" + pool, RunDir: filepath.Join(t.TempDir(), "run"), VolumeSize: 4 << 30}
}

// A slot is a pool in a volume group of its own, which tests use one after
// another: to make one, and what belongs in it, takes longer than most tests.
type slot struct {
	group *group
	o     Options
	busy  bool
}

var slots []*slot

// sharedOptions are those of a pool that no other store of this test uses. What
// the test has made in it goes away with the test.
func sharedOptions(t testing.TB) Options {
	requireThin(t)
	n := slices.IndexFunc(slots, func(s *slot) bool { return !s.busy })
	if n < 0 {
		n = len(slots)
		slots = append(slots, &slot{group: &group{metadata: "16m"}})
	}
	s := slots[n]
	s.busy = true // for good, if this fails
	vg := s.group.get(t)
	if s.o.ThinPool == "" {
		must(t, "lvcreate", "--yes", "--type", "thin-pool", "--size", "2g", "--chunksize", chunkSizes[n%len(chunkSizes)], "--poolmetadatasize", "32m", "--name", "pool-shared", vg)
		s.o = Options{ThinPool: vg + "/pool-shared", RunDir: filepath.Join(s.group.dir, "run"), VolumeSize: 4 << 30}
	}
	t.Cleanup(func() {
		if err := command("lvremove", "--yes", "--select", `lv_name=~"^sidus[.][vs][.]"`, vg); err != nil {
			t.Error(err)
			return
		}
		s.busy = false
	})
	return s.o
}

// chunkSizes are those of the pools of tests: streams go from one to another.
var chunkSizes = []string{"64k", "256k", "64k"}

// emptyKept removes the kept files, if the test has used them.
func emptyKept(s *Store) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		return nil
	}
	entries, err := os.ReadDir(s.kept.Path())
	for _, e := range entries {
		err = errors.Join(err, os.Remove(filepath.Join(s.kept.Path(), e.Name())))
	}
	return err
}

// commandTimes tells with a test how many programs it ran, and how long they
// took: nearly all the time of this backend.
type commandTimes struct {
	mu    sync.Mutex
	count map[string]int
	took  map[string]time.Duration
}

func (c *commandTimes) Levels() []logrus.Level { return []logrus.Level{logrus.DebugLevel} }

func (c *commandTimes) Fire(e *logrus.Entry) error {
	line, _ := e.Data["command"].(string)
	took, _ := e.Data["duration"].(time.Duration)
	words := strings.Fields(line)
	if len(words) == 0 {
		return nil
	}
	name := words[0]
	if (name == "lvm" || name == "dmsetup") && len(words) > 1 {
		name += " " + words[1]
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.count[name]++
	c.took[name] += took
	return nil
}

func (c *commandTimes) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var text strings.Builder
	for _, name := range slices.Sorted(maps.Keys(c.count)) {
		fmt.Fprintf(&text, "%d %s in %v; ", c.count[name], name, c.took[name].Round(time.Millisecond))
	}
	return strings.TrimSuffix(text.String(), "; ")
}

func countCommands(t testing.TB) logrus.FieldLogger {
	times := &commandTimes{count: map[string]int{}, took: map[string]time.Duration{}}
	log := logrus.New()
	log.SetOutput(io.Discard)
	log.SetLevel(logrus.DebugLevel)
	log.AddHook(times)
	t.Cleanup(func() { t.Log("programs: ", times) })
	return log
}

func fileOptions(t testing.TB) Options {
	requireThin(t)
	dir := t.TempDir()
	return Options{File: filepath.Join(dir, "store.lvm"), RunDir: filepath.Join(dir, "run"), Size: 2 << 30, VolumeSize: 4 << 30}
}

func opened(t testing.TB, o Options) *storetest.Backend {
	var before func(string) error
	o.Log = countCommands(t)
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
		if err := errors.Join(emptyKept(s), s.Detach(context.Background())); err != nil {
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

func newBackend(t testing.TB) *storetest.Backend { return opened(t, sharedOptions(t)) }

func TestThinPool(t *testing.T) { storetest.Run(t, newBackend) }

func TestNativeStreams(t *testing.T) { storetest.RunNative(t, newBackend) }

func BenchmarkThinPool(b *testing.B) { storetest.Benchmark(b, newBackend) }

// open makes a store for a test of this backend alone.
func open(t testing.TB, o Options) *Store {
	return opened(t, o).Store.(*Store)
}
