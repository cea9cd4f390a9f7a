package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// server is a machine of its own as far as the network goes: a namespace with
// one card, eth0, in the site's network.
type server struct {
	t       *testing.T
	name    string
	address string
	state   string
	prefix  string // where Sidus is installed: PREFIX of the Makefile
	env     []string
	net     *lab.Lab
	uplink  string // the other end of eth0, in the site's namespace
}

// newServer makes a server with an empty store.
func newServer(t *testing.T, root string, site *lab.Lab, name, address, size string) *server {
	t.Helper()
	s := &server{t: t, name: name, address: address, state: filepath.Join(root, name, "state"), prefix: filepath.Join(root, name), uplink: "to-" + name}
	var err error
	if s.net, err = lab.New(lab.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.cut() })
	s.command("ip", "-netns", site.Name(), "link", "add", s.uplink, "type", "veth", "peer", "name", "eth0", "netns", s.net.Name())
	s.command("ip", "-netns", site.Name(), "link", "set", s.uplink, "master", bridge, "up")
	s.command("ip", "-netns", s.net.Name(), "link", "set", "eth0", "up")
	s.command("ip", "-netns", s.net.Name(), "address", "add", address+"/24", "broadcast", "+", "dev", "eth0")
	s.install()
	if size != "" {
		s.must("init", "--size", size)
	}
	return s
}

// install puts there what `make install` would.
func (s *server) install() {
	s.t.Helper()
	program := labtest.Program(s.t)
	sbin := filepath.Join(s.prefix, "sbin")
	share := filepath.Join(s.prefix, "share/sidus")
	for _, dir := range []string{sbin, share} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	s.env = append(os.Environ(), "LC_ALL=C", "PATH="+sbin+":"+os.Getenv("PATH"), "SIDUS_STATE="+s.state)
	// Several servers share this machine's files: each has its state by a
	// variable.
	s.write("sbin/sidus", "#!/bin/sh\nexport SIDUS_STATE='"+s.state+"'\nexec '"+program+"' \"$@\"\n")
	s.write("sbin/systemctl", `#!/bin/sh
# What systemd does with sidus.service, here: start it, and again when it ends.
dir='`+s.prefix+`'
case "$1" in
start)
	[ -e "$dir/pid" ] && kill -0 "$(cat "$dir/pid")" 2>/dev/null && exit 0
	setsid sh -c 'echo $$ >"$0/pid"; while :; do echo STARTS; "$0/sbin/sidus" serve --listen `+shared+` --no-ipxe-script; sleep 0.3; done' "$dir" </dev/null >>"$dir/serve.log" 2>&1 &
	while [ ! -e "$dir/pid" ]; do sleep 0.05; done
	;;
stop)
	[ -e "$dir/pid" ] || exit 0
	kill -TERM -- "-$(cat "$dir/pid")" 2>/dev/null
	while kill -0 -- "-$(cat "$dir/pid")" 2>/dev/null; do sleep 0.1; done
	rm -f "$dir/pid"
	;;
is-active)
	[ -e "$dir/pid" ] && tac "$dir/serve.log" | sed /STARTS/q | grep -q 'dhcp: answering'
	;;
esac
`)
	for _, name := range []string{"keepalived.conf", "keepalived-notify"} {
		text, err := os.ReadFile(filepath.Join("../../cmd/sidus", name))
		if err != nil {
			s.t.Fatal(err)
		}
		s.write("share/sidus/"+name, strings.ReplaceAll(string(text), "@PREFIX@", s.prefix))
	}
}

func (s *server) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.prefix, name), []byte(text), 0o755); err != nil {
		s.t.Fatal(err)
	}
}

// command runs a program outside of all namespaces.
func (s *server) command(name string, args ...string) {
	s.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}

// start starts a program on the server.
func (s *server) start(name string, args ...string) *lab.Process {
	s.t.Helper()
	path := name
	if !strings.Contains(name, "/") {
		if path = filepath.Join(s.prefix, "sbin", name); !exists(path) {
			var err error
			if path, err = exec.LookPath(name); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	cmd := exec.Command(path, args...)
	cmd.Env = s.env
	p, err := s.net.StartCmd(cmd)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// shell runs a line of shell on the server.
func (s *server) shell(ctx context.Context, line string) (string, error) {
	p := s.start("/bin/sh", "-ec", line)
	err := p.Wait(ctx)
	if err != nil {
		err = fmt.Errorf("%s: %s: %w: %s", s.name, line, err, p.Output.String())
	}
	return p.Output.String(), err
}

// must runs a command of sidus on the server that has to succeed, and returns
// what it prints.
func (s *server) must(args ...string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeoutCause(context.Background(), 10*time.Minute, errors.New("a command takes too long"))
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.prefix, "sbin/sidus"), args...)
	cmd.Env = s.env
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		s.t.Fatalf("%s: sidus %s: %v: %s", s.name, strings.Join(args, " "), err, tail(stderr.String(), 30))
	}
	return stdout.String()
}

func (s *server) fetch(into any, args ...string) {
	s.t.Helper()
	text := s.must(append(args, "--json")...)
	if err := json.Unmarshal([]byte(text), into); err != nil {
		s.t.Fatalf("sidus %s: %v: %s", strings.Join(args, " "), err, text)
	}
}

// cut is the end of the server's power: its network is gone, and all that runs
// there is killed.
func (s *server) cut() {
	s.t.Helper()
	if s.net == nil {
		return
	}
	_ = exec.Command("ip", "-netns", s.net.Name(), "link", "set", "eth0", "down").Run()
	if err := s.net.Close(); err != nil {
		s.t.Error(err)
	}
	s.net = nil
}

// serves tells whether it answers machines.
func (s *server) serves() bool { return strings.Contains(s.log(), "dhcp: answering") }

// log is what the server said while it served.
func (s *server) log() string {
	text, _ := os.ReadFile(filepath.Join(s.prefix, "serve.log"))
	return string(text)
}

// keepalived starts keepalived with the configuration that is shipped.
func (s *server) keepalived(priority int) *lab.Process {
	s.t.Helper()
	shipped, err := os.ReadFile(filepath.Join(s.prefix, "share/sidus/keepalived.conf"))
	if err != nil {
		s.t.Fatal(err)
	}
	text := strings.NewReplacer("@INTERFACE@", "eth0", "@ADDRESS@", shared+"/24", "@PRIORITY@", fmt.Sprint(priority)).Replace(string(shipped))
	s.write("keepalived.conf", text)
	if err := os.Chmod(filepath.Join(s.prefix, "keepalived.conf"), 0o644); err != nil {
		s.t.Fatal(err)
	}
	file := func(name string) string { return filepath.Join(s.prefix, name) }
	return s.start("keepalived", "--dont-fork", "--log-console", "--log-detail", "--no-syslog", "--vrrp", "--use-file", file("keepalived.conf"),
		"--pid", file("keepalived.pid"), "--vrrp_pid", file("vrrp.pid"))
}

// waitFor waits until a condition holds.
func waitFor(ctx context.Context, t *testing.T, what string, limit time.Duration, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("waited %s until %s", limit, what))
	defer cancel()
	for !holds() {
		select {
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
