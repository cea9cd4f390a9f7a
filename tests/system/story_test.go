package system

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"sidus/image/store/storetest"
	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// alpha boots by its second card and runs for more than two leases.
func (w *world) alpha(ctx context.Context, t *testing.T) {
	traffic, err := w.lab.Capture(w.host.cable("alpha"))
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	m := w.boot(t, "alpha", lab.NIC{Bridge: "dead", NoPXE: true}, lab.NIC{Bridge: "alpha"})
	m.waitUp(ctx, t, 0, 0)
	times.note("alpha boots (PXELINUX, HTTP; two machines at once)", time.Since(begun))
	times.text("what went over the wire for alpha's boot", traffic.String())
	counts := traffic.Counts()
	for _, p := range []lab.Protocol{lab.DHCP, lab.TFTP, lab.HTTP, lab.NFS} {
		if n := counts[p]; n.Bytes == 0 || n.RoundTrips == 0 {
			t.Errorf("a boot without %s: %+v", p, n)
		}
	}
	if lost := traffic.Lost(); lost > 0 {
		t.Logf("%d packets were not counted", lost)
	}
	// See boot/http/syslinux.go.
	if ahead := counts[lab.HTTP].Ahead; ahead > 3*1460 {
		t.Errorf("PXELINUX was sent %d bytes before it had answered: its card has room for 8 packets, those that are sent again included", ahead)
	}

	t.Run("the steps of the boot", func(t *testing.T) {
		log, at := w.server.log(), 0
		for _, name := range []string{"dhcp", "config", "kernel", "initrd", "root", "up"} {
			found := regexp.MustCompile(step(name, m.mac)+".*").FindAllStringIndex(log, -1)
			if len(found) == 0 || name != "dhcp" && len(found) > 1 {
				t.Errorf("the server's log has %d lines of the step %s", len(found), name)
				continue
			}
			line := log[found[0][0]:found[0][1]]
			if found[0][0] < at {
				t.Errorf("this line comes too early: %s", line)
			}
			if name != "dhcp" && !strings.Contains(line, "snapshot="+w.v1.ref+" ") && !strings.Contains(line, `snapshot="`+w.v1.ref+`"`) {
				t.Errorf("this line does not name %s: %s", w.v1.ref, line)
			}
			at = found[0][1]
		}
	})
	t.Run("what came up", func(t *testing.T) {
		m.checkRuns(ctx, t, w.v1, channel)
		w.alpha1 = m.identity(ctx, t)
		// Nobody has added it, so it has no name of its own.
		name := "sidus-" + strings.ReplaceAll(m.mac, ":", "")[6:]
		m.expect(ctx, t, name, "hostname")
		m.expect(ctx, t, name, "cat /etc/hostname")
		m.expect(ctx, t, "search lab.example\nnameserver 10.77.0.1", "cat /etc/resolv.conf")
		m.expect(ctx, t, "active\nactive\nactive\nactive", "systemctl is-active multi-user.target sidus-lease sidus-agent ssh")
		// The upper layer takes what is written, the lower one keeps its own.
		m.expect(ctx, t, "run/sidus/ro\nrun/sidus/rw", "readlink /ro /rw")
		m.expect(ctx, t, "changed\ndiffers", "echo changed >/etc/issue; cat /rw/upper/etc/issue; cmp -s /ro/etc/issue /etc/issue || echo differs")
		m.expect(ctx, t, "Read-only file system", "touch /ro/x 2>&1 | sed 's/.*: //'")
		// Permissions are the tree's.
		m.expect(ctx, t, "Permission denied", "su nobody -s /bin/sh -c 'cat /etc/shadow' 2>&1 | sed 's/.*: //'")
		m.expect(ctx, t, "private", "setpriv --reuid 12345 --regid 54321 --clear-groups cat /srv/odd/private")
		m.expect(ctx, t, "Permission denied", "setpriv --reuid 12346 --regid 54321 --clear-groups cat /srv/odd/private 2>&1 | sed 's/.*: //'")
		// The card on the dead network was left alone.
		m.expect(ctx, t, m.mac, "cat /sys/class/net/$(sed -n s/^DEVICE=//p /run/sidus/boot.env)/address")
		m.expect(ctx, t, "1", "ip -4 -o address show scope global | wc -l")
	})
	address := m.shell(ctx, t, ipAddress)
	w.alphaUp.happened()

	m.shell(ctx, t, "systemd-run --quiet --unit=read-on --nice=10 /usr/lib/sidus-test/read-on")
	m.shell(ctx, t, "until [ -s /run/read-on.rounds ]; do sleep 1; done")
	w.reads.happened()

	t.Run("a promotion under a running machine", func(t *testing.T) {
		begun := time.Now()
		w.site.must(ctx, t, "promote", w.v2.ref, "--message", "under a running machine")
		times.note("a promotion", time.Since(begun))
		st := w.site.status(ctx, t, m.mac)
		if st.Reboot.Change != "other" || st.Reboot.Snapshot.ID != w.v2.id {
			t.Errorf("status does not say that a reboot would boot %s: %+v", w.v2.ref, st.Reboot)
		}
		m.checkRuns(ctx, t, w.v1, channel)
	})

	t.Run("every file", func(t *testing.T) { w.everyFile(ctx, t, m, w.v1) })

	t.Run("reads while the server is killed", func(t *testing.T) {
		w.restarted.wait(ctx, t)
		// A whole round with the new server.
		m.shell(ctx, t, "n=$(wc -l </run/read-on.rounds); until [ $(wc -l </run/read-on.rounds) -gt $((n+1)) ]; do sleep 1; done; touch /run/read-on.stop; while systemctl --quiet is-active read-on; do sleep 1; done")
		rounds := m.shell(ctx, t, "wc -l </run/read-on.rounds")
		m.expect(ctx, t, "", "cat /run/read-on.failed 2>/dev/null || true")
		m.expect(ctx, t, "0", "dmesg | grep -ci 'stale\\|error -116' || true")
		t.Logf("%s rounds of reading with empty caches", rounds)
		if n, err := strconv.Atoi(rounds); err != nil || n < 3 {
			t.Errorf("only %s rounds of reading", rounds)
		}
	})

	t.Run("an address for longer than two leases", func(t *testing.T) {
		// There is nothing to wait for: the time is the test.
		m.shell(ctx, t, fmt.Sprintf("until [ $(cut -d. -f1 /proc/uptime) -ge %d ]; do sleep 1; done", int(2.5*w.lease().Seconds())))
		log := w.server.log()
		up := regexp.MustCompile(step("up", m.mac)).FindStringIndex(log)
		lines := regexp.MustCompile(`(?m)^.*dhcp: `+m.mac+` (has|may not have) .*$`).FindAllStringIndex(log, -1)
		renewals := 0
		for _, at := range lines {
			line := log[at[0]:at[1]]
			t.Log(line)
			if !strings.Contains(line, " has "+strings.TrimSuffix(address, "/24")+" until ") {
				t.Errorf("the address was %s, and now %s", address, line)
			}
			if at[0] > up[1] {
				renewals++
			}
		}
		// One at half of each; the server was away for some time.
		if renewals < 2 {
			t.Errorf("the lease was renewed only %d times in two and a half", renewals)
		}
		m.expect(ctx, t, address, ipAddress)
		m.expect(ctx, t, "", "systemctl --failed --no-legend --plain")
	})

	t.Run("the power button", func(t *testing.T) { m.powerOff(ctx, t, "the power button", m.PowerDown) })
}

// everyFile compares all that a machine sees of its root with what the store
// holds.
func (w *world) everyFile(ctx context.Context, t *testing.T, m *machine, s snapshot) {
	begun := time.Now()
	observer := w.host.observer()
	listener, err := w.lab.Listen("tcp", netip.AddrPortFrom(observer, 8082).String())
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		var a answer
		defer func() { answers <- a }()
		conn, err := listener.Accept()
		if err != nil {
			a.err = err
			return
		}
		defer conn.Close()
		plain, err := zstd.NewReader(conn)
		if err != nil {
			a.err = err
			return
		}
		defer plain.Close()
		a.text, a.err = io.ReadAll(plain)
	}()
	m.shell(ctx, t, "set -o pipefail; /usr/lib/sidus-test/walk /run/sidus/ro >/run/walk && zstd -q --rm /run/walk -o /run/walk.zst && cat /run/walk.zst >/dev/tcp/"+observer.String()+"/8082")
	var a answer
	select {
	case a = <-answers:
	case <-ctx.Done():
		t.Fatal(context.Cause(ctx))
	}
	if a.err != nil {
		t.Fatal(a.err)
	}
	times.note("alpha: walk all files of the root and reckon their digests", time.Since(begun))
	got, err := parseWalk(a.text)
	if err != nil {
		t.Fatal(err)
	}
	want := w.walkStore(ctx, t, s)
	t.Logf("%d files compared", len(got))
	if len(got) < 5000 || got["srv/odd/set-uid"] == nil {
		t.Errorf("the root has only %d files", len(got))
	}
	checkFolderLinks(t, got)
	if diff := storetest.Diff(describe(want), describe(got)); diff != "" {
		t.Errorf("the machine sees other files (+) than the store holds (-):\n%s", tail(diff, 60))
	}
}

// beta follows a channel of its own, and boots twice.
func (w *world) beta(ctx context.Context, t *testing.T) {
	var m *machine
	var first identity
	t.Run("a node on another channel", func(t *testing.T) {
		w.site.must(ctx, t, "node", "add", "52:54:00:00:be:7a", "--name", "beta", "--channel", "beta")
	})
	begun := time.Now()
	m = w.boot(t, "beta", lab.NIC{Bridge: "beta", MAC: []byte{0x52, 0x54, 0, 0, 0xbe, 0x7a}})
	m.waitUp(ctx, t, 0, 0)
	times.note("beta boots (PXELINUX, HTTP; two machines at once)", time.Since(begun))

	t.Run("what came up", func(t *testing.T) {
		m.checkRuns(ctx, t, w.v3, "beta")
		m.expect(ctx, t, "beta", "hostname")
		m.expect(ctx, t, "127.0.1.1       beta", "getent hosts beta")
		first = m.identity(ctx, t)
	})

	t.Run("delete is refused", func(t *testing.T) {
		// The channel points to it, too: the node counts by itself.
		w.site.must(ctx, t, "channel", "rollback", "beta")
		w.site.must(ctx, t, "channel", "set", "beta", "--keep", "0")
		said := w.site.refused(ctx, t, 4, "delete", w.v3.ref, "--yes")
		if !strings.Contains(said, "node beta runs "+w.v3.ref) || strings.Contains(said, "channel") {
			t.Errorf("the refusal does not name the node alone: %s", said)
		}
		w.site.must(ctx, t, "channel", "set", "beta", "--keep", "1")
		st := w.site.status(ctx, t, m.mac)
		if st.Reboot.Change != "other" || st.Reboot.Snapshot.ID != w.v1.id || !strings.Contains(st.Reboot.Text, "rolled back") {
			t.Errorf("status after a rollback of the channel: %+v", st.Reboot)
		}
		m.checkRuns(ctx, t, w.v3, "beta")
	})

	w.alphaUp.wait(ctx, t)
	t.Run("two nodes on two channels", func(t *testing.T) {
		var all []status
		w.site.fetch(ctx, t, &all, "status")
		runs := map[string]string{}
		for _, st := range all {
			if st.Session != nil {
				runs[st.Session.Channel] = st.Session.Snapshot.ID
			}
		}
		if len(runs) != 2 || runs[channel] != w.v1.id || runs["beta"] != w.v3.id {
			t.Errorf("the channels' nodes run %v", runs)
		}
	})
	w.reads.wait(ctx, t)

	logged, said := len(w.server.log()), 0
	t.Run("reboot", func(t *testing.T) {
		said = m.reboot(ctx, t)
		begun = time.Now()
	})
	t.Run("a promotion in the middle of a boot", func(t *testing.T) {
		if _, _, err := w.server.wait(ctx, logged, step("config", m.mac)); err != nil {
			t.Fatal(err)
		}
		if err := m.Pause(); err != nil {
			t.Fatal(err)
		}
		w.site.must(ctx, t, "promote", w.v2.ref, "--channel", "beta", "--message", "in the middle of a boot")
		if strings.Contains(m.Console.String()[said:], "Linux version") {
			t.Error("the promotion came too late: the kernel runs")
		}
		if err := m.Resume(); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"kernel", "initrd"} {
			line, _, err := w.server.wait(ctx, logged, step(name, m.mac))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(line, "snapshot="+w.v1.ref+" ") && !strings.Contains(line, `snapshot="`+w.v1.ref+`" `) {
				t.Errorf("it is not of %s: %s", w.v1.ref, line)
			}
		}
	})
	t.Run("the server is killed under a booting machine", func(t *testing.T) {
		if _, _, err := m.Console.WaitFor(ctx, said, regexp.MustCompile(`Linux version`)); err != nil {
			t.Fatal(err)
		}
		w.server.kill(t)
		if _, _, err := m.Console.WaitFor(ctx, said, regexp.MustCompile(`sidus: waiting for a DHCP server to answer on`)); err != nil {
			t.Fatal(err)
		}
		if err := w.server.start(ctx); err != nil {
			t.Fatal(err)
		}
		traffic, err := w.lab.Capture(w.host.cable("beta"))
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := w.server.wait(ctx, logged, step("root", m.mac)); err != nil {
			t.Fatal(err)
		}
		// It reads its first programs.
		if err := traffic.Wait(ctx, func(n map[lab.Protocol]lab.Count) bool { return n[lab.NFS].Bytes > 4<<20 }); err != nil {
			t.Fatal(err)
		}
		w.server.kill(t)
		select { // there is nothing to wait for: the time is the test
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			t.Fatal(context.Cause(ctx))
		}
		if err := w.server.start(ctx); err != nil {
			t.Fatal(err)
		}
	})
	m.waitUp(ctx, t, logged, said)
	times.note("beta boots again, while the server is killed twice", time.Since(begun))
	w.restarted.happened()

	t.Run("the old snapshot, and nothing of the new one", func(t *testing.T) {
		m.checkRuns(ctx, t, w.v1, "beta")
		m.expect(ctx, t, "0", "dmesg | grep -ci 'stale\\|error -116' || true")
		m.shell(ctx, t, "echo 3 >/proc/sys/vm/drop_caches; sha256sum --quiet --check /usr/lib/sidus-test/sums")
		second := m.identity(ctx, t)
		if second.machineID != first.machineID {
			t.Errorf("the machine-id was %s and is %s", first.machineID, second.machineID)
		}
		if st := w.site.status(ctx, t, m.mac); st.Reboot.Change != "other" || st.Reboot.Snapshot.ID != w.v2.id {
			t.Errorf("status does not say that a reboot would boot %s: %+v", w.v2.ref, st.Reboot)
		}
	})
	t.Run("two nodes have two identities", func(t *testing.T) {
		if first.machineID == w.alpha1.machineID || first.hostKeys == w.alpha1.hostKeys {
			t.Errorf("alpha and beta: %v and %v", w.alpha1, first)
		}
	})
	t.Run("the boots are on record", func(t *testing.T) {
		var shown struct {
			Sessions []struct{ Snapshot struct{ ID string } }
		}
		w.site.fetch(ctx, t, &shown, "node", "show", "beta")
		var ids []string
		for _, s := range shown.Sessions {
			ids = append(ids, s.Snapshot.ID)
		}
		if !slices.Equal(ids, []string{w.v1.id, w.v3.id}) {
			t.Errorf("beta has booted %v", ids)
		}
	})
	t.Run("delete is done", func(t *testing.T) {
		url := fmt.Sprintf("http://10.78.0.1:8080/v1/boot/%s/kernel", w.v3.id)
		if code := w.head(ctx, t, url); code != http.StatusOK {
			t.Errorf("HEAD %s: %d", url, code)
		}
		// Somebody reads it by NFS.
		export := "nfs://10.78.0.1/snapshot/" + w.v3.id + "/usr/lib/sidus-test"
		if out, err := w.lab.Run(ctx, "nfs-ls", export); err != nil || !strings.Contains(out, "version") {
			t.Errorf("nfs-ls: %v: %s", err, out)
		}
		from := len(w.server.log())
		w.site.must(ctx, t, "delete", w.v3.ref, "--yes")
		if _, _, err := w.server.wait(ctx, from, w.v3.ref+" is deleted: it is served no more"); err != nil {
			t.Fatal(err)
		}
		w.site.refused(ctx, t, 3, "show", w.v3.ref)
		if out, err := w.lab.Run(ctx, "nfs-ls", export); err == nil {
			t.Errorf("a deleted snapshot can be mounted: %s", out)
		}
		if code := w.head(ctx, t, url); code != http.StatusNotFound {
			t.Errorf("HEAD of a deleted kernel: %d", code)
		}
	})
	t.Run("power off", func(t *testing.T) {
		m.powerOff(ctx, t, "`systemctl poweroff`", func() error { return m.Type("systemctl poweroff\n") })
	})
}

// head asks the HTTP server for the head of a file.
func (w *world) head(ctx context.Context, t *testing.T, url string) int {
	t.Helper()
	transport := &http.Transport{DialContext: w.lab.DialContext, DisableKeepAlives: true}
	request, err := http.NewRequestWithContext(ctx, http.MethodHead, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	return response.StatusCode
}

// gamma is in a network where another server gives the addresses.
func (w *world) gamma(ctx context.Context, t *testing.T) {
	w.foreignDHCP(ctx, t)
	traffic, err := w.lab.Capture(w.host.cable("gamma"))
	if err != nil {
		t.Fatal(err)
	}
	logged := len(w.server.log())
	m := w.boot(t, "gamma", lab.NIC{Bridge: "gamma"})
	t.Run("nothing to boot", func(t *testing.T) {
		line, _, err := w.server.wait(ctx, logged, `nothing to boot: .*mac="`+m.mac+`"`)
		if err != nil {
			line, _, err = w.server.wait(ctx, logged, `nothing to boot`)
			t.Fatal(err, line)
		}
		t.Log(line)
		var nodes []node
		w.site.fetch(ctx, t, &nodes, "node", "list")
		at := slices.IndexFunc(nodes, func(n node) bool { return n.MAC == m.mac })
		if at < 0 || nodes[at].Registered || nodes[at].Network != "gamma" {
			t.Errorf("`node list` does not list the unknown machine %s: %+v", m.mac, nodes)
		}
		if st := w.site.status(ctx, t, m.mac); st.Session != nil || st.Reboot.Change != "nothing" {
			t.Errorf("status of a machine that boots nothing: %+v", st)
		}
	})
	w.site.must(ctx, t, "network", "set", "gamma", "--channel", "beta")
	begun, logged, said := time.Now(), len(w.server.log()), m.Console.Len()
	if err := m.Reset(); err != nil {
		t.Fatal(err)
	}
	m.waitUp(ctx, t, logged, said)
	times.note("gamma boots (iPXE script, HTTP; another server gives the address)", time.Since(begun))
	times.text("what went over the wire for gamma's boots", traffic.String())
	t.Run("the new snapshot", func(t *testing.T) {
		m.checkRuns(ctx, t, w.v2, "beta")
		address, err := netip.ParsePrefix(m.shell(ctx, t, ipAddress))
		if err != nil || !foreignFirst.Less(address.Addr()) && address.Addr() != foreignFirst || foreignLast.Less(address.Addr()) {
			t.Errorf("its address %s is not of the other server's", address)
		}
	})
}

// The addresses that the other DHCP server gives.
var (
	foreignFirst = netip.MustParseAddr("10.79.0.50")
	foreignLast  = netip.MustParseAddr("10.79.0.60")
)

// foreignDHCP puts a DHCP server into the network gamma: another computer, so
// it is in a lab of its own.
func (w *world) foreignDHCP(ctx context.Context, t *testing.T) {
	t.Helper()
	other := labtest.New(t, lab.Options{})
	if _, err := other.AddBridge("wire", netip.MustParsePrefix("10.79.0.2/24")); err != nil {
		t.Fatal(err)
	}
	for _, step := range []struct {
		in      *lab.Lab
		command string
	}{
		{w.lab, "ip link add other type veth peer name uplink netns " + other.Name()},
		{w.lab, "ip link set other master gamma up"},
		{other, "ip link set uplink master wire up"},
	} {
		words := strings.Fields(step.command)
		if _, err := step.in.Run(ctx, words[0], words[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := other.Dnsmasq(ctx, lab.DnsmasqOptions{Bridge: "wire", First: foreignFirst, Last: foreignLast}); err != nil {
		t.Fatal(err)
	}
}
