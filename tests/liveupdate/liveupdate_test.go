package liveupdate

import (
	"context"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

const (
	tree     = "live"
	nodeName = "n1"
	mac      = "52:54:00:00:01:01"
)

// machine is the one that is updated.
type machine struct {
	*lab.Machine
	t *testing.T
}

// prints checks what a command prints on the machine.
func (m *machine) prints(ctx context.Context, want, command string) {
	m.t.Helper()
	out, err := m.Shell(ctx, command)
	if got := strings.TrimSpace(out); err != nil || got != want {
		m.t.Errorf("%s: %v; it prints\n%s\ninstead of\n%s", command, err, got, want)
	}
}

func (m *machine) shell(ctx context.Context, command string) string {
	m.t.Helper()
	out, err := m.Shell(ctx, command)
	if err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// sameEverywhere checks what the program prints in every mount namespace.
func (m *machine) sameEverywhere(ctx context.Context, want string) {
	m.t.Helper()
	m.prints(ctx, want, "answer")
	for _, name := range namespaces {
		m.prints(ctx, want, "nsenter -m -t $(systemctl show -P MainPID "+name+") /usr/bin/answer")
	}
}

// namespaces are services, each in a mount namespace of its own.
var namespaces = []string{"private", "strict", "unshared"}

// daemon asks the daemon for a part of its library that it has not read yet.
func (m *machine) daemon(ctx context.Context, part, version string) {
	m.t.Helper()
	m.prints(ctx, part+" library "+version+" sum "+version, "systemctl kill -s USR1 daemon; for i in $(seq 300); do grep -q '^"+part+" ' /run/daemon.out && break; sleep 0.1; done; cat /run/daemon.out")
}

func TestLiveUpdate(t *testing.T) {
	if os.Getenv("SIDUS_VM_TESTS") == "" {
		t.Skip("SKIPPED: boots a virtual machine, which takes minutes; set SIDUS_VM_TESTS=1 to run it")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	s := newSite(t)
	s.prepare()
	s.put(s.answers(1))
	first := s.snapshot()
	s.must("network", "add", "lab", "--subnet", "10.77.0.0/24", "--mode", "full", "--range", "10.77.0.100-10.77.0.199")
	s.must("node", "add", mac, "--name", nodeName, "--group", "lab")

	l := labtest.New(t, lab.Options{})
	if _, err := l.AddBridge("lan", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	server, err := l.Start(s.program, "serve", "--state", s.state, "--interface", "lan", "--no-ipxe-script")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := server.Output.WaitFor(ctx, 0, regexp.MustCompile("dhcp: answering")); err != nil {
		t.Fatal(err)
	}
	vm, err := l.Boot(lab.MachineOptions{Name: nodeName, NICs: []lab.NIC{{Bridge: "lan"}}})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{vm, t}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server says:\n%s", server.Output)
		}
	})
	up := func(from, said int) {
		t.Helper()
		if _, _, err := server.Output.WaitFor(ctx, from, regexp.MustCompile(`msg="boot: up"`)); err != nil {
			t.Fatalf("%v; the console:\n%s", err, m.Console)
		}
		if _, _, err := m.Console.WaitFor(ctx, said, regexp.MustCompile(`root@\S+:~#`)); err != nil {
			t.Fatal(err)
		}
	}
	up(0, 0)

	// What runs before: a daemon, services with mount namespaces of their own,
	// something of the node's own in /usr, a mount below it, and names that
	// were looked up and are missing.
	m.shell(ctx, `set -e
systemd-run -q --unit=daemon /usr/bin/answer /run/daemon.out
systemd-run -q --unit=private -p PrivateTmp=yes sleep infinity
systemd-run -q --unit=strict -p ProtectSystem=strict -p PrivateTmp=yes sleep infinity
systemd-run -q --unit=unshared unshare -m --propagation slave sleep infinity
echo "echo the node wrote this" >/usr/local/bin/mine
chmod 755 /usr/local/bin/mine
mkdir -p /usr/local/data
mount -t tmpfs none /usr/local/data
echo kept >/usr/local/data/file`)
	m.sameEverywhere(ctx, "program 1 library 1")
	missing := "ls /usr/bin/bc /usr/lib/x86_64-linux-gnu/libreadline.so.8 2>&1 | grep -c 'No such file'; command -v bc || echo none; ls /usr/bin | grep -c '^bc$'"
	m.prints(ctx, "2\nnone\n0", missing+" || true")
	for _, name := range namespaces {
		m.prints(ctx, "1", "nsenter -m -t $(systemctl show -P MainPID "+name+") ls /usr/bin/bc 2>&1 | grep -c 'No such file'")
	}
	s.refused(3, `node "nobody"`, "node", "update", nodeName, "nobody") // nothing is done if one is not known

	// The first update: a new program with a new library, and a new version of
	// a program and of a library that is in use.
	// The lists of packages may be as old as the cached tree.
	s.must("exec", tree, "--", "sh", "-ec", "apt-get install -y -qq bc || { apt-get update -qq; apt-get install -y -qq bc; }")
	s.put(s.answers(2))
	second := s.snapshot()
	begun := time.Now()
	said := s.must("node", "update", nodeName)
	t.Logf("the first update took %.1f s:\n%s", time.Since(begun).Seconds(), said)
	if !strings.Contains(said, "runs "+second+", before it was "+first) {
		t.Errorf("node update says: %s", said)
	}
	m.sameEverywhere(ctx, "program 2 library 2")
	m.prints(ctx, "42", "echo 6*7 | bc")
	m.prints(ctx, "1", "ldconfig -p | grep -c libreadline.so.8")
	for _, name := range namespaces {
		m.prints(ctx, "42", "echo 6*7 | nsenter -m -t $(systemctl show -P MainPID "+name+") bc")
	}
	m.daemon(ctx, "1", "1")
	t.Logf("in a service with ProtectSystem=, /usr is %s", m.shell(ctx, "nsenter -m -t $(systemctl show -P MainPID strict) sh -c '[ -w /usr/bin ] && echo writable || echo read-only'"))
	m.prints(ctx, "the node wrote this\nkept", "mine; cat /usr/local/data/file")
	m.shell(ctx, `echo "echo after the update" >/usr/local/bin/later; chmod 755 /usr/local/bin/later`)
	if got := s.status(); !strings.Contains(got, " "+first+"+"+second+" ") || !strings.Contains(got, "would boot "+second+" as a whole") {
		t.Errorf("status: %s", got)
	}
	if got := s.must("node", "update", "--all"); !strings.Contains(got, "it runs "+second+" already") {
		t.Errorf("a second time: %s", got)
	}

	// A second update on top of it: programs go, the modules of the running
	// kernel too, and a unit comes. Something in /etc waits for the next boot.
	kernel := m.shell(ctx, "uname -r")
	s.must("exec", tree, "--", "sh", "-ec", `apt-get purge -y -qq bc
mv /usr/lib/modules/`+kernel+` /usr/lib/modules/other
printf '[Service]\nType=oneshot\nExecStart=/usr/bin/answer\n' >/usr/lib/systemd/system/answer.service
echo new >/etc/only-after-a-boot`)
	s.put(s.answers(3))
	third := s.snapshot()
	said = s.must("node", "update", "--group", "lab")
	t.Logf("the second update:\n%s", said)
	if !strings.Contains(said, "runs "+third+", before it was "+second) || !strings.Contains(said, "/etc/only-after-a-boot") {
		t.Errorf("node update says: %s", said)
	}
	m.sameEverywhere(ctx, "program 3 library 3")
	m.prints(ctx, "none", "command -v bc || echo none")
	m.daemon(ctx, "2", "1")
	m.prints(ctx, "the node wrote this\nafter the update\nkept", "mine; later; cat /usr/local/data/file")
	m.prints(ctx, "dummy", "modprobe dummy && ls -d /sys/module/dummy | sed 's|.*/||'")
	m.prints(ctx, "success", "systemctl start answer && systemctl show -P Result answer")
	m.prints(ctx, "none", "cat /etc/only-after-a-boot 2>/dev/null || echo none")

	// What is in use stays, whoever points to it.
	for _, snapshot := range []string{first, second, third} {
		s.refused(4, "node "+nodeName+" runs "+snapshot, "delete", snapshot, "--yes")
	}

	// One that cannot be taken leaves the node as it was, and says why.
	mounts := m.shell(ctx, "cat /proc/mounts")
	s.must("exec", tree, "--", "sed", "-i", `s/^VERSION_ID=.*/VERSION_ID="99"/`, "/usr/lib/os-release")
	s.snapshot()
	s.refused(1, "another release needs a reboot", "node", "update", nodeName)
	m.sameEverywhere(ctx, "program 3 library 3")
	if now := m.shell(ctx, "cat /proc/mounts"); now != mounts {
		t.Errorf("the mounts were\n%s\nand are\n%s", mounts, now)
	}
	m.prints(ctx, "2", "ls /run/sidus/updates | wc -l")
	s.must("channel", "rollback", "default")

	// After a reboot it runs the newest plainly.
	s.must("exec", tree, "--", "sh", "-ec", `mv /usr/lib/modules/other /usr/lib/modules/`+kernel+`
sed -i 's/^VERSION_ID=.*/VERSION_ID="12"/' /usr/lib/os-release`)
	s.put(s.answers(4))
	fourth := s.snapshot()
	s.must("node", "update", "--channel", "default")
	m.sameEverywhere(ctx, "program 4 library 4")
	m.daemon(ctx, "3", "1")
	m.prints(ctx, "", "systemctl --failed --no-legend --plain")
	from, console, events := server.Output.Len(), m.Console.Len(), len(m.Events())
	begun = time.Now()
	if err := m.Type("systemctl reboot\n"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.WaitEvent(ctx, events, "RESET"); err != nil {
		t.Fatal(err)
	}
	took, ending := time.Since(begun), m.Console.String()[console:]
	t.Logf("the reboot took %.1f s until the reset", took.Seconds())
	if took > time.Minute || strings.Contains(ending, "Failed unmounting") || strings.Contains(ending, "Call Trace") {
		t.Errorf("the end of the system:\n%s", ending)
	}
	up(from, m.Console.Len())
	m.prints(ctx, "program 4 library 4", "answer")
	m.prints(ctx, "0\nnew", "grep -c ' /usr ' /proc/mounts; cat /etc/only-after-a-boot")
	if got := s.status(); !strings.Contains(got, " "+fourth+" ") || !strings.Contains(got, "would change nothing") {
		t.Errorf("status after the reboot: %s", got)
	}
	// Nobody but the channel's history needs the others now.
	s.must("channel", "set", "default", "--keep", "0")
	s.must("delete", second, "--yes")
	if err := m.Quit(); err != nil {
		t.Error(err)
	}
	if err := server.Stop(ctx); err != nil {
		t.Error(err)
	}
}
