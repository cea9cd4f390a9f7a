package liveupdate

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab/labtest"
)

// site is a state folder and the program that works on it.
type site struct {
	t       *testing.T
	program string
	state   string
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t, program: labtest.Program(t), state: filepath.Join(t.TempDir(), "state")}
	s.must("init", "--size", "20G")
	t.Cleanup(func() { s.must("unmount") })
	return s
}

// result is how a command of sidus ended.
type result struct {
	stdout, stderr string
	status         int
}

func (s *site) run(stdin io.Reader, args ...string) result {
	s.t.Helper()
	// Not the test's context: it is done when the test cleans up.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.program, append([]string{"--state", s.state}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 15 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// must runs a command of sidus that has to succeed, and returns what it says.
func (s *site) must(args ...string) string {
	s.t.Helper()
	r := s.run(nil, args...)
	if r.status != 0 {
		s.t.Fatalf("sidus %s: exit status %d: %s%s", strings.Join(args, " "), r.status, r.stdout, r.stderr)
	}
	return r.stdout
}

// refused runs a command of sidus that has to end with a status and say
// something.
func (s *site) refused(status int, says string, args ...string) {
	s.t.Helper()
	r := s.run(nil, args...)
	if text := r.stdout + r.stderr; r.status != status || !strings.Contains(text, says) {
		s.t.Errorf("sidus %s: exit status %d instead of %d, and it does not say %q: %s", strings.Join(args, " "), r.status, status, says, text)
	}
}

func (s *site) fetch(v any, args ...string) {
	s.t.Helper()
	text := s.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), v); err != nil {
		s.t.Fatalf("sidus %s --json: %v: %s", strings.Join(args, " "), err, text)
	}
}

// put writes programs into the tree's head.
func (s *site) put(files map[string][]byte) {
	s.t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	for name, data := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg, Format: tar.FormatGNU}); err != nil {
			s.t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			s.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	// A package manager replaces files, too; it never writes into them.
	if r := s.run(&archive, "exec", tree, "--", "tar", "--extract", "--unlink-first", "--directory=/"); r.status != 0 {
		s.t.Fatalf("exit status %d: %s", r.status, r.stderr)
	}
}

// answers are the test's program and library in a version.
func (s *site) answers(version int) map[string][]byte {
	s.t.Helper()
	dir := s.t.TempDir()
	number := fmt.Sprintf("-DVERSION=%d", version)
	for _, args := range [][]string{
		{"-shared", "-fPIC", number, fmt.Sprintf(`-DWORD="%d"`, version), "-Wl,-soname,libanswer.so.1", "-o", dir + "/libanswer.so.1", "testdata/library.c"},
		{number, "-o", dir + "/answer", "testdata/answer.c", dir + "/libanswer.so.1"},
	} {
		if out, err := exec.Command("gcc", append([]string{"-O1", "-Wall"}, args...)...).CombinedOutput(); err != nil {
			s.t.Fatalf("gcc: %v: %s", err, out)
		}
	}
	files := map[string][]byte{}
	for name, at := range map[string]string{"answer": "usr/bin/answer", "libanswer.so.1": "usr/lib/x86_64-linux-gnu/libanswer.so.1"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			s.t.Fatal(err)
		}
		files[at] = data
	}
	return files
}

// snapshot keeps the head and has the channel point to it; it returns
// tree@number.
func (s *site) snapshot() string {
	s.t.Helper()
	s.must("snapshot", tree)
	var shown struct {
		Snapshot struct{ Number int }
	}
	s.fetch(&shown, "show", tree+"@latest")
	s.must("promote", tree+"@latest")
	return fmt.Sprintf("%s@%d", tree, shown.Snapshot.Number)
}

// status is the line of `sidus status` for the machine.
func (s *site) status() string {
	s.t.Helper()
	for line := range strings.Lines(s.must("status")) {
		if strings.HasPrefix(line, nodeName+" ") {
			return strings.Join(strings.Fields(line), " ")
		}
	}
	s.t.Fatal("status does not know the machine")
	return ""
}
