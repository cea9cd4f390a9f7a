package labdisk

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// core are the tests of a backend that are run with -short: that it does what
// it is for. All tests take most of an hour where the machine is emulated.
const core = "^(TestDataset|TestThinPool|TestNative|TestNativeStreams)$/^(life-cycle|isolation|metadata|in-use|receive-cut-at-each-step)$"

// TestSuites runs the suites of the backends that need what the host may lack.
// Some of their cases are shorter in the machine, where a program takes ten
// times as long; with SIDUS_LONG_TESTS in the environment they run in full.
// SIDUS_TEST_SUITES=sidus/zfs,sidus/lvm runs these only, and SIDUS_TEST_RUN, a
// value for -test.run, these tests of them.
func TestSuites(t *testing.T) {
	var args []string
	if os.Getenv("SIDUS_LONG_TESTS") == "" {
		args = []string{"-test.short"}
	}
	suites := []Suite{
		{Package: "sidus/image/store/mountpoint"},
		{Package: "sidus/zfs", Args: args, Timeout: time.Hour},
		{Package: "sidus/tests/adopt", Programs: []string{"sidus/cmd/sidus"}},
		// With udev, as on a server, and without, as in a container. Most of it
		// without: emulated, udev takes some seconds for each device.
		{Package: "sidus/lvm", Args: []string{"-test.run=TestFile|TestCutOff"}},
		{Package: "sidus/lvm", Args: append(slices.Clone(args), "-test.skip=TestFile|TestCutOff"), Env: []string{"DM_DISABLE_UDEV=1"}, Setup: withoutUdev, Timeout: time.Hour},
	}
	if testing.Short() {
		t.Log("SKIPPED: most tests of zfs and lvm: -short; `make lab-test` runs all")
		suites = []Suite{
			{Package: "sidus/zfs", Args: []string{"-test.short", "-test.run=" + core}},
			{Package: "sidus/lvm", Args: []string{"-test.short", "-test.run=" + core}, Env: []string{"DM_DISABLE_UDEV=1"}, Setup: withoutUdev},
		}
	}
	if only := os.Getenv("SIDUS_TEST_SUITES"); only != "" {
		suites = slices.DeleteFunc(suites, func(s Suite) bool { return !slices.Contains(strings.Split(only, ","), s.Package) })
	}
	if only := os.Getenv("SIDUS_TEST_RUN"); only != "" {
		for i := range suites {
			suites[i].Args = append(slices.Clone(suites[i].Args), "-test.run="+only)
		}
	}
	Run(t, suites...)
}

const withoutUdev = "systemctl stop systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udevd.service"

// TestReader reads what a machine says in pieces of every size.
func TestReader(t *testing.T) {
	const said = "boot words\nsidus-lab: begin 0\r\n=== RUN   TestA\r\n    a_test.go:1: word\r\n--- FAIL: TestA (0.10s)\r\n" +
		"    --- PASS: TestA/one (0.00s)\r\nPASS\r\nsidus-lab: end 0 1\r\nsidus-lab: begin 1\r\n--- SKIP: TestB (0.00s)\r\nsidus-lab: end 1 0\r\nsidus-lab: begin 2\r\npanic: oh\r\n"
	for size := 1; size < len(said); size++ {
		var r reader
		for at := 0; at < len(said); at += size {
			if _, err := fmt.Fprint(&r, said[at:min(at+size, len(said))]); err != nil {
				t.Fatal(err)
			}
		}
		if len(r.suites) != 3 || len(r.suites[0]) != 2 || len(r.codes) != 2 || r.codes[0] != "1" || r.codes[1] != "0" || r.status != "" {
			t.Fatalf("%+v", r)
		}
		first := r.suites[0][0]
		if first.name != "TestA" || first.verdict != "FAIL" || !strings.Contains(first.text, "word") {
			t.Fatalf("%+v", first)
		}
		if !strings.Contains(r.pending, "panic: oh") {
			t.Fatalf("the last words are %q", r.pending)
		}
	}
}

// TestKey: the key depends on nothing but the inputs.
func TestKey(t *testing.T) {
	one, err := key()
	if err != nil {
		t.Fatal(err)
	}
	two, _ := key()
	if one != two || len(one) != 16 {
		t.Errorf("%q, %q", one, two)
	}
	names, err := packages()
	if err != nil || !strings.Contains(names, "zfs-dkms,") || strings.ContainsAny(names, " #\n") {
		t.Errorf("%q, %v", names, err)
	}
}

// TestPassed: the note of what has passed is one of all that it depends on.
func TestPassed(t *testing.T) {
	t.Setenv(CacheEnv, t.TempDir())
	t.Setenv(FreshEnv, "")
	folder := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		t.Helper()
		if err := os.WriteFile(filepath.Join(folder, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		note, err := passedFile(folder)
		if err != nil {
			t.Fatal(err)
		}
		return note
	}
	first := write("test", "one", 0o755)
	if _, ok := passed(first); ok {
		t.Error("it has passed before it ran")
	}
	if err := notePassed(first); err != nil {
		t.Fatal(err)
	}
	if _, ok := passed(write("test", "one", 0o755)); !ok {
		t.Error("the note is not found")
	}
	if _, ok := passed(write("test", "two", 0o755)); ok {
		t.Error("another program has the same note")
	}
	write("test", "one", 0o755)
	if _, ok := passed(write("run", "other arguments", 0o755)); ok {
		t.Error("other arguments have the same note")
	}
	t.Setenv(FreshEnv, "1")
	if _, ok := passed(first); ok {
		t.Error("the note counts although a fresh run is wanted")
	}
}
