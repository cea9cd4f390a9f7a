package build

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"sidus/image/tool"
)

// longTests is set by those who have minutes and a Debian mirror.
const longTests = "SIDUS_LONG_TESTS"

func needMirror(t *testing.T) {
	t.Helper()
	if os.Getenv(longTests) == "" {
		t.Skipf("SKIPPED: builds a Debian from the machine's mirror, some minutes; set %s=1", longTests)
	}
	needRoot(t)
	if _, err := tool.Look("mmdebstrap"); err != nil {
		t.Fatal(err)
	}
}

// countingMirror stands before the machine's archives and counts the packages
// that are fetched.
type countingMirror struct {
	Mirrors
	packages, others atomic.Int64
}

func newCountingMirror(t *testing.T) *countingMirror {
	machine := MachineMirrors("/etc/apt")
	c := &countingMirror{}
	stand := func(archive string) string {
		if archive == "" {
			return ""
		}
		target, err := url.Parse(archive)
		if err != nil {
			t.Fatal(err)
		}
		proxy := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(&url.URL{Scheme: target.Scheme, Host: target.Host}) }}
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasSuffix(r.URL.Path, ".deb") {
				c.packages.Add(1)
			} else {
				c.others.Add(1)
			}
			proxy.ServeHTTP(w, r)
		}))
		t.Cleanup(func() { server.Close(); http.DefaultTransport.(*http.Transport).CloseIdleConnections() })
		return server.URL + target.Path
	}
	c.Archive, c.Updates, c.Security = stand(machine.Archive), stand(machine.Updates), stand(machine.Security)
	return c
}

func TestDemoRecipe(t *testing.T) {
	needMirror(t)
	cache, logs := t.TempDir(), t.TempDir()
	mirror := newCountingMirror(t)
	tools := BootTools{
		Digest:  "none",
		Install: func(string, BootOptions) error { return nil },
		Prepare: func(string) error { return nil },
	}
	builder := New(Options{CacheDir: cache, LogDir: logs, Boot: tools, Progress: &plain{out: os.Stderr}, Mirrors: &mirror.Mirrors})
	recipe := mustLoad(t, "../../recipes/demo.yaml", map[string]string{"nonce": "one"})
	run := func(what string, head *folderHead, r Request) Result {
		t.Helper()
		began := time.Now()
		result, err := builder.Build(t.Context(), head, r)
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, logOf(t, logs))
		}
		t.Logf("%s: %v, %d packages and %d other files fetched", what, time.Since(began).Round(10*time.Millisecond), mirror.packages.Swap(0), mirror.others.Swap(0))
		return result
	}
	head := newFolderHead(t)
	run("cold build", head, Request{Recipe: recipe})
	size, _ := exec.Command("du", "-sm", head.head).Output()
	t.Logf("size of the tree in MB: %s", strings.Fields(string(size))[0])
	if entries, _ := os.ReadDir(filepath.Join(head.head, "var/cache/apt/archives")); len(entries) != 0 {
		t.Error("packages were left in the tree:", entries)
	}
	if entries, _ := os.ReadDir(filepath.Join(head.head, "var/lib/apt/lists")); len(entries) != 0 {
		t.Error("package lists were left in the tree:", entries)
	}
	for _, name := range []string{"etc/resolv.conf", "etc/hostname", "usr/sbin/policy-rc.d"} {
		if _, err := os.Lstat(filepath.Join(head.head, name)); err == nil {
			t.Error("left in the tree:", name)
		}
	}

	if result := run("nothing changed", head, Request{Recipe: recipe}); !result.UpToDate {
		t.Errorf("a second build is not up to date: %s", result.Plan)
	}
	result := run("another nonce", head, Request{Recipe: mustLoad(t, "../../recipes/demo.yaml", map[string]string{"nonce": "two"})})
	if result.Plan.Runs() != 1 {
		t.Errorf("another nonce: the plan is\n%s", result.Plan)
	}
	if text, _ := os.ReadFile(filepath.Join(head.head, "etc/sidus-demo/nonce")); string(text) != "two\n" {
		t.Errorf("the nonce is %q", text)
	}

	// A second tree needs no package from the mirror.
	mirror.packages.Store(0)
	warm, err := builder.Build(t.Context(), newFolderHead(t), Request{Recipe: recipe})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("warm build: %v, %d packages and %d other files fetched", warm.Elapsed.Round(10*time.Millisecond), mirror.packages.Load(), mirror.others.Load())
	if n := mirror.packages.Load(); n != 0 {
		t.Errorf("%d packages were fetched again", n)
	}
}

// A build is killed with -9 in the middle of the tool's work: nothing runs and
// nothing is mounted afterwards.
func TestKillNineInTheBasePhase(t *testing.T) {
	needMirror(t)
	work := t.TempDir()
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestBuildToBeKilled$", "-test.v")
	cmd.Env = append(os.Environ(), killedDir+"="+work)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// The tool has mounted /proc and others in its chroot by the time that
	// packages are set up.
	seen := ""
	buf := make([]byte, 4096)
	for !strings.Contains(seen, "installing essential packages") {
		n, err := out.Read(buf)
		seen += string(buf[:n])
		if err != nil {
			_ = cmd.Wait()
			t.Fatalf("the build ended by itself: %s", seen)
		}
	}
	inside := func() (found []string) {
		names, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range names {
			if text, err := os.ReadFile(name); err == nil && strings.Contains(string(text), work) {
				found = append(found, strings.ReplaceAll(string(text), "\x00", " "))
			}
		}
		return found
	}
	if len(inside()) < 2 {
		t.Errorf("the tool does not run: %q", inside())
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	// What the kernel kills with the sandbox is gone in a moment.
	for deadline := time.Now().Add(10 * time.Second); len(inside()) > 0 && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	if left := inside(); len(left) > 0 {
		t.Errorf("still running: %q", left)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), work) {
		t.Errorf("still mounted: %s", mounts)
	}
	if err := os.RemoveAll(work); err != nil {
		t.Error("something holds the tree:", err)
	}
}

// killedDir is where the build that is to be killed works.
const killedDir = "SIDUS_TEST_KILLED_DIR"

// TestBuildToBeKilled is the other process of TestKillNineInTheBasePhase.
func TestBuildToBeKilled(t *testing.T) {
	dir := os.Getenv(killedDir)
	if dir == "" {
		t.Skip("run by TestKillNineInTheBasePhase")
	}
	head := newFolderHead(t)
	head.dir = dir
	builder := New(Options{CacheDir: filepath.Join(dir, "cache"), Progress: progressFunc(func(e Event) { _, _ = os.Stdout.WriteString(e.Text + "\n") })})
	_, err := builder.Build(context.Background(), head, Request{Recipe: mustLoad(t, writeRecipe(t, "phases:\n  - base: {suite: bookworm}\n"), nil)})
	t.Fatal("not killed:", err)
}

func TestDebootstrap(t *testing.T) {
	needMirror(t)
	if _, err := tool.Look("debootstrap"); err != nil {
		t.Fatal(err)
	}
	o, _ := testOptions(t)
	mirror := newCountingMirror(t)
	o.Mirrors = &mirror.Mirrors
	recipe := mustLoad(t, writeRecipe(t, "phases:\n  - base: {suite: bookworm, tool: debootstrap}\n"), nil)
	for _, warm := range []bool{false, true} {
		mirror.packages.Store(0)
		head := newFolderHead(t)
		result := mustBuild(t, o, head, Request{Recipe: recipe})
		t.Logf("warm %v: %v, %d packages fetched", warm, result.Elapsed, mirror.packages.Load())
		if warm && mirror.packages.Load() != 0 {
			t.Error("packages were fetched again")
		}
		sources, err := os.ReadFile(filepath.Join(head.head, "etc/apt/sources.list"))
		if err != nil || strings.Count(string(sources), "deb ") != 3 {
			t.Errorf("sources: %s (%v)", sources, err)
		}
		if entries, _ := os.ReadDir(filepath.Join(head.head, "var/cache/apt/archives")); len(entries) != 0 {
			t.Error("packages were left in the tree:", entries)
		}
	}
}

func TestMissingPackage(t *testing.T) {
	needMirror(t)
	o, _ := testOptions(t)
	_, err := New(o).Build(t.Context(), newFolderHead(t), Request{Recipe: mustLoad(t, writeRecipe(t, "phases:\n  - base: {suite: bookworm, variant: apt, include: [no-such-package]}\n"), nil)})
	var failed *PhaseError
	if !errors.As(err, &failed) || !strings.Contains(err.Error(), "Unable to locate package no-such-package") {
		t.Error(err)
	}
}
