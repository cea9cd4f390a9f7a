package initramfs_test

import (
	"context"
	"encoding/json"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/boot/protocol"
	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

const (
	session   = "0123456789abcdef0123456789abcdef"
	snapshot  = "fedcba9876543210fedcba9876543210"
	machineID = "00112233445546778899aabbccddeeff"
	nfsPort   = 12049
	mountPort = 12048
)

var server = netip.MustParseAddr("10.77.0.1")

// site is a lab with what a node needs: a DHCP server with short leases, a
// place for reports, and, once it is started, an NFS server.
type site struct {
	*lab.Lab
	tree    string
	dnsmasq *lab.Process
	reports *lab.Reports
	traffic *lab.Capture
}

func newSite(t *testing.T, ctx context.Context) *site {
	t.Helper()
	needMachines(t)
	s := &site{tree: bootableTree(t)}
	s.Lab = labtest.New(t, lab.Options{Dir: t.TempDir()})
	var err error
	if _, err := s.AddBridge("lan", netip.PrefixFrom(server, 24)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddBridge("dead", netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	if s.reports, err = s.Reports("10.77.0.1:8081"); err != nil {
		t.Fatal(err)
	}
	if s.traffic, err = s.Capture("lan"); err != nil {
		t.Fatal(err)
	}
	return s
}

// dhcp starts a DHCP server; with a kernel's command line, one from which
// machines boot.
func (s *site) dhcp(t *testing.T, ctx context.Context, commandLine string) {
	t.Helper()
	opts := lab.DnsmasqOptions{
		Bridge: "lan",
		First:  netip.MustParseAddr("10.77.0.100"),
		Last:   netip.MustParseAddr("10.77.0.150"),
		Lease:  2 * time.Minute,
		Args:   []string{"--domain=lab.example", "--dhcp-option=option:dns-server,10.77.0.1", "--dhcp-host=52:54:00:00:01:02,node7"},
	}
	var err error
	if commandLine != "" {
		opts.BootFile = "pxelinux.0"
		if opts.TFTPRoot, err = s.PXELinux(one(t, s.tree, "boot/vmlinuz-*"), one(t, s.tree, "boot/initrd.img-*"), commandLine); err != nil {
			t.Fatal(err)
		}
	}
	if s.dnsmasq, err = s.Dnsmasq(ctx, opts); err != nil {
		t.Fatal(err)
	}
}

func (s *site) nfs(t *testing.T, ctx context.Context, noACL bool) *lab.Process {
	t.Helper()
	p, err := s.Ganesha(ctx, lab.GaneshaOptions{Dir: s.tree, Address: server, NFSPort: nfsPort, MountPort: mountPort, NoACL: noACL})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func commandLine(t *testing.T, tree, mac string) string {
	t.Helper()
	hw, err := net.ParseMAC(mac)
	if err != nil {
		t.Fatal(err)
	}
	line, err := protocol.CommandLine{
		Session: session, Snapshot: snapshot,
		NFS: netip.AddrPortFrom(server, nfsPort), NFSPath: tree,
		HTTP: "http://10.77.0.1:8081", MachineID: machineID, Hostname: "fromserver",
		NFSOptions: []string{"mountport=12048"},
		BootMAC:    hw, Extra: "console=ttyS0,115200 quiet",
	}.Render()
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestBoot boots a machine with two cards by PXE, the first of which is on a
// dead network; takes the NFS server away for 20 s in the middle of the boot;
// looks at what came up; waits until a lease of two minutes has been renewed;
// and takes the time of a reboot and of a power-off.
func TestBoot(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
	defer cancel()
	s := newSite(t, ctx)
	s.dhcp(t, ctx, commandLine(t, s.tree, "52:54:00:00:01:02"))
	nfs := s.nfs(t, ctx, false)

	start := time.Now()
	m, err := s.Boot(lab.MachineOptions{Name: "node", NICs: []lab.NIC{{Bridge: "dead", NoPXE: true}, {Bridge: "lan"}}})
	if err != nil {
		t.Fatal(err)
	}
	// The root is mounted, but hardly anything of it has been read.
	if err := s.traffic.Wait(ctx, func(n map[lab.Protocol]lab.Count) bool { return n[lab.NFS].Bytes > 4<<20 }); err != nil {
		t.Fatalf("%v\nThe console:\n%s", err, m.Console)
	}
	t.Logf("the root is read after %.1f s; the NFS server goes", time.Since(start).Seconds())
	if err := nfs.Kill(); err != nil {
		t.Fatal(err)
	}
	select { // there is nothing to wait for: the time is the test
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	s.nfs(t, ctx, false)

	report, err := s.reports.Wait(ctx, func(r lab.Report) bool { return strings.Contains(string(r.Body), `"up"`) })
	if err != nil {
		t.Fatalf("%v\nThe console:\n%s", err, m.Console)
	}
	t.Logf("up after %.1f s (20 s of which without NFS)\n%s", time.Since(start).Seconds(), s.traffic)
	checkReport(t, report)
	// multi-user.target has been reached; a shell comes with it.
	if _, err := m.WaitText(ctx, `root@node7`); err != nil {
		t.Fatal(err)
	}
	checkNode(t, ctx, m)

	// Two minutes are over twice.
	address := shell(t, ctx, m, "ip -4 -o address show dev $(sed -n s/^DEVICE=//p /run/sidus/boot.env) | awk '{print $4}'")
	from := s.dnsmasq.Output.Len()
	for range 4 {
		if _, from, err = s.dnsmasq.Output.WaitFor(ctx, from, regexp.MustCompile(`DHCPACK\(lan\) 10\.77\.0\.1\d\d 52:54:00:00:01:02`)); err != nil {
			t.Fatal(err)
		}
	}
	if now := shell(t, ctx, m, "ip -4 -o address show dev $(sed -n s/^DEVICE=//p /run/sidus/boot.env) | awk '{print $4}'"); now != address {
		t.Errorf("the address was %q and is %q", address, now)
	}
	t.Logf("the agent says:\n%s", shell(t, ctx, m, "journalctl --no-pager -o cat -u sidus-lease -u sidus-agent"))
	if s.traffic.Lost() > 0 {
		t.Error("the capture lost packets")
	}

	start = time.Now()
	events := len(m.Events())
	if err := m.Type("systemctl reboot\n"); err != nil {
		t.Fatal(err)
	}
	said := m.Console.Len()
	if _, _, err := m.WaitEvent(ctx, events, "RESET"); err != nil {
		t.Fatal(err)
	}
	from = m.Console.Len()
	t.Logf("the reboot took %.1f s", time.Since(start).Seconds())
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("a reboot takes %v until the reset; the console:\n%s", took, m.Console.String()[said:from])
	}
	start = time.Now()
	if _, _, err = m.Console.WaitFor(ctx, from, regexp.MustCompile(`root@node7`)); err != nil {
		t.Fatal(err)
	}
	t.Logf("the second boot took %.1f s to the shell", time.Since(start).Seconds())
	if id := shell(t, ctx, m, "cat /etc/machine-id"); id != machineID {
		t.Errorf("after a reboot the machine-id is %q", id)
	}
	from = m.Console.Len()
	start = time.Now()
	if err := m.PowerDown(); err != nil {
		t.Fatal(err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("the power-off took %.1f s", time.Since(start).Seconds())
	if took := time.Since(start); took > 30*time.Second {
		t.Errorf("a power-off takes %v; the console:\n%s", took, m.Console.String()[from:])
	}
	if strings.Contains(m.Console.String()[from:], "Failed unmounting") {
		t.Errorf("the power-off is not clean:\n%s", m.Console.String()[from:])
	}
}

func checkReport(t *testing.T, report lab.Report) {
	t.Helper()
	if want := "/v1/sessions/" + session + "/report"; report.Path != want {
		t.Errorf("the report goes to %s, not %s", report.Path, want)
	}
	var r protocol.Report
	if err := json.Unmarshal(report.Body, &r); err != nil {
		t.Fatal(err)
	}
	t.Logf("report: %s", report.Body)
	if len(r.FailedUnits) != 1 || r.FailedUnits[0] != "sidus-test-fails.service" {
		t.Errorf("failed units: %q", r.FailedUnits)
	}
	if !strings.HasPrefix(report.From, r.Address+":") || r.UptimeSeconds < 5 || !strings.HasPrefix(r.Kernel, "6.1.0-") {
		t.Errorf("report from %s: %+v", report.From, r)
	}
}

// checkNode looks at the node as its programs see it.
func checkNode(t *testing.T, ctx context.Context, m *lab.Machine) {
	t.Helper()
	mounts := shell(t, ctx, m, "cat /proc/mounts")
	t.Logf("mounts:\n%s", mounts)
	for _, want := range []string{
		`(?m)^overlay / overlay rw,\S*lowerdir=/run/sidus/ro,upperdir=/run/sidus/rw/upper,workdir=/run/sidus/rw/work`,
		`(?m)^10\.77\.0\.1:/\S+ /run/sidus/ro nfs ro,\S*vers=3\S*addr=10\.77\.0\.1`,
		`(?m)^tmpfs /run/sidus/rw tmpfs rw`,
	} {
		if !regexp.MustCompile(want).MatchString(mounts) {
			t.Errorf("/proc/mounts has no %s", want)
		}
	}
	for command, want := range map[string]string{
		"cat /etc/machine-id":  machineID,
		"hostname":             "node7",
		"cat /etc/hostname":    "node7",
		"getent hosts node7":   "127.0.1.1       node7.lab.example node7",
		"cat /etc/resolv.conf": "search lab.example\nnameserver 10.77.0.1",
		"systemctl is-active multi-user.target sidus-lease sidus-agent ssh": "active\nactive\nactive\nactive",
		// The upper layer takes what is written; the lower one keeps its own.
		"echo changed >/etc/issue; cat /rw/upper/etc/issue; cmp -s /ro/etc/issue /etc/issue || echo differs": "changed\ndiffers",
		"touch /ro/x 2>&1 | sed 's/.*: //'":                               "Read-only file system",
		"readlink /ro /rw":                                                "run/sidus/ro\nrun/sidus/rw",
		"ls /etc/ssh/ssh_host_*_key | wc -l":                              "3",
		"cat /sys/class/bdi/$(mountpoint -d /run/sidus/ro)/read_ahead_kb": "512",
		"systemctl is-enabled apt-daily.timer man-db.timer || true":       "masked\nmasked",
		"grep -c -v '^#' /etc/fstab || true":                              "0",
		// The dead card is networkd's, the card of the root is nobody's.
		"cat /sys/class/net/$(sed -n s/^DEVICE=//p /run/sidus/boot.env)/address":                                                                                               "52:54:00:00:01:02",
		"networkctl --no-legend list | awk -v d=$(sed -n s/^DEVICE=//p /run/sidus/boot.env) '$2 == d {print $5} $2 != d && $3 == \"ether\" {print \"the other:\", $5}' | sort": "the other: configuring\nunmanaged",
		"su nobody -s /bin/sh -c 'cat /etc/shadow' 2>&1 | sed 's/.*: //'":                                                                                                      "Permission denied",
	} {
		if got := shell(t, ctx, m, command); got != want {
			t.Errorf("%s:\n%s\ninstead of\n%s", command, got, want)
		}
	}
}

// TestServerComesLate boots a machine without a boot loader while there is
// neither a DHCP nor an NFS server, and without being told its card. The
// server speaks a newer protocol, and its NFS no NFSACL.
func TestServerComesLate(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	s := newSite(t, ctx)
	line := regexp.MustCompile(` BOOTIF=\S+`).ReplaceAllString(commandLine(t, s.tree, "52:54:00:00:01:01"), "")
	line = strings.Replace(line, "sidus.protocol=1", "sidus.protocol=9", 1)
	m, err := s.Boot(lab.MachineOptions{
		NICs:        []lab.NIC{{Bridge: "dead"}, {Bridge: "lan", Model: "e1000"}},
		Kernel:      one(t, s.tree, "boot/vmlinuz-*"),
		Initrd:      one(t, s.tree, "boot/initrd.img-*"),
		CommandLine: line,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{
		"sidus: the server speaks protocol 9, this snapshot only 1: going on",
		"sidus: the command line has no BOOTIF=",
		"sidus: waiting for a DHCP server to answer on any network card",
	} {
		if _, err := m.WaitText(ctx, regexp.QuoteMeta(said)); err != nil {
			t.Fatal(err)
		}
	}
	s.dhcp(t, ctx, "")
	if _, err := m.WaitText(ctx, `sidus: waiting for the NFS server 10\.77\.0\.1 port 12049 to hand out \S+ \(Connection refused\)`); err != nil {
		t.Fatal(err)
	}
	s.nfs(t, ctx, true)
	if _, err := m.WaitText(ctx, `root@node7`); err != nil {
		t.Fatal(err)
	}
	// The overlay asks for ACLs, which this server does not have.
	if got := shell(t, ctx, m, "su nobody -s /bin/sh -c 'cat /etc/shadow' 2>&1 | sed 's/.*: //'"); got != "Permission denied" {
		t.Errorf("reading /etc/shadow as nobody: %s", got)
	}
	// Where the agent is older than the server, it reports all the same.
	if _, err := s.reports.Wait(ctx, func(r lab.Report) bool { return strings.Contains(string(r.Body), `"up"`) }); err != nil {
		t.Error(err)
	}
	if err := m.Quit(); err != nil {
		t.Error(err)
	}
}
