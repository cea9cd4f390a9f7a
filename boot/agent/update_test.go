package agent

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	logtest "github.com/sirupsen/logrus/hooks/test"
	"golang.org/x/sys/unix"

	"sidus/boot/protocol"
	"sidus/image/store"
)

// TestUpdate stacks small trees over the /usr of mount and PID namespaces of
// its own, whose first process it is. What stands for the NFS server is a
// directory.
func TestUpdate(t *testing.T) {
	if os.Getenv("SIDUS_TEST_NAMESPACE") != "" {
		testUpdate(t)
		return
	}
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: it mounts: it needs root")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUpdate$", "-test.v")
	cmd.Env = append(os.Environ(), "SIDUS_TEST_NAMESPACE=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestUpdate") {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

// snapshots is where the trees are.
const snapshots = "/run/trees"

func snapshotID(n int) store.SnapshotID { return store.SnapshotID(fmt.Sprintf("%032x", n)) }

// likeNode makes the mounts that a node has: a root that is shared, and layers.
func likeNode(t *testing.T) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
	must(unix.Mount("proc", "/proc", "proc", 0, ""))
	must(unix.Mount("tmpfs", "/run", "tmpfs", 0, ""))
	must(unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""))
	must(os.MkdirAll(rootLayer, 0o755))
	must(unix.Mount("10.0.0.1:/snapshot/"+string(snapshotID(1)), rootLayer, "tmpfs", 0, ""))
	must(os.MkdirAll(writeLayer+"/usr/local/bin", 0o755))
}

// tree makes a snapshot with a /usr that holds busybox and some files.
func tree(t *testing.T, n int, files map[string]string) {
	t.Helper()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	release, err := os.ReadFile("/usr/lib/os-release")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"bin/busybox": string(program), "lib/os-release": string(release), "sbin/empty": ""}
	for name, text := range files {
		all[name] = text
	}
	for name, text := range all {
		path := filepath.Join(snapshots, string(snapshotID(n)), "usr", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("busybox", filepath.Join(snapshots, string(snapshotID(n)), "usr/bin/sh")); err != nil {
		t.Fatal(err)
	}
}

func testUpdate(t *testing.T) {
	likeNode(t)
	busybox := "#!/bin/busybox sh\n"
	tree(t, 2, map[string]string{"bin/tool": "two"})
	tree(t, 3, map[string]string{"bin/tool": "three", "bin/more": "", "local/bin/mine": "the snapshot's"})
	tree(t, 4, map[string]string{"lib/os-release": "ID=other\nVERSION_ID=\"1.2\"\n"})
	tree(t, 5, map[string]string{"sbin/ldconfig": busybox + "echo no such luck >&2\nexit 3\n"})
	if err := os.WriteFile(writeLayer+"/usr/local/bin/mine", []byte("the node's"), 0o755); err != nil {
		t.Fatal(err)
	}
	// A file in /usr of this process, which it keeps.
	kept, err := os.Open("/usr/lib/os-release")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	// A namespace that gets what is mounted here.
	slave := exec.Command("unshare", "-m", "--propagation", "slave", "cat")
	input, err := slave.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := slave.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := slave.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = input.Close(); _ = slave.Wait() }()
	if _, err := input.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := output.Read(make([]byte, 1)); err != nil { // it is there now
		t.Fatal(err)
	}
	roots := []string{"", fmt.Sprintf("/proc/%d/root", slave.Process.Pid)}
	// Something is mounted below /usr.
	if err := unix.Mount("tmpfs", "/usr/local", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}

	log, _ := logtest.NewNullLogger()
	u := &Updater{Log: log, mount: func(source, dir, _ string) error {
		_, id, ok := strings.Cut(source, "10.0.0.1:/snapshot/")
		if !ok {
			return errors.New("a wrong source: " + source)
		}
		return unix.Mount(filepath.Join(snapshots, id), dir, "", unix.MS_BIND, "")
	}}
	update := func(order int64, n int, fails string) protocol.Outcome {
		t.Helper()
		outcome := u.Update(t.Context(), protocol.Order{Number: order, Action: protocol.ActionUpdate, Snapshot: snapshotID(n)})
		if fails == "" && outcome.Reason != "" || !strings.Contains(outcome.Reason, fails) || outcome.Held {
			t.Errorf("order %d: %+v", order, outcome)
		}
		return outcome
	}
	see := func(name, want string) {
		t.Helper()
		for _, root := range roots {
			if got, err := os.ReadFile(root + name); string(got) != want || (err != nil) != (want == "") {
				t.Errorf("%s%s holds %q, %v; want %q", root, name, got, err, want)
			}
		}
	}
	mounts := func() string {
		t.Helper()
		data, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}

	if _, err := os.Stat("/usr/bin/tool"); err == nil {
		t.Fatal("/usr/bin/tool is there already")
	}
	outcome := update(1, 2, "")
	t.Logf("notes: %q", outcome.Notes)
	see("/usr/bin/tool", "two")
	if err := os.WriteFile("/usr/bin/written", []byte("later"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/usr/local/on-tmpfs", []byte("carried"), 0o644); err != nil {
		t.Fatal(err)
	}
	before := mounts()
	update(1, 2, "") // again: it is there
	if now := mounts(); now != before {
		t.Errorf("a second time changes the mounts from\n%s\nto\n%s", before, now)
	}
	update(2, 3, "")
	see("/usr/bin/tool", "three")
	see("/usr/bin/written", "later")
	see("/usr/local/on-tmpfs", "carried")
	before = mounts()
	update(3, 4, "another release needs a reboot")
	update(4, 5, "exit status 3")
	update(5, 6, "no such file")
	if now := mounts(); now != before {
		t.Errorf("failures change the mounts from\n%s\nto\n%s", before, now)
	}
	see("/usr/bin/tool", "three")
	update(6, 2, "") // back
	see("/usr/bin/tool", "two")
	see("/usr/bin/more", "")
	see("/usr/bin/written", "later")
	if n := strings.Count(mounts(), " /usr/local tmpfs "); n != 1 {
		t.Errorf("%d mounts at /usr/local:\n%s", n, mounts())
	}
	// What the node wrote before the first update is below the tmpfs.
	if err := unix.Unmount("/usr/local", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile("/usr/local/bin/mine"); string(got) != "the node's" {
		t.Errorf("what the node wrote is %q, %v", got, err)
	}
	if text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", kept.Fd())); err != nil || len(text) == 0 {
		t.Errorf("an open file: %v", err)
	}
	if left, _ := filepath.Glob(updateRoot + "/usr-*"); len(left) > 0 {
		t.Errorf("left over: %q", left)
	}
}
