package nfs

import (
	"bufio"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// namespace makes a network namespace, and returns what runs a program in it.
func namespace(t *testing.T) func(name string, args ...string) *exec.Cmd {
	t.Helper()
	needRoot(t)
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := "sidus-nfs" + hex.EncodeToString(random[:])
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "delete", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return func(program string, args ...string) *exec.Cmd {
		return exec.Command("ip", append([]string{"netns", "exec", name, program}, args...)...)
	}
}

// TestDissector has Wireshark read what goes over the wire: it finds nothing
// malformed, and no call without a reply.
func TestDissector(t *testing.T) {
	for _, tool := range []string{"dumpcap", "tshark"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") == "true" {
				t.Fatal(err)
			}
			t.Skipf("SKIPPED: %s is not installed", tool)
		}
	}
	inside := namespace(t)
	root, dir := makeTree(t), t.TempDir()

	server := inside(os.Args[0], "-test.run=^$")
	startProcess(t, server, root, dir, "SIDUS_TEST_SERVE_ADDR=127.0.0.1:2049")
	capture := filepath.Join(dir, "capture")
	dump := inside("dumpcap", "-i", "lo", "-B", "64", "-w", capture, "-f", "tcp port 2049")
	says, err := dump.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	for lines := bufio.NewScanner(says); ; { // until it says where it writes to
		if !lines.Scan() {
			t.Fatal("dumpcap does not start")
		}
		if strings.HasPrefix(lines.Text(), "File:") {
			break
		}
	}
	for _, path := range []string{"/channel/default", "/channel/default/usr"} {
		if text, err := inside("nfs-ls", "-R", "nfs://127.0.0.1"+path+"?nfsport=2049&mountport=2049").CombinedOutput(); err != nil {
			t.Fatalf("nfs-ls: %v: %s", err, text)
		}
	}
	exercise := inside(os.Args[0], "-test.run=^TestExercise$")
	exercise.Env = append(os.Environ(), "SIDUS_TEST_EXERCISE=127.0.0.1:2049")
	if text, err := exercise.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	// dumpcap drops at its end what it has not written: wait for the last call,
	// COMMIT, to be in the file.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if seen, _ := exec.Command("tshark", "-r", capture, "-Y", "nfs.procedure_v3 == 21 && rpc.msgtyp == 1").Output(); strings.Count(string(seen), "\n") > 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the last call is not captured")
		}
	}
	_ = dump.Process.Signal(unix.SIGINT)
	_ = dump.Wait()

	if bad := run(t, "tshark", "-r", capture, "-Y", "_ws.malformed || _ws.expert.group == \"Malformed\""); bad != "" {
		t.Errorf("malformed:\n%.3000s", bad)
	}
	procs := map[string]int{}
	for _, p := range strings.Fields(run(t, "tshark", "-r", capture, "-Y", "nfs && rpc.msgtyp == 1", "-T", "fields", "-e", "nfs.procedure_v3")) {
		for _, p := range strings.Split(p, ",") {
			procs[p]++
		}
	}
	for p := range procCount {
		if procs[fmt.Sprint(p)] == 0 && p != 0 {
			t.Errorf("no reply to %s seen: %v", procNames[p], procs)
		}
	}
}

// TestExercise makes each call once, well-formed; TestDissector runs it in its
// namespace.
func TestExercise(t *testing.T) {
	s := &testServer{addr: os.Getenv("SIDUS_TEST_EXERCISE")}
	if s.addr == "" {
		s = serveTree(t, makeTree(t))
	}
	c := dial(t, s)
	top := c.root("/channel/default")
	three, link, big := c.lookup(top, "three"), c.lookup(top, "link"), c.lookup(top, "big")
	name, attr := []byte("new"), raw(words(0, 0, 0, 0, 0, 0))
	c.walk(top, "", 8192, func(string, []byte, fattr) {})
	for _, call := range []struct {
		proc int
		args []any
	}{
		{procNull, nil}, {procGetattr, []any{three}}, {procSetattr, []any{three, attr, 0}},
		{procLookup, []any{top, []byte("missing")}}, {procAccess, []any{three, 63}}, {procReadlink, []any{link}},
		{procReadlink, []any{three}}, {procRead, []any{three, uint64(0), 100}}, {procRead, []any{big, uint64(1), 65537}},
		{procRead, []any{top, uint64(1), 65537}}, {procWrite, []any{three, uint64(0), 4, 2, []byte("data")}},
		{procCreate, []any{top, name, 0, attr}}, {procMkdir, []any{top, name, attr}},
		{procSymlink, []any{top, name, attr, []byte("x")}}, {procMknod, []any{top, name, 7, attr}},
		{procRemove, []any{top, name}}, {procRmdir, []any{top, name}}, {procRename, []any{top, name, top, name}},
		{procLink, []any{three, top, name}}, {procReaddir, []any{top, uint64(0), uint64(0), 4096}},
		{procReaddir, []any{three, uint64(0), uint64(0), 4096}}, {procFsstat, []any{top}}, {procFsinfo, []any{top}},
		{procPathconf, []any{top}}, {procCommit, []any{three, uint64(0), 0}}, {procCommit, []any{top, uint64(0), 0}},
	} {
		c.call(call.proc, call.args...)
	}
}

// TestShowmount asks with showmount(8), which needs a port mapper on port 111.
func TestShowmount(t *testing.T) {
	if _, err := exec.LookPath("showmount"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: showmount is not installed")
	}
	inside := namespace(t)
	server := inside(os.Args[0], "-test.run=^$")
	startProcess(t, server, t.TempDir(), t.TempDir(), "SIDUS_TEST_SERVE_ADDR=127.0.0.1:2049", "SIDUS_TEST_SERVE_PORTMAP=1")
	text, err := inside("showmount", "--no-headers", "-e", "127.0.0.1").CombinedOutput()
	if err != nil || !strings.Contains(string(text), "/channel/default") || !strings.Contains(string(text), "10.0.0.0/24") {
		t.Errorf("showmount -e: %v: %s", err, text)
	}
	// A client without port options finds NFS and MOUNT, too.
	if text, err := inside("nfs-ls", "nfs://127.0.0.1/channel/default").CombinedOutput(); err != nil {
		t.Errorf("nfs-ls: %v: %s", err, text)
	}
	if text, err := inside("showmount", "--no-headers", "-a", "127.0.0.1").CombinedOutput(); err != nil {
		t.Errorf("showmount -a: %v: %s", err, text)
	}
}
