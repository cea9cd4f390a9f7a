package commands

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// busy are commands that are at work until somebody ends them, and what tells
// that they are.
func busy(t *testing.T, s *site) map[string]struct {
	args  []string
	stdin bool
	ready func() bool
} {
	recipe := writeRecipe(t, "slow", busyboxPhases+"  - name: slow\n    run: |\n      busybox sleep 1000 &\n      busybox setsid busybox sleep 1000 &\n      busybox sleep 1000\n")
	sleeping := func() bool { return len(sleepers(s.root())) >= 3 }
	return map[string]struct {
		args  []string
		stdin bool
		ready func() bool
	}{
		"build": {[]string{"build", recipe}, false, sleeping},
		"exec": {[]string{"exec", "deb", "--", "/bin/sh", "-c", "busybox sleep 1000 & busybox setsid busybox sleep 1000 & busybox sleep 1000"}, false,
			sleeping},
		"import": {[]string{"import", "x", "--tar", "-"}, true, func() bool {
			for _, command := range s.processes() { // others come and go, of the store
				if strings.HasPrefix(command, "tar ") {
					return true
				}
			}
			return false
		}},
	}
}

// sleepers are the processes whose program lies in the store: those inside a
// sandbox do not inherit the environment.
func sleepers(root string) (pids []string) {
	links, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, link := range links {
		mounts, err := os.ReadFile(filepath.Join(filepath.Dir(link), "mountinfo"))
		if err != nil || !strings.Contains(string(mounts), "/volumes/") {
			continue
		}
		if target, err := os.Readlink(link); err == nil && strings.HasSuffix(target, "/bin/busybox") && ofStore(string(mounts), root) {
			pids = append(pids, filepath.Base(filepath.Dir(link)))
		}
	}
	return pids
}

// ofStore tells whether a process's mounts are of the store at root.
func ofStore(mounts, root string) bool {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); fields[4] == root {
			return strings.Contains(mounts, " "+fields[2]+" ")
		}
	}
	return false
}

// TestCutWhileAtWork ends commands while programs of theirs run, by kill -9,
// by SIGTERM and by Ctrl-C: nothing is left running or mounted, and the site
// is as before.
func TestCutWhileAtWork(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			s.ok("import", "deb", "--dir", smallTree(t))
			for name, c := range busy(t, s) {
				cmd := s.command(c.args...)
				if c.stdin {
					input := exec.Command("tar", "-C", smallTree(t), "-cf", "-", ".")
					archive, err := input.Output()
					must(t, err)
					pipe, err := cmd.StdinPipe()
					must(t, err)
					w := bufio.NewWriter(pipe)
					go func() { _, _ = w.Write(archive[:len(archive)/2]); _ = w.Flush() }() // and no end
				}
				var said strings.Builder
				cmd.Stderr = &said
				must(t, cmd.Start())
				end := time.Now().Add(30 * time.Second)
				ready := c.ready()
				for ; !ready && time.Now().Before(end); ready = c.ready() {
					time.Sleep(10 * time.Millisecond)
				}
				if !ready {
					t.Errorf("%s is not at work: %v", name, s.processes())
				}
				if r := s.run("check"); r.status != 0 {
					t.Errorf("%s: check beside it: %+v", name, r)
				}
				if r := s.run("check", "--repair"); r.status != 0 {
					t.Errorf("%s: check --repair beside it: %+v", name, r)
				}
				begun := time.Now()
				must(t, cmd.Process.Signal(signal))
				_ = cmd.Wait()
				if signal == syscall.SIGKILL {
					s.waitAlone()
					s.mended(name)
				} else {
					if status := cmd.ProcessState.ExitCode(); status != 130 {
						t.Errorf("%s: status %d after %s: %s", name, status, signal, said.String())
					}
					s.sound()
				}
				if took := time.Since(begun); took > 20*time.Second {
					t.Errorf("%s took %s to end", name, took)
				}
				end = time.Now().Add(5 * time.Second)
				for len(sleepers(s.root())) > 0 && time.Now().Before(end) {
					time.Sleep(10 * time.Millisecond)
				}
				if left := sleepers(s.root()); len(left) > 0 {
					t.Errorf("%s: programs of the sandbox are left: %v", name, left)
				}
				if r := s.run("show", "x"); r.status != 3 {
					t.Errorf("%s: something of the import shows: %+v", name, r)
				}
				if len(s.mounts()) > 1 {
					t.Errorf("%s: mounted: %v", name, s.mounts())
				}
				s.ok("exec", "deb", "--", "/bin/busybox", "true") // the lock is free
				if r := s.run("log", "slow"); name == "build" && (r.status != 0 || !strings.Contains(r.stdout, "slow@1") || strings.Contains(r.stdout, "slow@2")) {
					t.Errorf("build: %+v", r)
				}
			}
		})
	}
}
