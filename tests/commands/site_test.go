package commands

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandLimit is how long one command may take before it is called stuck.
const commandLimit = 3 * time.Minute

// site is a state folder with what a test needs to work on it.
type site struct {
	t   testing.TB
	dir string // the state folder
	env []string
	// stdin is the file that `receive` and commands that are traced read; "":
	// /dev/null.
	stdin string
	// mark is in the environment of all that the site starts, so that what is
	// left running can be found.
	mark string
}

// newSite makes a state folder with a small store, which is unmounted when
// the test ends: that works only if nothing uses it any more.
func newSite(t testing.TB) *site {
	t.Helper()
	s := bareSite(t, filepath.Join(t.TempDir(), "state"))
	s.ok("init", "--size", "1G")
	return s
}

// bareSite is a state folder that nothing has made yet.
func bareSite(t testing.TB, dir string) *site {
	t.Helper()
	s := &site{t: t, dir: dir, mark: "SIDUS_TEST_MARK=" + dir}
	t.Cleanup(s.close)
	return s
}

// close unmounts the store and looks for what a test has left behind.
func (s *site) close() {
	s.t.Helper()
	if left := s.processes(); len(left) > 0 {
		s.t.Errorf("processes are left: %v", left)
		for pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	if _, err := os.Stat(s.storeFile()); err == nil {
		if r := s.run("unmount"); r.status != 0 {
			s.t.Errorf("the store cannot be unmounted: %s", r.stderr)
		}
		s.noLoops()
	}
	if mounts := s.mounts(); len(mounts) > 0 {
		s.t.Errorf("mounts are left: %v", mounts)
	}
}

func (s *site) storeFile() string { return filepath.Join(s.dir, "store", "store.img") }

// loops are the loop devices of the store's file.
func (s *site) loops() string {
	out, err := exec.Command("losetup", "-n", "-O", "NAME", "-j", s.storeFile()).CombinedOutput()
	if err != nil {
		s.t.Errorf("losetup: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// noLoops checks that the store's file has no loop device. Somebody else who
// looks at all devices may hold one for a moment.
func (s *site) noLoops() {
	s.t.Helper()
	left := s.loops()
	for end := time.Now().Add(10 * time.Second); left != "" && time.Now().Before(end); left = s.loops() {
		time.Sleep(10 * time.Millisecond)
	}
	if left != "" {
		s.t.Errorf("loop devices are left: %s", left)
	}
}

// mounts are the mounts in this namespace of which the store's loop devices
// are the source, and those below the state folder.
func (s *site) mounts() []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	devices := strings.Fields(s.loops())
	var found []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		mine := strings.HasPrefix(fields[4], s.dir+"/")
		for _, device := range devices {
			mine = mine || strings.Contains(line, " "+device+" ")
		}
		if mine {
			found = append(found, fields[4])
		}
	}
	return found
}

// root is where the store is mounted.
func (s *site) root() string {
	s.t.Helper()
	mounts := s.mounts()
	if len(mounts) != 1 {
		s.t.Fatalf("the store has the mounts %v", mounts)
	}
	return mounts[0]
}

// processes are the processes that carry the site's mark, by ID.
func (s *site) processes() map[int]string {
	found := map[int]string{}
	entries, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, path := range entries {
		text, err := os.ReadFile(path)
		if err != nil || !bytes.Contains(text, []byte(s.mark+"\x00")) {
			continue
		}
		pid := 0
		for _, c := range filepath.Base(filepath.Dir(path)) {
			pid = pid*10 + int(c-'0')
		}
		command, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		found[pid] = string(bytes.ReplaceAll(command, []byte{0}, []byte{' '}))
	}
	return found
}

// waitAlone waits until no process of the site is left: the kernel needs a
// moment to end what a killed one had started.
func (s *site) waitAlone() {
	s.t.Helper()
	end := time.Now().Add(10 * time.Second)
	left, sandboxes := s.processes(), s.sandboxes()
	for ; len(left)+len(sandboxes) > 0 && time.Now().Before(end); left, sandboxes = s.processes(), s.sandboxes() {
		time.Sleep(5 * time.Millisecond)
	}
	if len(left)+len(sandboxes) > 0 {
		s.t.Errorf("processes are left: %v, in sandboxes: %v", left, sandboxes)
	}
}

// sandboxes are the processes whose root is in the store: what runs in a sandbox
// has an environment of its own, without the mark. A mount namespace that somebody
// else made from ours has the store, too, but not as its root.
func (s *site) sandboxes() (found []string) {
	ours, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		s.t.Fatal(err)
	}
	devices := strings.Fields(s.loops())
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, process := range processes {
		if theirs, err := os.Readlink(process + "/ns/mnt"); err != nil || theirs == ours {
			continue
		}
		mounts, _ := os.ReadFile(process + "/mountinfo")
		for line := range strings.Lines(string(mounts)) {
			fields := strings.Fields(line) // mount point and source, see proc_pid_mountinfo(5)
			if len(fields) > 4 && fields[4] == "/" && slices.ContainsFunc(devices, func(device string) bool { return slices.Contains(fields[5:], device) }) {
				found = append(found, filepath.Base(process))
			}
		}
	}
	return found
}

// result is what a command said.
type result struct {
	stdout, stderr string
	status         int
}

func (s *site) command(args ...string) *exec.Cmd {
	cmd := exec.Command(program, args...)
	cmd.Env = append(append(os.Environ(), "SIDUS_STATE="+s.dir, s.mark), s.env...)
	if s.stdin != "" && len(args) > 0 && args[0] == "receive" {
		file, err := os.Open(s.stdin)
		must(s.t, err)
		s.t.Cleanup(func() { _ = file.Close() })
		cmd.Stdin = file
	}
	return cmd
}

// run runs a command to its end, without a terminal.
func (s *site) run(args ...string) result {
	s.t.Helper()
	return s.runCmd(s.command(args...))
}

func (s *site) runCmd(cmd *exec.Cmd) result {
	s.t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	cmd.Stderr = &stderr
	cmd.WaitDelay = 10 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	if ctx.Err() != nil {
		s.t.Fatalf("%v is stuck; it said: %s%s", cmd.Args[1:], stdout.String(), stderr.String())
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%v: %v", cmd.Args[1:], err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// ok runs a command that must succeed, and returns what it printed.
func (s *site) ok(args ...string) string {
	s.t.Helper()
	r := s.run(args...)
	if r.status != 0 {
		s.t.Fatalf("sidus %s: status %d: %s", strings.Join(args, " "), r.status, r.stderr)
	}
	return r.stdout
}

// json runs a command that must succeed with --json, and decodes its output.
func (s *site) json(into any, args ...string) {
	s.t.Helper()
	out := s.ok(append(args, "--json")...)
	decode(s.t, args, out, into)
}

// decode wants exactly one JSON value.
func decode(t testing.TB, args []string, out string, into any) {
	t.Helper()
	decoder := json.NewDecoder(strings.NewReader(out))
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("sidus %s: the output is no JSON: %v\n%s", strings.Join(args, " "), err, out)
	}
	if decoder.More() {
		t.Fatalf("sidus %s: there is more than one value:\n%s", strings.Join(args, " "), out)
	}
}

// fails runs a command that must fail with a status and one clear message
// that holds all the words, and returns the message.
func (s *site) fails(status int, words []string, args ...string) string {
	s.t.Helper()
	return s.wantFailure(s.run(args...), status, words, args...)
}

func (s *site) wantFailure(r result, status int, words []string, args ...string) string {
	s.t.Helper()
	name := "sidus " + strings.Join(args, " ")
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	if r.status != status {
		s.t.Errorf("%s: status %d instead of %d: %s%s", name, r.status, status, r.stdout, r.stderr)
	}
	if r.stdout != "" {
		s.t.Errorf("%s: it failed and printed:\n%s", name, r.stdout)
	}
	lines := strings.Split(strings.TrimSpace(r.stderr), "\n")
	if !strings.HasPrefix(lines[len(lines)-1], "sidus: ") && !strings.HasPrefix(lines[0], "sidus: ") {
		s.t.Errorf("%s: the message is not one of sidus:\n%s", name, r.stderr)
	}
	if n := strings.Count("\n"+r.stderr, "\nsidus: "); n != 1 && !strings.Contains(r.stderr, "needed and stays") {
		s.t.Errorf("%s: there are %d messages:\n%s", name, n, r.stderr)
	}
	for _, bad := range []string{"panic", "goroutine ", "runtime error", "%!", "<nil>", "\x00", "\x1b"} {
		if strings.Contains(r.stderr, bad) {
			s.t.Errorf("%s: the message holds %q:\n%s", name, bad, r.stderr)
		}
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			s.t.Errorf("%s: the message does not say %q:\n%s", name, word, r.stderr)
		}
	}
	if len(r.stderr) > 2000 {
		s.t.Errorf("%s: the message has %d bytes", name, len(r.stderr))
	}
	return r.stderr
}

// sound checks that check finds nothing.
func (s *site) sound() {
	s.t.Helper()
	if r := s.run("check"); r.status != 0 {
		s.t.Errorf("check: status %d: %s%s", r.status, r.stdout, r.stderr)
	}
	s.noScratch()
}

// noScratch checks that no temporary file is in the state folder or the store.
func (s *site) noScratch() {
	s.t.Helper()
	for _, pattern := range []string{".scratch/*", "cache/work/*", ".*.tmp", "secrets/.*", "store/.*", "cache/index/.*", "cache/index/*.lock", "log/.*"} {
		if found, _ := filepath.Glob(filepath.Join(s.dir, pattern)); len(found) > 0 {
			s.t.Errorf("temporary files are left: %v", found)
		}
	}
}

// smallTree makes a directory with a shell and a few files.
func smallTree(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, folder := range []string{"bin", "etc", "tmp", "proc", "dev", "sys", "run"} {
		must(t, os.Mkdir(filepath.Join(dir, folder), 0o755))
	}
	copyFile(t, "/bin/busybox", filepath.Join(dir, "bin/busybox"), 0o755)
	must(t, os.Symlink("busybox", filepath.Join(dir, "bin/sh")))
	must(t, os.WriteFile(filepath.Join(dir, "etc/marker"), []byte("first\n"), 0o644))
	return dir
}

func copyFile(t testing.TB, from, to string, mode os.FileMode) {
	t.Helper()
	text, err := os.ReadFile(from)
	must(t, err)
	must(t, os.WriteFile(to, text, mode))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
