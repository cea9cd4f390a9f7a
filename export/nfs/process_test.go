package nfs

import (
	"bufio"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// startProcess starts this test program as a server of a tree in a process of
// its own, by a command that begins it with no test to run. more is added to
// its environment. It returns the address that it listens at, once it does, and
// ends it with the test.
func startProcess(t testing.TB, cmd *exec.Cmd, tree, dir string, more ...string) (addr string) {
	t.Helper()
	cmd.Env = append(append(os.Environ(), "SIDUS_TEST_SERVE="+tree, "SIDUS_TEST_SERVE_DIR="+dir), more...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}
