package failover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

const (
	bridge = "lan"
	shared = "10.80.0.10" // the address that moves
	// nodeMAC is the hardware address of the machine that boots.
	nodeMAC = "52:54:00:00:77:01"
)

func needs(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "it needs root"
	}
	for _, program := range []string{"qemu-system-x86_64", "ip", "mmdebstrap", "mkfs.btrfs", "keepalived", "sshd", "ssh", "ssh-keygen"} {
		if _, err := exec.LookPath(program); err != nil {
			why = program + " is missing; tests/setup.sh test installs it"
		}
	}
	if _, err := labtest.FindProgram(); err != nil {
		why = err.Error()
	}
	if why == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("fail-over was not tested: " + why)
	}
	t.Skip("SKIPPED: FAIL-OVER WAS NOT TESTED: " + why)
}

// folder makes a folder for the servers. When the test ends, in whatever way,
// their stores are unmounted and it is removed: a shell that outlives this
// process does so, too.
func folder(t *testing.T) string {
	t.Helper()
	cache := labtest.Cache(t)
	if err := os.MkdirAll(filepath.Join(cache, "packages"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(cache, "failover-*")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	const script = `trap "" INT TERM HUP
read -r _
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	left=
	for state in "$2"/*/state; do
		[ ! -e "$state/sidus.db" ] || "$1" unmount --state "$state" >/dev/null 2>&1 || left=1
	done
	[ -n "$left" ] || exec rm -rf -- "$2"
	sleep 1
done`
	program := labtest.Program(t)
	guard := exec.Command("sh", "-c", script, "sidus-failover-guard", program, dir)
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := guard.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := guard.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = stdin.Close()
		_ = guard.Wait()
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s is left", dir)
		}
	})
	return dir
}

// linkPackages makes the packages of one folder appear in another.
func linkPackages(t *testing.T, from, to string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(from, "*.deb"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if err := os.Link(name, filepath.Join(to, filepath.Base(name))); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
}

func TestFailOver(t *testing.T) {
	needs(t)
	if kind := os.Getenv("SIDUS_TEST_STORE"); kind != "" && kind != "btrfs" {
		failOverOfMachines(t, kind)
		return
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 25*time.Minute, errors.New("the time of the test is over"))
	defer cancel()
	root := folder(t)
	site := labtest.New(t, lab.Options{})
	if _, err := site.AddBridge(bridge, netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	done := func(what string) { t.Logf("%6.1f s  %s", time.Since(begun).Seconds(), what) }

	first := newServer(t, root, site, "first", "10.80.0.2", "8G")
	second := newServer(t, root, site, "second", "10.80.0.3", "9G")
	t.Cleanup(func() {
		if t.Failed() {
			for _, s := range []*server{first, second} {
				t.Logf("the end of what %s said:\n%s", s.name, tail(s.log(), 40))
			}
		}
	})
	snapshot := prepare(t, first)
	done("the tree is built")
	replicateByTLS(ctx, t, first, second)
	done("it is replicated")
	compareStores(t, snapshot, first, second)
	want := checksum(t, first, snapshot)

	guards := []*lab.Process{first.keepalived(150)}
	if _, _, err := guards[0].Output.WaitFor(ctx, 0, regexp.MustCompile(`Entering MASTER STATE`)); err != nil {
		t.Fatal(err)
	}
	guards = append(guards, second.keepalived(100))
	t.Cleanup(func() {
		if t.Failed() {
			for i, p := range guards {
				t.Logf("the end of what keepalived %d said:\n%s", i+1, tail(p.Output.String(), 40))
			}
		}
	})
	waitFor(ctx, t, "the first server serves", time.Minute, first.serves)
	done("the first server serves")
	m := boot(ctx, t, site)
	done("the machine is up")
	m.read(ctx, t, want)
	done("it has read its root once")
	waitFor(ctx, t, "the second server knows of the session", time.Minute, func() bool { return strings.Contains(second.must("status"), nodeMAC) })

	// The address must still be where it was: only the cut may move it.
	if second.log() != "" {
		t.Fatal("the second server has taken over from a first one that lives")
	}
	// In the middle of the next round.
	time.Sleep(2 * time.Second)
	first.cut()
	done("the first server is dead")
	waitFor(ctx, t, "the second server serves", time.Minute, second.serves)
	done("the second server serves")
	m.goesOn(ctx, t, want, 2)
	done("the machine has read on, and once more from the second server alone")
	m.alive(ctx, t)
	if text := second.must("channel", "set", "default", "--keep", "7"); !strings.Contains(text, "7") {
		t.Errorf("the second server takes no changes: %s", text)
	}
	second.must("check")

	move(ctx, t, root, site, second, guards[1], m, want)
	done("the site has moved to a new server by the commands of docs/move-server.md")
	m.stop(ctx, t)
}

// build builds the tree, or takes it from the cache: to build it takes longer
// than all the rest.
func build(t *testing.T, s *server) {
	t.Helper()
	const recipe = "testdata/client.yaml"
	stream, built := labtest.TreeStream(t, "failover", s.must("build", recipe, "--plan", "--json"), func(path string) {
		packages, lent := filepath.Join(labtest.Cache(t), "packages"), filepath.Join(s.state, "cache/packages")
		linkPackages(t, packages, lent)
		s.must("build", recipe)
		linkPackages(t, lent, packages)
		s.must("export", "client@latest", "-o", path, "--replace")
	})
	if built {
		return
	}
	s.must("import", "--stream", stream)
	// Where it goes from here, inodes are numbered without gaps: leave some.
	s.must("exec", "client", "--", "/bin/sh", "-ec", `mkdir /gap; cd /gap; seq 1000 | xargs touch; cp -a /usr/share /usr/share.new
		cd /; rm -r /gap /usr/share; mv /usr/share.new /usr/share`)
	var first struct{ Snapshot struct{ ID string } }
	s.fetch(&first, "show", "client@latest")
	s.must("snapshot", "client")
	s.must("delete", "client@"+first.Snapshot.ID, "--yes")
}

// prepare builds the tree and tells of the network.
func prepare(t *testing.T, s *server) (snapshot string) {
	t.Helper()
	build(t, s)
	s.must("promote", "client@latest")
	s.must("network", "add", "site", "--subnet", "10.80.0.0/24", "--mode", "full", "--range", "10.80.0.100-10.80.0.199")
	var shown struct{ Snapshot struct{ ID string } }
	s.fetch(&shown, "show", "client@latest")
	return shown.Snapshot.ID
}

// replicateByTLS makes the second server a replica that follows the first.
func replicateByTLS(ctx context.Context, t *testing.T, first, second *server) {
	t.Helper()
	receiver := second.start("sidus", "receive", "--listen", second.address)
	if _, _, err := receiver.Output.WaitFor(ctx, 0, regexp.MustCompile(`waiting for senders`)); err != nil {
		t.Fatal(err)
	}
	token := filepath.Join(first.prefix, "token")
	if err := os.WriteFile(token, []byte(second.must("receive", "--token")), 0o600); err != nil {
		t.Fatal(err)
	}
	first.must("replicate", "add", "second", "tls://"+second.address, "--token-file", token)
	watch := first.start("sidus", "replicate", "--watch", "--every", "1s")
	waitFor(ctx, t, "the second server is ready", 5*time.Minute, func() bool {
		p := second.start("sidus", "ready")
		return p.Wait(ctx) == nil
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("replicate --watch said:\n%s\nreceive --listen said:\n%s", tail(watch.Output.String(), 20), tail(receiver.Output.String(), 20))
		}
	})
}

// mounted is where a server's store has a snapshot.
func mounted(t *testing.T, s *server, snapshot string) string {
	t.Helper()
	loops, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", filepath.Join(s.state, "store/store.img")).Output()
	if err != nil || len(strings.Fields(string(loops))) == 0 {
		t.Fatalf("%s: losetup: %v", s.name, err)
	}
	out, err := exec.Command("findmnt", "-n", "-o", "TARGET", "-S", strings.Fields(string(loops))[0]).Output()
	if err != nil {
		t.Fatalf("%s: findmnt: %v", s.name, err)
	}
	return filepath.Join(strings.Fields(string(out))[0], "snapshots", snapshot)
}

// compareStores checks that the test proves something: the inode numbers of the
// two stores differ, and the site's keys do not.
func compareStores(t *testing.T, snapshot string, a, b *server) {
	t.Helper()
	inodes := func(s *server) map[string]uint64 {
		list := map[string]uint64{}
		top := mounted(t, s, snapshot)
		err := filepath.WalkDir(filepath.Join(top, "usr"), func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := os.Lstat(path)
			if err == nil {
				list[strings.TrimPrefix(path, top)] = info.Sys().(*syscall.Stat_t).Ino
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	differ, here, there := 0, inodes(a), inodes(b)
	for path, inode := range here {
		if there[path] != inode {
			differ++
		}
	}
	if differ == 0 || len(here) != len(there) {
		t.Errorf("%d files at %s, %d at %s, and %d of them have other inode numbers", len(here), a.name, len(there), b.name, differ)
	}
	keys := [2]string{}
	for i, s := range []*server{a, b} {
		text, err := os.ReadFile(filepath.Join(s.state, "secrets/site.key"))
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = string(text)
	}
	if keys[0] != keys[1] {
		t.Error("the site's key was not replicated")
	}
}

// checksum is what the machine has to find: computed from the store, not
// through the network.
func checksum(t *testing.T, s *server, snapshot string) string {
	t.Helper()
	cmd := exec.Command("sh", "-ec", "find . -xdev -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum | md5sum")
	cmd.Dir = mounted(t, s, snapshot)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// machine is the client.
type machine struct {
	*lab.Machine
	bootID string
}

func boot(ctx context.Context, t *testing.T, site *lab.Lab) *machine {
	t.Helper()
	mac, err := net.ParseMAC(nodeMAC)
	if err != nil {
		t.Fatal(err)
	}
	vm, err := site.Boot(lab.MachineOptions{Name: "node", NICs: []lab.NIC{{Bridge: bridge, MAC: mac}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the console:\n%s", tail(vm.Console.String(), 60))
		}
		if err := vm.Quit(); err != nil {
			t.Error(err)
		}
	})
	limited, cancel := context.WithTimeoutCause(ctx, patience(8*time.Minute), errors.New("the machine does not come up"))
	defer cancel()
	if _, _, err := vm.Console.WaitFor(limited, 0, regexp.MustCompile(`root@\S+:~#`)); err != nil {
		t.Fatal(err)
	}
	m := &machine{Machine: vm}
	m.bootID = m.shell(ctx, t, "cat /proc/sys/kernel/random/boot_id")
	return m
}

func (m *machine) shell(ctx context.Context, t *testing.T, command string) string {
	t.Helper()
	limited, cancel := context.WithTimeoutCause(ctx, 3*time.Minute, fmt.Errorf("the machine does not answer: %s", command))
	defer cancel()
	out, err := m.Shell(limited, command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func (m *machine) rounds(ctx context.Context, t *testing.T) []string {
	t.Helper()
	return strings.FieldsFunc(m.shell(ctx, t, "cat /run/checksum.rounds"), func(r rune) bool { return r == '\n' || r == '\r' })
}

// read begins to read the root, and waits for the first round.
func (m *machine) read(ctx context.Context, t *testing.T, want string) {
	t.Helper()
	m.shell(ctx, t, "touch /run/checksum.rounds /run/checksum.errors; systemd-run --quiet /usr/lib/sidus-test/checksum /run/sidus/ro")
	m.goesOn(ctx, t, want, 1)
}

// goesOn waits for so many more rounds, and checks all that were read so far.
func (m *machine) goesOn(ctx context.Context, t *testing.T, want string, more int) {
	t.Helper()
	n := len(m.rounds(ctx, t)) + more
	waitFor(ctx, t, fmt.Sprintf("the machine has read its root %d times", n), patience(8*time.Minute), func() bool {
		time.Sleep(time.Second)
		return len(m.rounds(ctx, t)) >= n
	})
	for i, got := range m.rounds(ctx, t) {
		if got != want {
			t.Errorf("round %d of the machine reads %s instead of %s", i+1, got, want)
		}
	}
	if text := m.shell(ctx, t, "cat /run/checksum.errors"); text != "" {
		t.Errorf("reading failed: %s", text)
	}
}

// alive checks that the machine noticed nothing worse than a pause.
func (m *machine) alive(ctx context.Context, t *testing.T) {
	t.Helper()
	if id := m.shell(ctx, t, "cat /proc/sys/kernel/random/boot_id"); id != m.bootID {
		t.Error("the machine has booted again")
	}
	if text := m.shell(ctx, t, "dmesg | grep -iE 'stale|i/o error|nfs: .*error|call trace' || true"); text != "" {
		t.Errorf("the machine's kernel says: %s", text)
	}
	if text := m.shell(ctx, t, "systemctl --failed --no-legend --plain"); text != "" {
		t.Errorf("units failed: %s", text)
	}
	// A program that was not read before, by name.
	if text := m.shell(ctx, t, "/usr/bin/sort --version | head -n 1"); !strings.Contains(text, "coreutils") {
		t.Errorf("a program does not run: %s", text)
	}
}

func (m *machine) stop(ctx context.Context, t *testing.T) {
	t.Helper()
	m.alive(ctx, t)
	m.shell(ctx, t, "touch /run/checksum.stop")
}
