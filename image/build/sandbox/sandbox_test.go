package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// holderArgument makes the test binary run one long command in a sandbox, to
// be killed from outside.
const holderArgument = "hold-a-sandbox"

// replacedArgument makes the test binary remove its own file, as an upgrade
// does, and then use a sandbox.
const replacedArgument = "remove-yourself"

func TestMain(m *testing.M) {
	Main()
	if len(os.Args) == 3 && os.Args[1] == holderArgument {
		err := Run(context.Background(), Options{
			Root:   os.Args[2],
			Args:   []string{"sh", "-c", "echo ready; sleep 1h & (sleep 1h); sleep 1h"},
			Stdout: os.Stdout,
		})
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if len(os.Args) == 3 && os.Args[1] == replacedArgument {
		program, _ := os.Executable()
		err := errors.Join(os.Remove(program), Run(context.Background(), Options{Root: os.Args[2], Args: []string{"echo", "still works"}, Stdout: os.Stdout}))
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root")
	}
	t.Skip("SKIPPED: this test needs root")
}

// tinyTree is a tree with busybox in it.
func tinyTree(t *testing.T) string {
	t.Helper()
	needRoot(t)
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Fatal("this test needs the package busybox-static:", err)
	}
	root := t.TempDir()
	if err := os.Chmod(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"bin", "etc", "usr/sbin", "usr/bin", "proc", "sys", "dev", "run", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	list, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	return root
}

// listing describes every file of a tree.
func listing(t *testing.T, root string) string {
	t.Helper()
	var lines []string
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		size := info.Size()
		if d.IsDir() {
			size = 0
		}
		lines = append(lines, fmt.Sprintf("%s %v %d", strings.TrimPrefix(name, root), info.Mode(), size))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	sort.Strings(lines)
	return strings.Join(lines, "\n")
}

func runShell(t *testing.T, root, script string, change func(*Options)) (string, error) {
	t.Helper()
	var out bytes.Buffer
	o := Options{Root: root, Args: []string{"sh", "-c", script}, Stdout: &out, Stderr: &out}
	if change != nil {
		change(&o)
	}
	err := Run(t.Context(), o)
	return out.String(), err
}

func TestRunReportsHowTheProgramEnded(t *testing.T) {
	root := tinyTree(t)
	for _, c := range []struct {
		script string
		want   string
	}{
		{"exit 0", ""},
		{"exit 3", "exit status 3"},
		{"kill -9 $$", "ended by signal 9 (killed)"},
		{"sleep 1h & exit 0", ""},
	} {
		_, err := runShell(t, root, c.script, nil)
		got := ""
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: got %q, want %q", c.script, got, c.want)
		}
	}
	err := Run(t.Context(), Options{Root: root, Args: []string{"no-such-program"}})
	if !errors.Is(err, ErrSetup) || !strings.Contains(err.Error(), "no-such-program: not found in the tree") {
		t.Errorf("missing program: %v", err)
	}
}

func TestInsideLooksLikeASmallMachine(t *testing.T) {
	root := tinyTree(t)
	for name, c := range map[string]struct {
		script, want string
	}{
		"first process":   {"ps -o pid= | head -n1 | tr -d ' '", "1\n"},
		"few processes":   {"ls -d /proc/[0-9]* | wc -l | grep -qx '[2-6]' && echo few", "few\n"},
		"host name":       {"hostname", "sidus\n"},
		"dev":             {"ls /dev | tr '\\n' ' '", "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		"null works":      {"echo x > /dev/null && head -c 3 /dev/zero | wc -c", "3\n"},
		"no block device": {"find /dev -type b", ""},
		"run is empty":    {"ls /run | tr '\\n' ' '", "lock sidus "},
		"sys read-only":   {"echo x 2>/dev/null > /sys/power/state || echo refused", "refused\n"},
		"sysctl":          {"echo 1 2>/dev/null > /proc/sys/kernel/panic || echo refused", "refused\n"},
		"mount":           {"mount -t tmpfs none /tmp 2>/dev/null || echo refused", "refused\n"},
		"remount":         {"mount -o remount,rw /proc/sys 2>/dev/null || echo refused", "refused\n"},
		"made not opened": {"mknod /node c 1 3 && (echo x > /node) 2>/dev/null || echo refused; rm /node", "refused\n"},
		"clock":           {"date -s 2001-01-01 2>&1 | grep -o 'not permitted'", "not permitted\n"},
		"chown":           {"touch /f && chown 7:8 /f && chmod 4755 /f && stat -c '%u:%g %a' /f; rm /f", "7:8 4755\n"},
		"services":        {"/usr/sbin/policy-rc.d; echo $?", "101\n"},
		"first's memory":  {"cat /proc/1/environ 2>/dev/null || echo refused", "refused\n"},
		"first's binary":  {"(cat /proc/1/exe >/dev/null) 2>/dev/null || echo refused", "refused\n"},
		"no way out":      {"ls /proc/1/root 2>/dev/null || echo refused", "refused\n"},
		"environment":     {"echo $DEBIAN_FRONTEND $SYSTEMD_TMPFILES_FORCE_SUBVOL $HOME", "noninteractive 0 /root\n"},
		"bounding set":    {"grep CapBnd /proc/self/status", "CapBnd:\t00000000a80405fb\n"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := runShell(t, root, c.script, nil)
			if err != nil || got != c.want {
				t.Errorf("got %q (%v), want %q", got, err, c.want)
			}
		})
	}
}

func TestNothingIsLeftInTheTree(t *testing.T) {
	root := tinyTree(t)
	before := listing(t, root)
	mounts := mountsUnder(t, root)
	out, err := runShell(t, root, "cat /etc/resolv.conf; touch /run/x /tmp/x /dev/shm/x", nil)
	if err != nil {
		t.Fatal(err, out)
	}
	if want, _ := os.ReadFile("/etc/resolv.conf"); out != string(want) {
		t.Errorf("resolv.conf inside: %q, want %q", out, want)
	}
	if after := listing(t, root); after != before {
		t.Errorf("the tree changed from\n%s\nto\n%s", before, after)
	}
	if got := mountsUnder(t, root); got != mounts {
		t.Errorf("mounts left: %s", got)
	}
}

func TestResolvConfOfEveryKind(t *testing.T) {
	want, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Skip("SKIPPED: the host has no /etc/resolv.conf")
	}
	for name, prepare := range map[string]func(path string) error{
		"missing":        func(string) error { return nil },
		"file":           func(p string) error { return os.WriteFile(p, []byte("nameserver 192.0.2.1\n"), 0o644) },
		"dangling":       func(p string) error { return os.Symlink("../run/systemd/resolve/stub-resolv.conf", p) },
		"to the outside": func(p string) error { return os.Symlink("/../../../../etc/passwd", p) },
	} {
		t.Run(name, func(t *testing.T) {
			root := tinyTree(t)
			if err := prepare(filepath.Join(root, "etc/resolv.conf")); err != nil {
				t.Fatal(err)
			}
			before := listing(t, root)
			out, err := runShell(t, root, "cat /etc/resolv.conf", nil)
			if err != nil || out != string(want) {
				t.Errorf("got %q (%v)", out, err)
			}
			if after := listing(t, root); after != before {
				t.Errorf("the tree changed from\n%s\nto\n%s", before, after)
			}
		})
	}
}

// A tree whose mount points are links to elsewhere must not make the sandbox
// touch what is outside.
func TestHostileMountPoints(t *testing.T) {
	root := tinyTree(t)
	outside := t.TempDir()
	for _, name := range []string{"tmp", "run", "dev"} {
		if err := os.RemoveAll(filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := runShell(t, root, "touch /tmp/x /run/x", nil)
	if err == nil {
		t.Error("a tree with links as mount points was entered:", out)
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Error("written outside the tree:", entries)
	}
}

func TestNetwork(t *testing.T) {
	root := tinyTree(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	out, err := runShell(t, root, "readlink /proc/self/ns/net", nil)
	if err != nil || strings.TrimSpace(out) != own {
		t.Errorf("shared network: %q (%v), want %q", out, err, own)
	}
	out, err = runShell(t, root, "readlink /proc/self/ns/net; ls /sys/class/net; ip -4 addr show lo | grep -c 127.0.0.1", func(o *Options) { o.NoNetwork = true })
	lines := strings.Fields(out)
	if err != nil || len(lines) < 3 || lines[0] == own || lines[1] != "lo" || lines[len(lines)-1] != "1" {
		t.Errorf("no network: %q (%v)", out, err)
	}
}

func TestNoSync(t *testing.T) {
	root := tinyTree(t)
	for _, ignored := range []bool{false, true} {
		out, err := runShell(t, root, "grep Seccomp: /proc/self/status | cut -f2; echo x > /f && sync && cat /f; rm /f", func(o *Options) { o.NoSync = ignored })
		want := "0\nx\n"
		if ignored {
			want = "2\nx\n" // SECCOMP_MODE_FILTER
		}
		if err != nil || out != want {
			t.Errorf("NoSync %v: %q (%v)", ignored, out, err)
		}
	}
}

func TestBindsAndFiles(t *testing.T) {
	root := tinyTree(t)
	if err := os.Mkdir(filepath.Join(root, "mnt"), 0o755); err != nil {
		t.Fatal(err)
	}
	source := t.TempDir()
	out, err := runShell(t, root, "echo in > /mnt/file; cat /run/a/b; (echo x > /etc/ro/f) 2>/dev/null || echo refused", func(o *Options) {
		if err := os.Mkdir(filepath.Join(root, "etc/ro"), 0o755); err != nil {
			t.Fatal(err)
		}
		o.Binds = []Bind{{Source: source, Target: "/mnt"}, {Source: source, Target: "/etc/ro", ReadOnly: true}}
		o.Files = map[string]string{"/run/a/b": "text\n"}
	})
	if err != nil || out != "text\nrefused\n" {
		t.Errorf("got %q (%v)", out, err)
	}
	if text, _ := os.ReadFile(filepath.Join(source, "file")); string(text) != "in\n" {
		t.Errorf("through the bind: %q", text)
	}
	if entries, _ := os.ReadDir(filepath.Join(root, "mnt")); len(entries) != 0 {
		t.Error("left under the bind:", entries)
	}
}

func TestHostRootMayMountAndLeavesNothing(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	var out bytes.Buffer
	err := Run(t.Context(), Options{
		Args:   []string{"sh", "-c", "mount -t tmpfs none " + dir + " && touch " + dir + "/inside && echo $$ && grep CapBnd /proc/self/status"},
		Stdout: &out, Stderr: &out,
	})
	if err != nil || !strings.Contains(out.String(), "CapBnd:\t00000000a82405fb") {
		t.Fatalf("%v: %s", err, out.String())
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 0 {
		t.Error("left:", entries)
	}
	if left := mountsUnder(t, dir); left != "" {
		t.Error("mounted:", left)
	}
}

func TestCancelKillsAll(t *testing.T) {
	root := tinyTree(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	go func() {
		_, _ = reader.Read(make([]byte, 1))
		cancel(cause)
	}()
	err = Run(ctx, Options{Root: root, Args: []string{"sh", "-c", "trap '' TERM INT; echo x; sleep 1h & sleep 1h"}, Stdout: writer})
	writer.Close()
	if !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	if left := processesIn(t, root); len(left) != 0 {
		t.Error("still running:", left)
	}
}

// What the kernel guarantees when Run's own process is killed with -9.
func TestKillNineLeavesNothing(t *testing.T) {
	root := tinyTree(t)
	before := mountsUnder(t, root)
	holder := exec.Command("/proc/self/exe", holderArgument, root)
	out, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	if n, err := out.Read(make([]byte, 16)); n == 0 {
		t.Fatal("the sandbox did not start:", err)
	}
	inside := processesIn(t, root)
	if len(inside) < 2 {
		t.Fatalf("only %d processes found inside", len(inside))
	}
	watches := make([]unix.PollFd, 0, len(inside))
	for _, pid := range inside {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		watches = append(watches, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	if err := holder.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = holder.Wait()
	for i := range watches {
		if n, err := unix.Poll(watches[i:i+1], 10_000); n != 1 {
			t.Errorf("a process outlived kill -9 (%v)", err)
		}
	}
	if left := processesIn(t, root); len(left) != 0 {
		t.Error("still running:", left)
	}
	if after := mountsUnder(t, root); after != before {
		t.Error("still mounted:", after)
	}
	// The marks that were left over go with the next use.
	if _, err := runShell(t, root, "true", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"etc/resolv.conf", "usr/sbin/policy-rc.d"} {
		if _, err := os.Lstat(filepath.Join(root, name)); err == nil {
			t.Error("left:", name)
		}
	}
}

func TestBinaryThatWasReplaced(t *testing.T) {
	root := tinyTree(t)
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(file, program, 0o755); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(file, replacedArgument, root).CombinedOutput()
	if err != nil || string(out) != "still works\n" {
		t.Errorf("%s (%v)", out, err)
	}
}

func TestTerminal(t *testing.T) {
	root := tinyTree(t)
	master, slave, err := openTerminal(&config{Rows: 33, Cols: 99})
	if err != nil {
		t.Fatal(err)
	}
	person := os.NewFile(uintptr(master), "person")
	defer person.Close()
	defer slave.Close()
	seen := make(chan string, 1)
	var screen bytes.Buffer
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		buf := make([]byte, 256)
		asked := false
		for {
			n, err := reader.Read(buf)
			screen.Write(buf[:n])
			if !asked && strings.Contains(screen.String(), "waiting") {
				asked = true
				_, _ = person.Write([]byte{3}) // Ctrl-C reaches the program, not this test
			}
			if err != nil {
				seen <- screen.String()
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err = Run(ctx, Options{
		Root: root, Terminal: true, Stdin: slave, Stdout: writer,
		Args: []string{"sh", "-c", `tty; stty size; trap 'echo interrupted; exit 7' INT; echo waiting; while :; do sleep 0.1; done`},
	})
	writer.Close()
	text := <-seen
	reader.Close()
	var ended *ExitError
	if !errors.As(err, &ended) || ended.Code != 7 {
		t.Errorf("ended with %v", err)
	}
	for _, want := range []string{"/dev/pts/0", "33 99", "interrupted"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not on the screen: %q", want, text)
		}
	}
}

func mountsUnder(t *testing.T, dir string) string {
	t.Helper()
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if strings.Contains(line, dir) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}

// processesIn finds the processes whose root is dir.
func processesIn(t *testing.T, dir string) []int {
	t.Helper()
	var want syscall.Stat_t
	if err := syscall.Stat(dir, &want); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var got syscall.Stat_t
		if syscall.Stat("/proc/"+e.Name()+"/root", &got) == nil && got.Ino == want.Ino && got.Dev == want.Dev {
			found = append(found, pid)
		}
	}
	return found
}
