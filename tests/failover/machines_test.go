package failover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
	"sidus/tests/labdisk"
)

// patience is the time that something may take: more where three emulated
// machines run beside each other.
func patience(d time.Duration) time.Duration {
	if kind := os.Getenv("SIDUS_TEST_STORE"); kind != "" && kind != "btrfs" {
		return 4 * d
	}
	return d
}

// machineServer is a server that is a machine of its own, with the units of
// systemd and the files for keepalived that are installed with Sidus.
type machineServer struct {
	*testing.T
	*labdisk.Server
	name, address string
}

// failOverOfMachines is TestFailOver with servers that are machines of their
// own, of which the first loses its power. The second has its snapshots as
// streams of its store's own kind.
func failOverOfMachines(t *testing.T, kind string) {
	store, ok := labdisk.Stores[kind]
	if !ok {
		t.Fatalf("SIDUS_TEST_STORE: there is no kind of store %q: btrfs, zfs and lvm are", kind)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 75*time.Minute, errors.New("the time of the test is over"))
	defer cancel()
	disk, err := labdisk.Ensure(ctx, os.Stderr, logrus.StandardLogger())
	if err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	done := func(what string) { t.Logf("%6.1f s  %s", time.Since(begun).Seconds(), what) }
	root := folder(t)
	site := labtest.New(t, lab.Options{})
	if _, err := site.AddBridge(bridge, netip.MustParsePrefix("10.80.0.1/24")); err != nil {
		t.Fatal(err)
	}

	builder := newServer(t, root, site, "builder", "10.80.0.5", "8G")
	build(t, builder)
	// Each file costs two emulated servers and a client time. The drivers that
	// the client needs are in its initrd.
	builder.must("exec", "client", "--", "/bin/sh", "-ec",
		"cd /usr/share; rm -rf doc locale man i18n zoneinfo perl perl5 python3 bug lintian bash-completion zsh common-licenses; "+
			"cd /usr/lib; rm -rf x86_64-linux-gnu/gconv x86_64-linux-gnu/perl* python3* udev/hwdb.d udev/hwdb.bin modules/*/kernel/drivers; "+
			"rm -rf /var/lib/dpkg/info /var/cache/* /var/lib/apt/lists/*")
	builder.must("snapshot", "client")
	var built struct{ Snapshot struct{ ID string } }
	builder.fetch(&built, "show", "client@latest")
	stream := filepath.Join(root, "client.stream")
	builder.must("export", "client@latest", "--portable", "-o", stream)
	want := checksum(t, builder, built.Snapshot.ID)
	builder.cut()
	done("the tree is built")

	programs := files(t, root)
	second := newMachineServer(ctx, t, disk, site, "second", "10.80.0.3", 100, programs)
	programs["client.stream"] = stream
	first := newMachineServer(ctx, t, disk, site, "first", "10.80.0.2", 150, programs)
	done("the servers have booted")
	for _, s := range []*machineServer{first, second} {
		s.do(ctx, store.Make)
		s.do(ctx, "sidus init "+store.Option+" "+store.At)
	}
	first.do(ctx, "sidus import --stream /lab/client.stream")
	done("the tree is imported")
	first.do(ctx, "sidus promote client@latest; sidus network add site --subnet 10.80.0.0/24 --mode full --range 10.80.0.100-10.80.0.199")
	second.do(ctx, "systemctl start sidus-receive")
	token := second.do(ctx, "sidus receive --token 2>/run/stderr")
	first.do(ctx, "umask 077; echo '"+strings.TrimSpace(token)+"' >/root/token; sidus replicate add second tls://"+second.address+" --token-file /root/token")
	replicateCut(ctx, first, second)
	done("it is replicated")
	compareMachines(ctx, t, kind, built.Snapshot.ID, first, second)
	first.do(ctx, "systemctl start sidus-replicate keepalived")
	first.waitServes(ctx)
	second.do(ctx, "systemctl start keepalived")
	done("the first server serves")

	m := boot(ctx, t, site)
	done("the machine is up")
	m.read(ctx, t, want)
	done("it has read its root once")
	waitFor(ctx, t, "the second server knows of the session", patience(time.Minute), func() bool {
		return strings.Contains(second.do(ctx, "sidus status"), nodeMAC)
	})
	// The address must still be where it was: only the cut may move it.
	if state := second.do(ctx, "systemctl is-active sidus || true"); strings.TrimSpace(state) != "inactive" {
		t.Fatalf("the second server has taken over from a first one that lives: sidus.service is %s", state)
	}
	// In the middle of the next round.
	time.Sleep(5 * time.Second)
	if err := first.Quit(); err != nil {
		t.Fatal(err)
	}
	done("the first server has no power")
	second.waitServes(ctx)
	done("the second server serves")
	m.goesOn(ctx, t, want, 2)
	done("the machine has read on, and once more from the second server alone")
	m.alive(ctx, t)
	second.do(ctx, "sidus channel set default --keep 7; sidus check")
	m.stop(ctx, t)
}

// files are what `make install` puts on a server, and keepalived's
// configuration.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	programs := map[string]string{"sidus-program": labtest.Program(t)}
	for _, name := range []string{"sidus.service", "sidus-replicate.service", "sidus-receive.service", "keepalived.conf", "keepalived-notify"} {
		text, err := os.ReadFile(filepath.Join("../../cmd/sidus", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(root, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "@PREFIX@", "/usr/local")), 0o644); err != nil {
			t.Fatal(err)
		}
		programs[name] = path
	}
	return programs
}

// installed is what an administrator does on a server after docs/replication.md.
const installed = `install /lab/sidus-program /usr/local/sbin/sidus
install -m 644 /lab/*.service /etc/systemd/system/
install -D /lab/keepalived-notify /usr/local/share/sidus/keepalived-notify
# Emulated machines beside others stand still for longer than six seconds.
sed -e 's/@INTERFACE@/eth0/; s|@ADDRESS@|%[1]s/24|; s/@PRIORITY@/%[2]d/; s/advert_int 2/advert_int 8/' /lab/keepalived.conf >/etc/keepalived/keepalived.conf
chmod 644 /etc/keepalived/keepalived.conf
mkdir /etc/systemd/system/sidus.service.d
printf '[Service]\nExecStart=\nExecStart=/usr/local/sbin/sidus serve --listen %[1]s --no-ipxe-script\n' >/etc/systemd/system/sidus.service.d/override.conf
systemctl daemon-reload`

func newMachineServer(ctx context.Context, t *testing.T, disk *labdisk.Disk, site *lab.Lab, name, address string, priority int, programs map[string]string) *machineServer {
	t.Helper()
	machine, err := disk.StartServer(ctx, site, labdisk.ServerOptions{
		Name: name, Bridge: bridge, Address: netip.MustParsePrefix(address + "/24"), Programs: programs, Memory: 1536,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &machineServer{t, machine, name, address}
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		out, err := s.Do(ctx, "journalctl -n 150 --no-pager -o cat; sidus status; zfs list -t all || true")
		t.Logf("the end of what %s said: %v\n%s", name, err, out)
	})
	s.do(ctx, fmt.Sprintf(installed, shared, priority))
	return s
}

// do runs a command line on the server.
func (s *machineServer) do(ctx context.Context, line string) string {
	s.Helper()
	ctx, cancel := context.WithTimeoutCause(ctx, patience(10*time.Minute), fmt.Errorf("%s takes too long: %s", s.name, line))
	defer cancel()
	out, err := s.Do(ctx, line)
	if err != nil {
		s.Fatalf("%s: %v", s.name, err)
	}
	return out
}

// waitServes waits until the server answers DHCP.
func (s *machineServer) waitServes(ctx context.Context) {
	s.Helper()
	waitFor(ctx, s.T, s.name+" serves", patience(2*time.Minute), func() bool {
		time.Sleep(time.Second)
		// A busy machine may not let anybody in for a while.
		out, _ := s.Do(ctx, "journalctl -u sidus --no-pager -o cat")
		return strings.Contains(out, "dhcp: answering")
	})
}

// replicateCut replicates, is killed on the way, and replicates again: what has
// arrived is not sent once more.
func replicateCut(ctx context.Context, from, to *machineServer) {
	from.Helper()
	from.do(ctx, "sidus replicate >/run/replicate 2>&1 </dev/null & echo $! >/run/replicate.pid")
	const parts = 20 << 20 // more than two, see docs/replication.md
	waitFor(ctx, from.T, "a part of the stream arrives", patience(2*time.Minute), func() bool {
		out := to.do(ctx, "cat /var/lib/sidus/cache/incoming/*.stream 2>/dev/null | wc -c")
		arrived, err := strconv.Atoi(strings.TrimSpace(out))
		return err == nil && arrived > parts
	})
	from.do(ctx, "kill -KILL $(cat /run/replicate.pid)")
	// The receiver may not have given up the first one yet.
	from.do(ctx, "for n in 1 2 3 4 5 6; do sidus replicate && exit; sleep 5; done; exit 1")
	said := to.do(ctx, "journalctl -u sidus-receive --no-pager -o cat")
	if !regexp.MustCompile(`goes on at part ([2-9]|\d{2,}),`).MatchString(said) {
		to.Errorf("the stream that was cut was sent again from its beginning:\n%s", said)
	}
}

// compareMachines checks that the test proves something: both servers hold the
// snapshot, which came to the second as the store's own kind of stream, and
// have the site's key.
func compareMachines(ctx context.Context, t *testing.T, kind, snapshot string, a, b *machineServer) {
	t.Helper()
	var keys [2]string
	for i, s := range []*machineServer{a, b} {
		keys[i] = s.do(ctx, "sha256sum </var/lib/sidus/secrets/site.key")
		var shown struct{ Snapshot struct{ ID string } }
		out := s.do(ctx, "sidus show client@latest --json")
		if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.Snapshot.ID != snapshot {
			t.Errorf("%s holds %s: %v", s.name, out, err)
		}
	}
	if keys[0] != keys[1] {
		t.Error("the site's key was not replicated")
	}
	if kind != "zfs" {
		return
	}
	var guids [2]string
	for i, s := range []*machineServer{a, b} {
		out := s.do(ctx, "zfs get -H -r -t snapshot -o name,value guid tank/sidus")
		if found := regexp.MustCompile(`@` + snapshot + `\s+(\d+)`).FindStringSubmatch(out); found != nil {
			guids[i] = found[1]
		}
	}
	if guids[0] == "" || guids[0] != guids[1] {
		t.Errorf("the snapshot did not come by zfs send: its GUIDs are %q", guids)
	}
}
