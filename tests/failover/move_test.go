package failover

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab"
)

// block is a block of commands of a page, and the server that they are for.
type block struct {
	on    string
	lines []string
}

// blocks reads the blocks of a page that begin with "```sh SERVER".
func blocks(t *testing.T, page string) (list []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	inside := false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		on, begins := strings.CutPrefix(line, "```sh ")
		switch {
		case begins:
			inside = true
			list = append(list, block{on: on})
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside && line != "":
			last := &list[len(list)-1]
			last.lines = append(last.lines, line)
		}
	}
	return list
}

// move moves the site from the old server to a new one by what
// docs/move-server.md says, while the machine reads.
func move(ctx context.Context, t *testing.T, root string, site *lab.Lab, old *server, guard *lab.Process, m *machine, want string) {
	t.Helper()
	// The page is about an address that an administrator moves.
	stopping, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := old.shell(ctx, "cp '"+old.prefix+"/sbin/systemctl' '"+old.prefix+"/systemctl' && echo '#!/bin/sh' > '"+old.prefix+"/sbin/systemctl'"); err != nil {
		t.Fatal(err)
	}
	if err := guard.Stop(stopping); err != nil {
		t.Logf("keepalived: %v", err)
	}
	for _, line := range []string{
		"mv '" + old.prefix + "/systemctl' '" + old.prefix + "/sbin/systemctl'",
		"ip address show dev eth0 | grep -q " + shared + " || ip address add " + shared + "/24 dev eth0",
	} {
		if _, err := old.shell(ctx, line); err != nil {
			t.Fatal(err)
		}
	}
	new := newServer(t, root, site, "new", "10.80.0.4", "")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of what %s said:\n%s", new.name, tail(new.log(), 40))
		}
	})
	loginByKey(ctx, t, old, new)
	names := strings.NewReplacer("10.0.0.10", shared, "--size 20G", "--size 7G")
	on := map[string]*server{"old": old, "new": new}
	page := blocks(t, "../../docs/move-server.md")
	if len(page) < 5 {
		t.Fatalf("the page has %d blocks of commands", len(page))
	}
	for _, b := range page {
		if on[b.on] == nil {
			t.Fatalf("the page has commands for a server %q", b.on)
		}
		for _, line := range b.lines {
			out, err := on[b.on].shell(ctx, names.Replace(line))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s# %s\n%s", b.on, names.Replace(line), strings.TrimSpace(out))
		}
	}
	waitFor(ctx, t, "the new server serves", time.Minute, new.serves)
	m.goesOn(ctx, t, want, 1)
	m.alive(ctx, t)
	new.must("check")
	if text := new.must("status"); !strings.Contains(text, nodeMAC) {
		t.Errorf("the new server does not know the machine: %s", text)
	}
	out, err := old.shell(ctx, "sidus snapshot client 2>&1 || true")
	if err != nil || !strings.Contains(out, "sidus takeover") {
		t.Errorf("the old server takes changes: %s, %v", out, err)
	}
}

// loginByKey lets root log in from one server to the host "new".
func loginByKey(ctx context.Context, t *testing.T, from, to *server) {
	t.Helper()
	dir := filepath.Join(to.prefix, "ssh")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	public, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"authorized": string(public),
		"sshd_config": "Port 22\nListenAddress " + to.address + "\nHostKey " + dir + "/host\nAuthorizedKeysFile " + dir + "/authorized\nPidFile none\n" +
			"UsePAM no\nPasswordAuthentication no\nStrictModes no\nPermitRootLogin prohibit-password\n" +
			"SetEnv PATH=" + to.prefix + "/sbin:/usr/bin:/bin SIDUS_STATE=" + to.state + "\n",
		"config": "Host new\n\tHostName " + to.address + "\n\tIdentityFile " + dir + "/user\n\tIdentitiesOnly yes\n\tStrictHostKeyChecking no\n" +
			"\tUserKnownHostsFile /dev/null\n\tLogLevel ERROR\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		t.Fatal(err)
	}
	daemon := to.start(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	if _, _, err := daemon.Output.WaitFor(ctx, 0, regexp.MustCompile(`Server listening`)); err != nil {
		t.Fatal(err)
	}
	from.env = append(from.env, "SIDUS_SSH=ssh -F "+filepath.Join(dir, "config"))
}
