package liveupdate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/boot/protocol"
	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// fake is a node that boots and takes orders by the protocol alone.
type fake struct {
	protocol.Client
	mac string
}

// bootFake asks for the boot configuration of a machine and reports that it
// is up.
func bootFake(ctx context.Context, client *http.Client, base, mac string) (*fake, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/v1/ipxe/"+strings.ReplaceAll(mac, ":", "-"), nil)
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	script, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	found := regexp.MustCompile(`sidus\.session=([0-9a-f]{32})`).FindSubmatch(script)
	if found == nil {
		return nil, fmt.Errorf("no session in %s", script)
	}
	f := &fake{protocol.Client{Base: base, Session: protocol.SessionID(found[1]), HTTP: client, Timeout: time.Minute}, mac}
	_, err = f.Report(ctx, protocol.Report{Event: protocol.EventUp})
	return f, err
}

// obey takes orders until ctx ends.
func (f *fake) obey(ctx context.Context, reason string) error {
	var after int64
	for ctx.Err() == nil {
		orders, err := f.Orders(ctx, after)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		for _, order := range orders {
			event := protocol.EventUpdated
			if reason != "" {
				event = protocol.EventUpdateFailed
			}
			outcome := protocol.Outcome{Order: order.Number, Snapshot: order.Snapshot, Reason: reason}
			if _, err := f.Report(ctx, protocol.Report{Event: event, Outcome: &outcome}); err != nil {
				return err
			}
			after = order.Number
		}
	}
	return nil
}

// TestManyNodes gives orders to a hundred nodes, and to some that fail, are
// off, or have agents that do not ask.
func TestManyNodes(t *testing.T) {
	const nodes = 100
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: it mounts file systems and makes a network namespace: it needs root")
	}
	s := newSite(t)
	for _, name := range []string{"one", "two"} {
		dir := t.TempDir()
		for path, text := range map[string]string{"boot/vmlinuz-6": "kernel", "boot/initrd.img-6": "initrd", "etc/motd": name, "usr/bin/tool": name} {
			path = filepath.Join(dir, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		s.must("import", name, "--dir", dir)
	}
	s.must("promote", "one@latest")
	s.must("network", "add", "lab", "--subnet", "10.77.0.0/24", "--mode", "off")

	l := labtest.New(t, lab.Options{})
	if _, err := l.AddBridge("lan", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
	server, err := l.Start(s.program, "serve", "--state", s.state, "--interface", "lan", "--only", "http")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	if _, _, err := server.Output.WaitFor(ctx, 0, regexp.MustCompile("serving lab on")); err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.DialContext(ctx, network, address)
	}}}
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel()
	defer client.CloseIdleConnections()
	boot := func(mac string, ask bool, reason string) {
		t.Helper()
		f, err := bootFake(ctx, client, "http://10.77.0.1:8080", mac)
		if err != nil {
			t.Fatal(err)
		}
		if !ask {
			return
		}
		group.Go(func() {
			if err := f.obey(ctx, reason); err != nil {
				t.Error(err)
			}
		})
	}
	for i := range nodes {
		boot(fmt.Sprintf("52:54:00:00:02:%02x", i), true, "")
	}
	const deaf, failing, off = "52:54:00:00:03:01", "52:54:00:00:03:02", "52:54:00:00:03:03"
	boot(deaf, false, "")
	boot(failing, true, "there is no room")
	for mac, name := range map[string]string{deaf: "deaf", failing: "failing", off: "off"} {
		s.must("node", "add", mac, "--name", name, "--group", "odd")
	}

	if u, status := s.update(t, "--all"); status != 1 || len(u.Nodes) != nodes+3 {
		t.Errorf("without anything to take: exit status %d, %d nodes", status, len(u.Nodes))
	}
	s.must("promote", "two@latest")
	begun := time.Now()
	u, status := s.update(t, "--channel", "default", "--timeout", "1m")
	t.Logf("%d nodes were updated in %.1f s", nodes, time.Since(begun).Seconds())
	if status != 1 || len(u.NextBoot) != 1 || len(u.NextBoot[0].Etc) != 1 || u.NextBoot[0].Etc[0].Path != "/etc/motd" {
		t.Errorf("exit status %d; at the next boot: %+v", status, u.NextBoot)
	}
	count := map[string]int{}
	for _, n := range u.Nodes {
		count[fmt.Sprintf("%s %v %s", n.Answer, n.Failed, n.Node.Name)]++
	}
	want := map[string]int{"ordered false ": nodes, "ordered true failing": 1, "old true deaf": 1, "off false off": 1}
	if !maps.Equal(count, want) {
		t.Errorf("answers %v instead of %v", count, want)
	}
	if got := strings.Count(s.must("status"), " one@1+two@1 "); got != nodes {
		t.Errorf("status shows %d nodes with the update", got)
	}
	s.refused(1, "failing: failed: there is no room", "node", "update", "failing")
	s.refused(1, "off: it does not run", "node", "update", "off")
	s.refused(2, "one of them", "node", "update")
	s.refused(2, "one of them", "node", "update", "off", "--all")
	s.refused(3, "no node is of that group", "node", "update", "--group", "none")
	// An agent that is away takes the order when it comes back.
	cancel()
	group.Wait()
	s.must("promote", "one@latest")
	s.refused(1, "has not asked for orders yet", "node", "update", "52:54:00:00:02:05", "--timeout", "1s")
	s.refused(4, "runs two@1 since a live update", "delete", "two@1", "--yes")
	if list := s.must("node", "list", "--group", "odd"); strings.Count(list, "\n") != 4 {
		t.Errorf("the group's nodes:\n%s", list)
	}
}

// update runs `node update --json`.
func (s *site) update(t *testing.T, args ...string) (updated, int) {
	t.Helper()
	r := s.run(nil, append([]string{"node", "update", "--json"}, args...)...)
	var u updated
	if err := json.Unmarshal([]byte(r.stdout), &u); err != nil {
		t.Fatalf("%v: %s%s", err, r.stdout, r.stderr)
	}
	return u, r.status
}

// updated is what `node update --json` prints.
type updated struct {
	Nodes []struct {
		Node    struct{ Name, MAC string }
		Answer  string
		Failed  bool
		Seconds float64
	}
	NextBoot []struct {
		Etc []struct{ Path string }
	} `json:"next_boot"`
}
