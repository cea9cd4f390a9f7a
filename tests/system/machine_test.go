package system

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab"
)

// machine is a virtual machine that boots from the server.
type machine struct {
	*lab.Machine
	name string
	mac  string // of the card that it boots with
	site *site
	srv  *server
}

// boot plugs a machine in. It boots with its last card.
func (w *world) boot(t *testing.T, name string, cards ...lab.NIC) *machine {
	t.Helper()
	vm, err := w.lab.Boot(lab.MachineOptions{Name: name, NICs: cards})
	if err != nil {
		t.Fatal(err)
	}
	m := &machine{Machine: vm, name: name, mac: vm.MACs[len(cards)-1].String(), site: w.site, srv: w.server}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the console of %s:\n%s", name, tail(vm.Console.String(), 60))
		}
		if err := vm.Quit(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// waitUp waits until the agent has reported and the shell at the serial port
// waits; from is an offset of the server's log, said one of the console. It
// returns the line of the log.
func (m *machine) waitUp(ctx context.Context, t *testing.T, from, said int) string {
	t.Helper()
	line, _, err := m.srv.wait(ctx, from, step("up", m.mac))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.Console.WaitFor(ctx, said, regexp.MustCompile(`root@\S+:~#`)); err != nil {
		t.Fatal(err)
	}
	return line
}

// shell runs a command in the machine; it must succeed.
func (m *machine) shell(ctx context.Context, t *testing.T, command string) string {
	t.Helper()
	out, err := m.Shell(ctx, command)
	if err != nil {
		t.Fatalf("%s: %v", m.name, err)
	}
	return strings.TrimSpace(out)
}

// expect checks what a command prints in the machine.
func (m *machine) expect(ctx context.Context, t *testing.T, want, command string) {
	t.Helper()
	if got := m.shell(ctx, t, command); got != want {
		t.Errorf("%s: %s prints\n%s\ninstead of\n%s", m.name, command, got, want)
	}
}

// checkRuns checks that the machine runs the snapshot and nothing else: kernel
// command line, initrd and root are of its version, and the server says so.
func (m *machine) checkRuns(ctx context.Context, t *testing.T, s snapshot, channel string) {
	t.Helper()
	m.expect(ctx, t, s.version, "cat /usr/lib/sidus-test/version")
	m.expect(ctx, t, s.version, "cat /run/sidus/ro/usr/lib/sidus-test/version")
	// Read in the binary, so that messages do not count.
	m.expect(ctx, t, "the initrd has version "+s.version, `dmesg | sed -n 's/.*test: \(the initrd.*\)/\1/p'`)
	line := " " + m.shell(ctx, t, "cat /proc/cmdline") + " "
	st := m.site.status(ctx, t, m.mac)
	if st.Session == nil {
		t.Fatalf("%s runs, and has no session", m.name)
	}
	for _, word := range []string{
		"boot=sidus", "sidus.protocol=1", "sidus.snapshot=" + s.id, "sidus.session=" + st.Session.ID,
		"test.version=" + s.version, "BOOTIF=01-" + strings.ReplaceAll(m.mac, ":", "-"),
	} {
		if !strings.Contains(line, " "+word+" ") {
			t.Errorf("%s: the kernel's command line has no %q: %s", m.name, word, line)
		}
	}
	if !regexp.MustCompile(` sidus\.nfs=[0-9.]+:2049:/snapshot/` + s.id + ` `).MatchString(line) {
		t.Errorf("%s: the kernel's command line names another root: %s", m.name, line)
	}
	mounts := m.shell(ctx, t, "cat /proc/mounts")
	for _, want := range []string{
		`(?m)^overlay / overlay rw,\S*lowerdir=/run/sidus/ro,upperdir=/run/sidus/rw/upper,workdir=/run/sidus/rw/work`,
		`(?m)^[0-9.]+:/snapshot/` + s.id + ` /run/sidus/ro nfs ro,\S*vers=3\S*,proto=tcp`,
		`(?m)^tmpfs /run/sidus/rw tmpfs rw`,
	} {
		if !regexp.MustCompile(want).MatchString(mounts) {
			t.Errorf("%s: /proc/mounts has no %s:\n%s", m.name, want, mounts)
		}
	}
	if st.Session.Snapshot.ID != s.id || st.Session.Channel != channel || st.Session.Step != "up" || len(st.Session.FailedUnits) > 0 {
		t.Errorf("%s runs %s of channel %s; status says %+v", m.name, s.ref, channel, *st.Session)
	}
	address, _, _ := strings.Cut(m.shell(ctx, t, ipAddress), "/")
	if address != st.Session.Address {
		t.Errorf("%s has the address %s, and status says %s", m.name, address, st.Session.Address)
	}
	m.expect(ctx, t, "", "systemctl --failed --no-legend --plain")
}

// ipAddress prints the address of the card that carries the root.
const ipAddress = "ip -4 -o address show dev $(sed -n s/^DEVICE=//p /run/sidus/boot.env) | awk '{print $4}'"

// identity is what tells a node from others.
type identity struct{ machineID, hostKeys string }

func (m *machine) identity(ctx context.Context, t *testing.T) identity {
	t.Helper()
	id := identity{machineID: m.shell(ctx, t, "cat /etc/machine-id"), hostKeys: m.shell(ctx, t, "cat /etc/ssh/ssh_host_*_key.pub | cut -d' ' -f2")}
	if !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$`).MatchString(id.machineID) {
		t.Errorf("%s: machine-id %q", m.name, id.machineID)
	}
	m.expect(ctx, t, id.machineID, `sed -n 's/.* sidus\.machine-id=\([0-9a-f]*\).*/\1/p' /proc/cmdline`)
	if len(strings.Fields(id.hostKeys)) < 3 {
		t.Errorf("%s: ssh host keys %q", m.name, id.hostKeys)
	}
	// They were made here: the tree has none.
	m.expect(ctx, t, "0", "ls /run/sidus/ro/etc/ssh | grep -c host_ || true")
	return id
}

// offWithin is how long a machine may take to power off or to reset.
func (m *machine) offWithin() time.Duration { return time.Minute * m.site.host.patience() }

// reboot reboots the machine and returns when it has reset: the offset of the
// console at which the next boot begins.
func (m *machine) reboot(ctx context.Context, t *testing.T) int {
	t.Helper()
	said, events, begun := m.Console.Len(), len(m.Events()), time.Now()
	if err := m.Type("systemctl reboot\n"); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, m.offWithin(), errors.New("a reboot takes too long"))
	defer cancel()
	if _, _, err := m.WaitEvent(limited, events, "RESET"); err != nil {
		t.Fatal(err)
	}
	next := m.Console.Len()
	times.note(m.name+": from `systemctl reboot` to the reset", time.Since(begun))
	m.checkShutdown(t, said)
	return next
}

// powerOff waits until the machine is off after ask.
func (m *machine) powerOff(ctx context.Context, t *testing.T, how string, ask func() error) {
	t.Helper()
	said, begun := m.Console.Len(), time.Now()
	if err := ask(); err != nil {
		t.Fatal(err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, m.offWithin(), errors.New("a power-off takes too long"))
	defer cancel()
	if err := m.Wait(limited); err != nil {
		t.Fatal(err)
	}
	times.note(fmt.Sprintf("%s: from %s to off", m.name, how), time.Since(begun))
	m.checkShutdown(t, said)
}

func (m *machine) checkShutdown(t *testing.T, said int) {
	t.Helper()
	text := m.Console.String()[said:]
	for _, bad := range []string{"Failed unmounting", "Failed to unmount", "stop job is running", "not responding", "Call Trace", "timed out"} {
		if strings.Contains(text, bad) {
			t.Errorf("%s: the shutdown says %q:\n%s", m.name, bad, tail(text, 60))
		}
	}
}
