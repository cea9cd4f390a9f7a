package build

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/image/tool"
)

// longTests is set by those who have minutes and a Debian mirror.
const longTests = "SIDUS_LONG_TESTS"

func TestDemoRecipe(t *testing.T) {
	if os.Getenv(longTests) == "" {
		t.Skipf("SKIPPED: builds a Debian twice, some minutes; set %s=1", longTests)
	}
	needRoot(t)
	if _, err := tool.Look("mmdebstrap"); err != nil {
		t.Fatal(err)
	}
	cache, logs := t.TempDir(), t.TempDir()
	if dir := os.Getenv("SIDUS_TEST_CACHE"); dir != "" {
		cache = dir
	}
	tools := BootTools{
		Digest:  "none",
		Install: func(string, BootOptions) error { return nil },
		Prepare: func(string) error { return nil },
	}
	builder := New(Options{CacheDir: cache, LogDir: logs, Boot: tools, Progress: &plain{out: os.Stderr}})
	recipe := mustLoad(t, "../../recipes/demo.yaml", map[string]string{"nonce": "one"})
	run := func(what string, head *folderHead, r Request) (Result, time.Duration) {
		t.Helper()
		began := time.Now()
		result, err := builder.Build(t.Context(), head, r)
		if err != nil {
			t.Fatalf("%s: %v\n%s", what, err, logOf(t, logs))
		}
		t.Logf("%s: %v", what, time.Since(began).Round(10*time.Millisecond))
		return result, time.Since(began)
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

	result, took := run("nothing changed", head, Request{Recipe: recipe})
	if !result.UpToDate || took > time.Second {
		t.Errorf("a second build took %v, up to date: %v", took, result.UpToDate)
	}
	result, _ = run("another nonce", head, Request{Recipe: mustLoad(t, "../../recipes/demo.yaml", map[string]string{"nonce": "two"})})
	if result.Plan.Runs() != 1 {
		t.Errorf("another nonce: the plan is\n%s", result.Plan)
	}
	if text, _ := os.ReadFile(filepath.Join(head.head, "etc/sidus-demo/nonce")); string(text) != "two\n" {
		t.Errorf("the nonce is %q", text)
	}

	// A second tree needs no package from the mirror.
	before := logOf(t, logs)
	run("warm build", newFolderHead(t), Request{Recipe: recipe})
	downloads := 0
	for line := range strings.Lines(strings.TrimPrefix(logOf(t, logs), before)) {
		if strings.HasPrefix(line, "Get:") && strings.Contains(line, "amd64 ") && !strings.Contains(line, "Packages") {
			downloads++
			t.Log("downloaded again:", strings.TrimSpace(line))
		}
	}
	if downloads > 0 {
		t.Errorf("%d packages were downloaded again", downloads)
	}
}
