package failover

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// TestServeThatCannotStart: the server that gets the address lives and has all
// that it needs, but another program has the port of NFS. The address goes on
// to the other server, and comes back to nobody who cannot serve.
func TestServeThatCannotStart(t *testing.T) {
	needs(t)
	if kind := os.Getenv("SIDUS_TEST_STORE"); kind != "" && kind != "btrfs" {
		t.Skip("SKIPPED: it is about keepalived, not about stores")
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 10*time.Minute, errors.New("the time of the test is over"))
	defer cancel()
	root := folder(t)
	site := labtest.New(t, lab.Options{})
	if _, err := site.AddBridge(bridge, netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	first := newServer(t, root, site, "first", "10.80.0.2", "2G")
	second := newServer(t, root, site, "second", "10.80.0.3", "2G")
	tree := filepath.Join(root, "tree")
	for name, text := range map[string]string{"etc/hostname": "node\n", "boot/vmlinuz-6.1.0": "kernel", "boot/initrd.img-6.1.0": "initrd"} {
		path := filepath.Join(tree, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	first.must("import", "client", "--dir", tree)
	first.must("promote", "client@latest")
	first.must("network", "add", "site", "--subnet", "10.80.0.0/24", "--mode", "full", "--range", "10.80.0.100-10.80.0.199")
	replicateByTLS(ctx, t, first, second)

	// Not the address that moves: that is nobody's yet.
	taken, err := first.net.Listen("tcp", ":2049")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	guards := []*lab.Process{first.keepalived(150)}
	t.Cleanup(func() {
		if t.Failed() {
			for i, p := range guards {
				t.Logf("the end of what keepalived %d said:\n%s", i+1, tail(p.Output.String(), 40))
			}
			for _, s := range []*server{first, second} {
				t.Logf("the end of what %s said:\n%s", s.name, tail(s.log(), 40))
			}
		}
	})
	if _, _, err := guards[0].Output.WaitFor(ctx, 0, regexp.MustCompile(`Entering MASTER STATE`)); err != nil {
		t.Fatal(err)
	}
	guards = append(guards, second.keepalived(100))
	waitFor(ctx, t, "the first server has tried to serve", time.Minute, func() bool { return strings.Contains(first.log(), "2049") })
	if first.serves() {
		t.Fatal("the first server serves although its port is taken: this test proves nothing")
	}
	waitFor(ctx, t, "the second server serves", 4*time.Minute, second.serves)
	has := func(s *server) bool {
		said, err := s.shell(ctx, "ip -o address show dev eth0")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(said, shared)
	}
	if has(first) || !has(second) {
		t.Errorf("the first server has the address: %v, the second: %v", has(first), has(second))
	}
	waitFor(ctx, t, "the first server tries no more", time.Minute, func() bool { return !exists(filepath.Join(first.prefix, "pid")) })
}
