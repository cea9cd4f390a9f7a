package nfs

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"sidus/tests/labdisk"
)

// TestBesideKernel compares the server with that of the kernel, which the
// virtual machine of tests/labdisk has: the same tree, the same load in
// alternating tries. It fails if a benchmark cannot be run; a target that is
// missed is shown.
func TestBesideKernel(t *testing.T) {
	if os.Getenv("SIDUS_LAB") == "" {
		if os.Getenv("SIDUS_LAB_TESTS") == "" {
			t.Skip("SKIPPED: the comparison with the kernel's NFS server was NOT made: `make bench` does it in a machine of its own")
		}
		if disk, err := labdisk.Cached(); err != nil || disk == nil {
			t.Skipf("SKIPPED: the comparison with the kernel's NFS server was NOT made: `make lab` makes the machine that has it (%v)", err)
		}
		labdisk.Run(t, labdisk.Suite{
			Package: "sidus/export/nfs", Args: []string{"-test.run=^TestBesideKernel$"}, Timeout: 10 * time.Minute,
			Setup: "mkdir -p /run/rpcbind; ip link set lo up; rpcbind -w; mount -t nfsd nfsd /proc/fs/nfsd 2>/dev/null; mkdir -p /run/rpc_pipefs; " +
				"rpc.nfsd --no-nfs-version 4 8; rpc.mountd --port 20048",
		})
		return
	}
	// On a file system that the kernel can export, as ours can serve it.
	tree := "/srv/beside"
	for d := range 50 {
		dir := filepath.Join(tree, fmt.Sprint("dir", d))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 60 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", f)), make([]byte, 20*f*f), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(tree, "large"), make([]byte, 32<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "exportfs", "-o", "ro,no_root_squash,no_subtree_check,insecure,fsid=7", "127.0.0.0/8:"+tree)
	server := exec.Command(os.Args[0], "-test.run=^$")
	startProcess(t, server, tree, t.TempDir(), "SIDUS_TEST_SERVE_ADDR=127.0.0.1:2050")
	targets := [2]string{"127.0.0.1:2050,/channel/default,127.0.0.1:2050", "127.0.0.1:2049," + tree + ",127.0.0.1:20048"}
	rate := regexp.MustCompile(`([0-9.e+]+) calls/s`)
	try := func(load, target string) float64 {
		t.Helper()
		cmd := exec.Command(os.Args[0], "-test.run=^$", "-test.bench=^BenchmarkServer$/^"+strings.ReplaceAll(load, "/", "$/^")+"$", "-test.benchtime=500ms")
		cmd.Env = append(os.Environ(), "SIDUS_BENCH_TREE="+tree, "SIDUS_BENCH_TARGET="+target, "SIDUS_BENCH_PID="+strconv.Itoa(server.Process.Pid))
		var said bytes.Buffer
		cmd.Stderr = &said
		out, err := cmd.Output()
		found := rate.FindSubmatch(out)
		if err != nil || found == nil {
			t.Fatalf("%s of %s: %v: %s%s", load, target, err, out, said.String())
		}
		calls, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			t.Fatal(err)
		}
		return calls
	}
	const rounds = 5
	for _, flight := range []int{16, 1} {
		for _, load := range []struct {
			name   string
			wanted float64
		}{{"GETATTR", 1.5}, {"LOOKUP", 1.5}, {"ACCESS", 1.5}, {"READDIRPLUS", 1.5}, {"READ4K", 1}, {"READall", 1}, {"READ128K", 1}} {
			var ratios, ours, theirs []float64
			for round := range rounds {
				var calls [2]float64
				for i := range calls {
					which := (i + round) % 2
					calls[which] = try(fmt.Sprintf("%s/8x%d", load.name, flight), targets[which])
				}
				ours, theirs, ratios = append(ours, calls[0]), append(theirs, calls[1]), append(ratios, calls[0]/calls[1])
			}
			middle := func(list []float64) float64 { return slices.Sorted(slices.Values(list))[rounds/2] }
			verdict := "ok"
			if middle(ratios) < load.wanted {
				verdict = "MISSED"
			}
			t.Logf("%-12s %2d in flight: sidus %8.0f/s, the kernel %8.0f/s: %5.2fx (wanted %.1fx) %s",
				load.name, flight, middle(ours), middle(theirs), middle(ratios), load.wanted, verdict)
		}
	}
}
