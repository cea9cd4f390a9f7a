package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/tests/labdisk"
)

// The test program, started with this in its environment, is sidus itself.
const asSidus = "SIDUS_TEST_AS_SIDUS"

func init() {
	if os.Getenv(asSidus) != "" {
		main()
	}
}

// TestKernelClient lets the client of the Linux kernel walk and read a tree
// that `sidus serve` serves, with its own engine and with the kernel's, in the
// virtual machine that has both.
func TestKernelClient(t *testing.T) {
	if os.Getenv("SIDUS_LAB") == "" {
		if os.Getenv("SIDUS_LAB_TESTS") == "" {
			t.Skip("SKIPPED: the kernel's NFS client and server were NOT tested: `make lab-test` does it in a machine of its own")
		}
		labdisk.Run(t, labdisk.Suite{
			Package: "sidus/cmd/sidus", Args: []string{"-test.run=^TestKernelClient$"}, Timeout: 15 * time.Minute,
			Setup: "mkdir -p /run/rpcbind /srv/own; ip link set lo up; ip link add sidus0 type bridge; ip addr add 10.77.0.1/24 dev sidus0; ip link set sidus0 up; " +
				"rpcbind -w; mount -t nfsd nfsd /proc/fs/nfsd 2>/dev/null; mkdir -p /run/rpc_pipefs; " +
				"exportfs -o ro,fsid=1,no_subtree_check 127.0.0.0/8:/srv/own",
		})
		return
	}
	s := &labSite{t: t, state: filepath.Join(t.TempDir(), "state")}
	t.Cleanup(s.stop)
	tree := filepath.Join(t.TempDir(), "tree")
	makeClientTree(t, tree)
	s.sidus("init", "--backend", "btrfs", "--size", "1G")
	t.Cleanup(func() { s.sidus("unmount") })
	s.sidus("import", "client", "--dir", tree)
	s.sidus("promote", "client@latest")
	s.sidus("network", "add", "lab", "--subnet", "10.77.0.0/24")
	// The snapshot as the backend has it mounted.
	out, err := s.run("show", "client@latest", "--json")
	var shown struct {
		Snapshot struct {
			ID string `json:"id"`
		} `json:"snapshot"`
	}
	if err := firstError(err, json.Unmarshal([]byte(out), &shown)); err != nil || shown.Snapshot.ID == "" {
		t.Fatalf("%v: show says %s", err, out)
	}
	mounted, err := filepath.Glob("/run/sidus/*/snapshots/" + shown.Snapshot.ID)
	if err != nil || len(mounted) != 1 {
		t.Fatalf("%v: the backend's mounts of snapshots: %v", err, mounted)
	}
	want := walk(t, mounted[0])
	if sum := walk(t, tree)["big"]; sum == "" || sum != want["big"] {
		t.Errorf("it was imported as %q, not %q", want["big"], sum)
	}

	t.Run("engine=sidus", func(t *testing.T) {
		s.serve("--nfs-port", "2050")
		for _, options := range []string{"rsize=4096", "rsize=32768", "rsize=1048576", "rsize=1048576,nconnect=4"} {
			t.Run(options, func(t *testing.T) {
				at := mountNFS(t, "10.77.0.1:/channel/default", "port=2050,mountport=2050,"+options)
				for _, way := range []string{"cold", "warm", "dropped"} {
					if way == "dropped" {
						dropCaches(t)
					}
					sameWalk(t, way, want, walk(t, at))
				}
			})
		}
		t.Run("little memory", func(t *testing.T) {
			at := mountNFS(t, "10.77.0.1:/channel/default", "port=2050,mountport=2050,rsize=1048576")
			sums := sumsWithLittleMemory(t, at)
			if wanted := sumsWithLittleMemory(t, mounted[0]); sums != wanted || strings.Count(sums, "\n") < 1000 {
				t.Errorf("with little memory the digests are\n%.2000s\nand those of the tree\n%.2000s", sums, wanted)
			}
		})
		// A machine boots: the engine cannot be changed.
		line := s.boot()
		if !strings.Contains(line, "/snapshot/") || strings.Contains(line, "mountport=") {
			t.Errorf("it boots with %s", line)
		}
		s.stop()
		out, err := s.run("serve", "--interface", "sidus0", "--only", "nfs,http", "--nfs-engine", "kernel")
		if err == nil || !strings.Contains(out, "--nfs-engine sidus") {
			t.Errorf("the engine was changed under a machine that runs: %v\n%s", err, out)
		}
		s.sidus("node", "delete", "--force", "--yes", bootMAC)
	})

	t.Run("engine=kernel", func(t *testing.T) {
		out, err := s.run("serve", "--interface", "sidus0", "--only", "nfs,http", "--nfs-engine", "kernel")
		if err == nil || !strings.Contains(out, "systemctl start nfs-server") {
			t.Errorf("without the kernel's server: %v\n%s", err, out)
		}
		command(t, "rpc.nfsd", "--no-nfs-version", "4", "2")
		command(t, "rpc.mountd")
		s.serve("--nfs-engine", "kernel")
		line := s.boot()
		source, options := nfsOf(t, line)
		at := mountNFS(t, source, options+",rsize=1048576")
		for _, way := range []string{"cold", "warm"} {
			sameWalk(t, way, want, walk(t, at))
		}
		// Killed and started again: who runs loses nothing, meanwhile and after.
		s.kill()
		dropCaches(t)
		sameWalk(t, "while no serve runs", want, walk(t, at))
		s.serve("--nfs-engine", "kernel")
		dropCaches(t)
		sameWalk(t, "after a restart", want, walk(t, at))
		s.stop()
		out, err = s.run("serve", "--interface", "sidus0", "--only", "nfs,http")
		if err == nil || !strings.Contains(out, "--nfs-engine kernel") {
			t.Errorf("the engine was changed under a machine that runs: %v\n%s", err, out)
		}
		// What is deleted is exported no more; what others export stays.
		command(t, "umount", at)
		s.serve("--nfs-engine", "kernel")
		s.sidus("node", "delete", "--force", "--yes", bootMAC)
		other := filepath.Join(t.TempDir(), "other")
		if err := os.CopyFS(filepath.Join(other, "boot"), os.DirFS(filepath.Join(tree, "boot"))); err != nil {
			t.Fatal(err)
		}
		s.sidus("import", "other", "--dir", other)
		s.sidus("promote", "other@latest")
		s.sidus("channel", "set", "default", "--keep", "0")
		s.sidus("delete", "client", "--yes")
		for limit := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			out := command(t, "exportfs", "-v")
			if !strings.Contains(out, "/srv/own") {
				t.Fatalf("somebody else's export is gone:\n%s", out)
			}
			if !strings.Contains(out, shown.Snapshot.ID) {
				break
			}
			if time.Now().After(limit) {
				t.Fatalf("still exported a minute after its deletion:\n%s", out)
			}
		}
		s.stop()
	})
}

const bootMAC = "52:54:00:00:77:02"

// labSite is a state folder and the server that runs on it.
type labSite struct {
	t      *testing.T
	state  string
	server *exec.Cmd
	said   bytes.Buffer
}

func (s *labSite) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"--state", s.state}, args...)...)
	cmd.Args[0] = "sidus"
	cmd.Env = append(os.Environ(), asSidus+"=1")
	return cmd
}

// run runs a command of sidus that ends by itself within a minute.
func (s *labSite) run(args ...string) (string, error) {
	cmd := s.command(args...)
	timer := time.AfterFunc(4*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (s *labSite) sidus(args ...string) {
	s.t.Helper()
	if out, err := s.run(args...); err != nil {
		s.t.Fatalf("sidus %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// serve starts the server and waits until it answers.
func (s *labSite) serve(args ...string) {
	s.t.Helper()
	s.said.Reset()
	s.server = s.command(append([]string{"serve", "--interface", "sidus0", "--only", "nfs,http"}, args...)...)
	s.server.Stdout, s.server.Stderr = &s.said, &s.said
	if err := s.server.Start(); err != nil {
		s.t.Fatal(err)
	}
	for limit := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		r, err := http.Get("http://10.77.0.1:8080/healthz")
		if err == nil {
			_ = r.Body.Close()
			return
		}
		if time.Now().After(limit) {
			s.kill()
			s.t.Fatalf("serve does not answer: %v\n%s", err, s.said.String())
		}
	}
}

func (s *labSite) end(signal syscall.Signal) {
	if s.server != nil {
		_ = s.server.Process.Signal(signal)
		if err := s.server.Wait(); err != nil && signal == syscall.SIGTERM {
			s.t.Errorf("serve ended: %v", err)
		}
		s.server = nil
		if s.t.Failed() {
			s.t.Logf("the server said:\n%s", s.said.String())
		}
	}
}

func (s *labSite) stop() { s.end(syscall.SIGTERM) }
func (s *labSite) kill() { s.end(syscall.SIGKILL) }

// boot asks what a machine boots, as its iPXE would, and returns that.
func (s *labSite) boot() string {
	s.t.Helper()
	s.sidus("node", "add", bootMAC, "--name", "n1")
	r, err := http.Get("http://10.77.0.1:8080/v1/ipxe/" + bootMAC)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	script, err := io.ReadAll(r.Body)
	if err != nil || !strings.Contains(string(script), "sidus.nfs=") {
		s.t.Fatalf("%v: it boots %s", err, script)
	}
	return string(script)
}

// nfsOf is what a command line says of the root: what to mount, and how.
func nfsOf(t *testing.T, line string) (source, options string) {
	t.Helper()
	for _, word := range strings.Fields(line) {
		if text, ok := strings.CutPrefix(word, "sidus.nfs="); ok {
			f := strings.SplitN(text, ":", 3)
			source = f[0] + ":" + f[2]
		}
		if text, ok := strings.CutPrefix(word, "sidus.nfsopts="); ok {
			options = text
		}
	}
	if !strings.Contains(source, "/run/sidus/nfsd/snapshot/") || !strings.Contains(options, "mountport=") {
		t.Fatalf("the root is %q with %q in: %s", source, options, line)
	}
	return source, options
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// mountNFS mounts by the mount call itself, as the initrd does.
func mountNFS(t *testing.T, source, options string) string {
	t.Helper()
	at := t.TempDir()
	data := "vers=3,proto=tcp,mountproto=tcp,addr=10.77.0.1,mountaddr=10.77.0.1,nolock,nocto,actimeo=604800,hard," + options
	if err := unix.Mount(source, at, "nfs", unix.MS_RDONLY|unix.MS_NOATIME, data); err != nil {
		t.Fatalf("mount %s with %s: %v", source, data, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(at, 0) })
	return at
}

func dropCaches(t *testing.T) {
	t.Helper()
	unix.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		t.Fatal(err)
	}
}

// makeClientTree makes a tree with files of all kinds and sizes.
func makeClientTree(t *testing.T, root string) {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{"boot", "etc", "many", "deep/a/b/c/d/e/f"} {
		check(os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	data := make([]byte, 24<<20)
	for i := range data {
		data[i] = byte(i>>16 ^ i>>8 ^ i*7)
	}
	for name, size := range map[string]int{
		"boot/vmlinuz-6.1.0-1": 5 << 20, "boot/initrd.img-6.1.0-1": 3 << 20, "empty": 0, "one": 1, "page": 4096, "more": 4097,
		"small": 32767, "large": 32768, "odd": 131071, "deep/a/b/c/d/e/f/file": 70000, "big": 24 << 20,
	} {
		check(os.WriteFile(filepath.Join(root, name), data[:size], 0o644))
	}
	for i := range 1000 {
		check(os.WriteFile(filepath.Join(root, "many", fmt.Sprintf("%0*d", 1+i%200, i)), data[i:i+i%300], 0o640))
	}
	sparse, err := os.Create(filepath.Join(root, "sparse"))
	check(err)
	_, err = sparse.WriteAt([]byte("tail\n"), 5<<20)
	check(err)
	check(sparse.Close())
	check(os.Symlink("../etc", filepath.Join(root, "deep/link")))
	check(os.Symlink(strings.Repeat("long/", 200), filepath.Join(root, "longlink")))
	check(os.Link(filepath.Join(root, "odd"), filepath.Join(root, "deep/odd")))
	check(unix.Mknod(filepath.Join(root, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	check(unix.Mkfifo(filepath.Join(root, "fifo"), 0o600))
	check(os.Lchown(filepath.Join(root, "one"), 1234, 5678))
	check(unix.Chmod(filepath.Join(root, "one"), 0o6751))
	check(unix.Chmod(filepath.Join(root, "many"), 0o1777))
}

// walk lists a tree: each name with its attributes and the digest of what it
// holds. Links and sizes of directories are the index's, and left out.
func walk(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var s unix.Stat_t
		if err := unix.Lstat(path, &s); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		text := fmt.Sprintf("mode %o owner %d:%d time %d.%09d", s.Mode, s.Uid, s.Gid, s.Mtim.Sec, s.Mtim.Nsec)
		switch s.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			f, err := os.Open(path)
			if err != nil {
				return err
			}
			sum := sha256.New()
			n, err := io.Copy(sum, f)
			if err := firstError(err, f.Close()); err != nil {
				return err
			}
			text += fmt.Sprintf(" links %d size %d read %d %x", s.Nlink, s.Size, n, sum.Sum(nil))
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			text += " to " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			text += fmt.Sprintf(" device %d:%d", unix.Major(s.Rdev), unix.Minor(s.Rdev))
		}
		name, err := filepath.Rel(root, path)
		all[name] = text
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func firstError(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

func sameWalk(t *testing.T, way string, want, have map[string]string) {
	t.Helper()
	if len(want) < 1000 || len(have) != len(want) {
		t.Errorf("%s: %d names, not %d", way, len(have), len(want))
	}
	wrong := 0
	for name, text := range want {
		if have[name] != text {
			if wrong++; wrong < 10 {
				t.Errorf("%s: %.60s is\n%s, not\n%s", way, name, have[name], text)
			}
		}
	}
	if wrong > 0 {
		t.Errorf("%s: %d of %d are wrong", way, wrong, len(want))
	}
}

// sumsWithLittleMemory is what sha256sum says of the files below a folder, in
// a control group whose memory, its share of the page cache included, is less
// than the largest file.
func sumsWithLittleMemory(t *testing.T, root string) string {
	t.Helper()
	base := "/sys/fs/cgroup"
	if _, err := os.Stat(base + "/cgroup.controllers"); err != nil {
		t.Fatalf("no control groups (version 2): %v", err)
	}
	if err := os.WriteFile(base+"/cgroup.subtree_control", []byte("+memory"), 0); err != nil {
		t.Fatal(err)
	}
	group := filepath.Join(base, "sidus-test")
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.Remove(group) }()
	if err := os.WriteFile(group+"/memory.max", []byte("16M"), 0); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-c", `echo $$ >"$0"/cgroup.procs && exec find . -type f -exec sha256sum {} +`, group)
	cmd.Dir = root
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("sha256sum: %v\n%s", err, said.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(slices.Sorted(slices.Values(lines)), "\n") + "\n"
}
