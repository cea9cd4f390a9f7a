package adopt

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidus/image/store"
)

// server is a machine of our own: a state folder.
type server struct {
	t     *testing.T
	state string
}

// run runs sidus and returns what it says and its exit status.
func (s server) run(args ...string) (said string, code int) {
	s.t.Helper()
	program, err := filepath.Abs("sidus")
	if err != nil {
		s.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "SIDUS_STATE="+s.state)
	out, err := cmd.CombinedOutput()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	s.t.Logf("sidus %s: %s", strings.Join(args, " "), out)
	return string(out), cmd.ProcessState.ExitCode()
}

// must runs sidus, which must do what it is told.
func (s server) must(args ...string) string {
	s.t.Helper()
	said, code := s.run(args...)
	if code != 0 {
		s.t.Fatalf("sidus %s: exit status %d", strings.Join(args, " "), code)
	}
	return said
}

// ids returns the numbers and IDs of a tree's snapshots, and what channels
// point to.
func (s server) ids(tree string) string {
	s.t.Helper()
	var shown struct {
		Snapshots []struct {
			ID     string `json:"id"`
			Number int    `json:"number"`
			Parent string `json:"parent"`
			Name   string `json:"name"`
		} `json:"snapshots"`
	}
	if err := json.Unmarshal([]byte(s.must("show", tree, "--json")), &shown); err != nil {
		s.t.Fatal(err)
	}
	if len(shown.Snapshots) == 0 {
		s.t.Fatalf("%s has no snapshots", tree)
	}
	return fmt.Sprint(shown.Snapshots) + s.must("channel", "list", "--json")
}

// tool runs a program of the machine.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// newPool makes a pool that goes away with the test.
func newPool(t *testing.T) (name, dir string) {
	t.Helper()
	if os.Getenv("SIDUS_LAB") == "" {
		t.Skip("SKIPPED: it needs ZFS and changes pools: `make lab-test` runs it in a machine of its own")
	}
	dir, name = t.TempDir(), "adopt-"+strings.ToLower(rand.Text()[:8])
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<30)); err != nil {
		t.Fatal(err)
	}
	tool(t, "zpool", "create", "-o", "cachefile=none", "-m", "none", name, file)
	t.Cleanup(func() { _ = exec.Command("zpool", "destroy", "-f", name).Run() })
	return name, dir
}

// smallTree is what is imported.
func smallTree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"etc/marker": "first\n", "usr/bin/tool": strings.Repeat("x", 100000), "boot/vmlinuz": "kernel", "boot/initrd.img": "initrd"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestAnotherServerTakesOver: the state of the first server is lost. With the
// pool and the key the second has the same trees, snapshots, channels and
// properties, and makes the same indexes, from which file handles follow. What
// others left in the pool is not adopted.
func TestAnotherServerTakesOver(t *testing.T) {
	pool, dir := newPool(t)
	dataset := pool + "/sidus"
	first := server{t, filepath.Join(t.TempDir(), "first")}
	first.must("init", "--dataset", dataset)
	first.must("import", "deb", "--dir", smallTree(t), "--property", "recordsize=32K")
	first.must("snapshot", "deb", "second")
	first.must("branch", "deb@1", "gpu")
	first.must("set", "deb", "refquota=512M")
	first.must("promote", "deb@1")
	before := first.ids("deb")
	key := read(t, filepath.Join(first.state, "secrets/site.key"))
	indexes, err := filepath.Glob(filepath.Join(first.state, "cache/index/*.index"))
	if err != nil || len(indexes) != 1 {
		t.Fatalf("there are the indexes %v, %v", indexes, err)
	}
	index := read(t, indexes[0])

	// What other tools and a receive that was cut leave.
	var volume string
	for _, line := range strings.Split(tool(t, "zfs", "list", "-H", "-o", "name", "-t", "snapshot", "-r", dataset), "\n") {
		volume, _, _ = strings.Cut(line, "@")
	}
	foreign := volume + "@" + string(store.NewSnapshotID())
	tool(t, "zfs", "snapshot", volume+"@daily")
	tool(t, "zfs", "snapshot", foreign)
	tool(t, "zfs", "create", "-o", "mountpoint=none", dataset+"/home")
	partial := string(store.NewSnapshotID())
	tool(t, "zfs", "create", "-o", "mountpoint=legacy", dataset+"/receiving-"+partial)
	tool(t, "zfs", "snapshot", "-o", "sidus:snapshot="+partial, dataset+"/receiving-"+partial+"@"+partial)

	// Another server does not take it for its own.
	other := server{t, filepath.Join(t.TempDir(), "other")}
	if said, code := other.run("init", "--dataset", dataset); code != 4 || !strings.Contains(said, "sidus restore --from-store --dataset "+dataset) {
		t.Errorf("init of another server's store: exit status %d", code)
	}
	if first.ids("deb") != before {
		t.Error("that has changed what is there")
	}

	// The server is gone.
	tool(t, "zpool", "export", pool)
	saved := filepath.Join(t.TempDir(), "site.key")
	if err := errors.Join(os.WriteFile(saved, key, 0o600), os.RemoveAll(first.state)); err != nil {
		t.Fatal(err)
	}
	second := server{t, filepath.Join(t.TempDir(), "second")}
	if said, code := second.run("restore", "--from-store", "--dataset", dataset, "--key", saved); code == 0 || !strings.Contains(said, "zpool import "+pool) {
		t.Errorf("a pool that is not imported: exit status %d", code)
	}
	tool(t, "zpool", "import", "-N", "-o", "cachefile=none", "-d", dir, pool)
	if said, code := second.run("restore", "--from-store", "--dataset", dataset); code != 2 || !strings.Contains(said, "lose their root file system") || !strings.Contains(said, "another machine-id") {
		t.Errorf("without the key: exit status %d", code)
	}
	if _, err := os.Stat(filepath.Join(second.state, "sidus.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what was refused has left a catalog: %v", err)
	}
	said := second.must("restore", "--from-store", "--dataset", dataset, "--key", saved)
	if strings.Contains(said, "lost:") || strings.Contains(said, foreign[len(volume)+1:]) {
		t.Error("what was brought back is not what was there")
	}
	if !bytes.Equal(read(t, filepath.Join(second.state, "secrets/site.key")), key) {
		t.Error("the key is another")
	}
	if after := second.ids("deb"); after != before {
		t.Errorf("the second server has\n%s\nthe first had\n%s", after, before)
	}
	if said := second.must("set", "deb"); !strings.Contains(said, "recordsize=32768") || !strings.Contains(said, "refquota=536870912") {
		t.Error("the properties are lost")
	}
	if said := second.must("diff", "gpu", "deb@1"); strings.Contains(said, "marker") {
		t.Error("the branch is not what its origin is")
	}
	second.must("promote", "deb@1", "-c", "again")
	if again := read(t, filepath.Join(second.state, "cache/index", filepath.Base(indexes[0]))); !bytes.Equal(again, index) {
		t.Error("the second server makes another index of the same snapshot")
	}

	// Check finds what the cut receive left, repairs it, and leaves what is not ours.
	if said, code := second.run("check"); code != 6 || !strings.Contains(said, partial[:8]) {
		t.Errorf("check: exit status %d", code)
	}
	_, _ = second.run("check", "--repair")
	second.must("check")
	left := strings.Fields(tool(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", dataset))
	for _, name := range []string{volume + "@daily", foreign, dataset + "/home"} {
		if !slices.Contains(left, name) {
			t.Errorf("%s, which others made, is gone", name)
		}
	}
	if slices.ContainsFunc(left, func(name string) bool { return strings.Contains(name, partial) }) {
		t.Error("what the cut receive left is still there")
	}
}

// TestDamagedCatalogIsRefused: a copy of the catalog that is damaged changes
// nothing. With a new key it is said what is lost.
func TestDamagedCatalogIsRefused(t *testing.T) {
	pool, _ := newPool(t)
	dataset := pool + "/sidus"
	first := server{t, filepath.Join(t.TempDir(), "first")}
	first.must("init", "--dataset", dataset)
	first.must("import", "deb", "--dir", smallTree(t))
	kept := t.TempDir()
	tool(t, "mount", "-t", "zfs", dataset+"/kept", kept)
	path := filepath.Join(kept, "sidus.db")
	whole := read(t, path)
	damaged := bytes.Clone(whole)
	copy(damaged[len(damaged)/2:], bytes.Repeat([]byte{0xa5}, 5000))
	second := server{t, filepath.Join(t.TempDir(), "second")}
	for what, text := range map[string][]byte{"cut off": whole[:len(whole)/2], "altered": damaged, "empty": {}, "foreign": []byte("what is this")} {
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, code := second.run("restore", "--from-store", "--dataset", dataset, "--new-key"); code == 0 {
			t.Errorf("a copy that is %s is taken", what)
		}
		if _, err := os.Stat(filepath.Join(second.state, "sidus.db")); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("a copy that is %s has left a catalog: %v", what, err)
		}
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "umount", kept)
	said := second.must("restore", "--from-store", "--dataset", dataset, "--new-key")
	if !strings.Contains(said, "site's key is new") || !strings.Contains(said, "catalog and store agree") {
		t.Error("it is not said what is lost")
	}
	if second.ids("deb") != first.ids("deb") {
		t.Error("the two servers differ")
	}
}

// serve runs `sidus serve` with NFS alone, until stop is called.
func (s server) serve(port string) (stop func()) {
	s.t.Helper()
	program, err := filepath.Abs("sidus")
	if err != nil {
		s.t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(program, "serve", "--only", "nfs", "--listen", "127.0.0.1", "--nfs-port", port)
	cmd.Env = append(os.Environ(), "SIDUS_STATE="+s.state)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				s.t.Errorf("sidus serve: %v", err)
			}
			s.t.Logf("sidus serve: %s", &said)
		})
	}
	s.t.Cleanup(stop)
	for range 300 {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			_ = conn.Close()
			return stop
		}
		time.Sleep(200 * time.Millisecond)
	}
	s.t.Fatalf("sidus serve does not answer: %s", &said)
	return stop
}

// TestClientsWaitForTheKey: the server of an encrypted dataset comes back
// without its key. A client of the kernel that has the root mounted waits, and
// goes on when the key is loaded.
func TestClientsWaitForTheKey(t *testing.T) {
	pool, _ := newPool(t)
	dataset := pool + "/sidus"
	keyFile(t, dataset)
	s := server{t, filepath.Join(t.TempDir(), "state")}
	s.must("init", "--dataset", dataset)
	s.must("import", "deb", "--dir", smallTree(t))
	s.must("promote", "deb@1")
	tool(t, "ip", "link", "set", "lo", "up")
	const port = "20490"
	stop := s.serve(port)
	root := t.TempDir()
	tool(t, "busybox", "mount", "-t", "nfs", "-o", "ro,vers=3,proto=tcp,mountproto=tcp,addr=127.0.0.1,mountaddr=127.0.0.1,port="+port+",mountport="+port+",nolock,hard",
		"127.0.0.1:/channel/default", root)
	t.Cleanup(func() { _ = exec.Command("umount", "-f", "-l", root).Run() })
	if text := read(t, filepath.Join(root, "etc/marker")); string(text) != "first\n" {
		t.Fatalf("the client reads %q", text)
	}
	stop()
	tool(t, "zfs", "unload-key", "-r", dataset)
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.serve(port)
	reading := exec.Command("sha256sum", filepath.Join(root, "usr/bin/tool"))
	var sum bytes.Buffer
	reading.Stdout, reading.Stderr = &sum, &sum
	if err := reading.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- reading.Wait() }()
	select {
	case err := <-ended:
		t.Fatalf("a client does not wait for the key: %v: %s", err, &sum)
	case <-time.After(15 * time.Second):
	}
	tool(t, "zfs", "load-key", "-r", dataset)
	select {
	case err := <-ended:
		want := fmt.Sprintf("%x", sha256.Sum256(bytes.Repeat([]byte("x"), 100000)))
		if err != nil || !strings.HasPrefix(sum.String(), want) {
			t.Errorf("with the key: %v: %s", err, &sum)
		}
	case <-time.After(2 * time.Minute):
		t.Error("the client still waits when the key is there")
	}
	tool(t, "umount", root)
}
