package nfs

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"strings"
	"sync"
	"testing"
	"time"

	"sidus/image/store"
)

const (
	deletedID = store.SnapshotID("dddddddddddddddddddddddddddddddd")
	awayID    = store.SnapshotID("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	unknownID = store.SnapshotID("eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee")
)

// handleOf makes a handle under the key of the tests.
func handleOf(id store.SnapshotID, key []byte) []byte {
	h := make([]byte, handleSize)
	raw := id.Bytes()
	newHandleKey(key).put(h, &raw, 1)
	return h
}

func TestHandleErrors(t *testing.T) {
	s := serveTree(t, t.TempDir())
	s.source.set(deletedID, "", fmt.Errorf("gone: %w", ErrDeleted))
	s.source.set(awayID, "", fmt.Errorf("no key: %w", store.ErrUnavailable))
	c := dial(t, s)
	top := c.root("/channel/default")
	other := append([]byte{}, testKey...)
	other[0] ^= 1
	badID := append([]byte{}, top...)
	for _, test := range []struct {
		name   string
		handle []byte
		status uint32
	}{
		{"deleted", handleOf(deletedID, testKey), 70},
		{"away", handleOf(awayID, testKey), 10008},
		{"not here yet", handleOf(unknownID, testKey), 10008},
		{"another site's", handleOf(testID, other), 10001},
		{"cut", top[:28], 10001},
		{"empty", nil, 10001},
		{"longer", append(append([]byte{}, top...), 0, 0, 0, 0), 10001},
		{"zeros", make([]byte, 32), 10001},
		{"another file, same tag", func() []byte { badID[7] = 9; return badID }(), 10001},
	} {
		for _, proc := range []int{procGetattr, procFsinfo, procReadlink} {
			r := c.call(proc, test.handle)
			if got := r.u32(); got != test.status {
				t.Errorf("%s, %s: status %d, want %d", procNames[proc], test.name, got, test.status)
			}
			if proc != procGetattr && r.u32() != 0 {
				t.Errorf("%s, %s: there are attributes", procNames[proc], test.name)
			}
			r.end()
		}
	}
	// What could not be read a while ago can be read now.
	s.source.set(awayID, t.TempDir(), nil)
	for deadline := time.Now().Add(5 * time.Second); ; {
		if c.call(procGetattr, handleOf(awayID, testKey)).u32() == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("still not readable")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func TestMount(t *testing.T) {
	root := makeTree(t)
	var mu sync.Mutex
	var mounted []string
	s := serveTree(t, root, func(s *Server) {
		s.OnMount = func(client netip.AddrPort, id store.SnapshotID) {
			mu.Lock()
			defer mu.Unlock()
			mounted = append(mounted, client.Addr().String()+" "+string(id))
		}
	})
	s.source.set(deletedID, "", ErrDeleted)
	s.source.set(awayID, "", store.ErrUnavailable)
	c := dial(t, s)
	top := c.root("/snapshot/" + string(testID))
	if string(c.root("/channel/default")) != string(top) || string(c.root("//channel/default/")) != string(top) {
		t.Error("the channel's root is another")
	}
	if string(c.root("/channel/default/usr/bin")) != string(c.lookup(top, "usr", "bin")) {
		t.Error("a folder of the snapshot")
	}
	c.prog = 100005
	for path, want := range map[string]uint32{
		"/channel/none": 2, "/": 2, "": 2, "/snapshot": 2, "/snapshot/xyz": 2, "/etc": 2, "channel/default": 2,
		"/snapshot/" + string(unknownID): 2, "/snapshot/" + string(deletedID): 2, "/snapshot/" + string(awayID): 10006,
		"/channel/default/missing": 2, "/channel/default/three": 20, "/channel/default/link/x": 20,
		"/channel/default/" + strings.Repeat("n", 300): 63, "/channel/default/..": 0,
	} {
		if got := c.call(1, []byte(path)).u32(); got != want {
			t.Errorf("MNT %q: status %d, want %d", path, got, want)
		}
	}
	r := c.call(1, []byte("/channel/default"))
	if r.u32() != 0 || len(r.opaque()) != handleSize || r.u32() != 1 || r.u32() != 1 {
		t.Error("MNT")
	}
	r.end()
	list := func() (all []string) {
		for r := c.call(2); r.u32() == 1; {
			all = append(all, string(r.opaque())+" "+string(r.opaque()))
		}
		return all
	}
	if got := list(); len(got) < 3 || got[0] != "127.0.0.1 /snapshot/"+string(testID) {
		t.Errorf("DUMP: %q", got)
	}
	c.call(3, []byte("/snapshot/"+string(testID))).end()
	if got := list(); strings.Contains(strings.Join(got, "\n"), string(testID)) {
		t.Errorf("DUMP after UMNT: %q", got)
	}
	c.call(4).end()
	if got := list(); len(got) != 0 {
		t.Errorf("DUMP after UMNTALL: %q", got)
	}
	mu.Lock()
	if len(mounted) < 3 || mounted[0] != "127.0.0.1 "+string(testID) {
		t.Errorf("OnMount: %q", mounted)
	}
	mu.Unlock()
	c.vers = 1
	if c.call(1, []byte("/channel/default")).u32() != 13 {
		t.Error("MNT of version 1")
	}
	r = c.call(5)
	if r.u32() != 1 || string(r.opaque()) != "/channel/default" || r.u32() != 0 || r.u32() != 1 ||
		string(r.opaque()) != "/snapshot/"+string(testID) || r.u32() != 1 || string(r.opaque()) != "10.0.0.0/24" ||
		r.u32() != 1 || string(r.opaque()) != "node7" || r.u32() != 0 || r.u32() != 0 {
		t.Error("EXPORT")
	}
	r.end()
	c.prog, c.vers = 100003, 3
	c.call(procGetattr, top)
	for deadline := time.Now().Add(5 * time.Second); ; {
		if at := s.LastHeard()[ClientSnapshot{netip.MustParseAddr("127.0.0.1"), testID}]; time.Since(at) < time.Minute {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("LastHeard: %v", s.LastHeard())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestAllow refuses clients, and says so once.
func TestAllow(t *testing.T) {
	s := serveTree(t, t.TempDir(), func(s *Server) { s.Allow = nil })
	for range 5 {
		c := dial(t, s) // from a port that anyone can have
		c.send(c.message(procNull))
		c.accepted(c.receive()).end()
		c.send(c.message(procGetattr, handleOf(testID, testKey)))
		r := &reader{t: t, b: c.receive()}
		if r.u32() != c.xid || r.u32() != 1 || r.u32() != 1 || r.u32() != 1 || r.u32() != 5 {
			t.Error("the call is not denied with AUTH_TOOWEAK")
		}
		c.prog = 100005
		c.send(c.message(1, []byte("/channel/default")))
		if reply := c.receive(); len(reply) != 20 {
			t.Errorf("MNT is answered: %x", reply)
		}
	}
	if n := strings.Count(s.log.String(), "NFS client refused"); n != 1 {
		t.Errorf("logged %d times: %s", n, s.log)
	}
	needRoot(t)
	target := &target{addr: s.addr, mountAddr: s.addr}
	c := target.dial(t) // from a privileged port
	c.root("/channel/default")
}

func TestConnectionLimits(t *testing.T) {
	s := serveTree(t, t.TempDir(), func(s *Server) { s.Limits.ConnectionsPerClient = 3 })
	var all []*rpcClient
	for range 3 {
		c := dial(t, s)
		c.call(procNull).end()
		all = append(all, c)
	}
	c := dial(t, s)
	closed(t, c, "one too many")
	_ = all[0].conn.Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		c := dial(t, s)
		c.send(c.message(procNull))
		if _, err := c.conn.Read(make([]byte, 100)); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the place is not free again")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestRestart goes on with handles that another server gave out.
func TestRestart(t *testing.T) {
	root := makeTree(t)
	first := serveTree(t, root)
	c := dial(t, first)
	three := c.lookup(c.root("/channel/default"), "three")
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := first.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	closed(t, c, "after Shutdown")
	c = dial(t, serveTree(t, root))
	if got := c.readAll(three, 0, 100); string(got) != "abc" {
		t.Errorf("read %q", got)
	}
}

// TestForget gives a snapshot back while clients use it.
func TestForget(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	three := c.lookup(top, "three")
	c.readAll(three, 0, 100)
	s.Forget(testID)
	for deadline := time.Now().Add(5 * time.Second); ; {
		s.source.mu.Lock()
		closed := s.source.closed
		s.source.mu.Unlock()
		if closed == 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the snapshot was not closed")
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := s.files.len(); n != 0 {
		t.Errorf("%d files are open", n)
	}
	if got := c.readAll(three, 0, 100); string(got) != "abc" { // opened again
		t.Errorf("read %q", got)
	}
	s.source.set(testID, "", ErrDeleted)
	s.Forget(testID)
	if got := c.call(procGetattr, top).u32(); got != 70 {
		t.Errorf("status %d after the deletion", got)
	}
}

// TestSlowOpen has a snapshot take long to open: other calls go on.
func TestSlowOpen(t *testing.T) {
	s := serveTree(t, t.TempDir(), func(s *Server) { s.Limits.OpenTimeout = 300 * time.Millisecond })
	c := dial(t, s)
	top := c.root("/channel/default")
	delay := make(chan struct{})
	s.source.set(awayID, t.TempDir(), nil)
	s.source.mu.Lock()
	s.source.delay = delay
	s.source.mu.Unlock()
	c.send(c.message(procGetattr, handleOf(awayID, testKey)))
	slow := c.xid
	for range 10 {
		if c.call(procGetattr, top).u32() != 0 {
			t.Fatal("GETATTR of another snapshot")
		}
	}
	c.xid = slow
	if got := c.accepted(c.receive()).u32(); got != 10008 {
		t.Errorf("status %d after the time", got)
	}
	close(delay)
	c.xid += 100
	for deadline := time.Now().Add(20 * time.Second); ; {
		got := c.call(procGetattr, handleOf(awayID, testKey)).u32()
		if got == 0 {
			break
		}
		if got != 10008 || time.Now().After(deadline) {
			t.Fatalf("status %d when it is open", got)
		}
	}
}

func TestShutdownIsBounded(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	big := c.lookup(c.root("/channel/default"), "big")
	for range 100 { // more than the connection takes: the server waits for the client to read
		c.send(c.message(procRead, big, uint64(0), 1<<20))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if err := s.Serve(listener(t)); !errors.Is(err, ErrServerClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func listener(t *testing.T) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestBadKey(t *testing.T) {
	s := &Server{Key: []byte("short"), Source: &testSource{}}
	if err := s.Serve(listener(t)); err == nil || errors.Is(err, ErrServerClosed) {
		t.Errorf("got %v", err)
	}
}

func TestMetrics(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	for range 10 {
		c.call(procGetattr, top)
	}
	c.call(procLookup, top, []byte("missing"))
	c.readAll(c.lookup(top, "big"), 0, 1<<20)
	_ = c.conn.Close()
	for _, want := range []string{
		`sidus_nfs_calls_total{procedure="GETATTR"} 10`, `sidus_nfs_errors_total{procedure="LOOKUP"} 1`,
		`sidus_nfs_latency_seconds_count{procedure="GETATTR"} 10`,
		`sidus_nfs_snapshot_calls_total{snapshot="` + string(testID) + `",procedure="LOOKUP"} 2`,
		`sidus_nfs_client_calls_total{client="127.0.0.1"}`, `sidus_nfs_snapshot_reply_bytes_total{snapshot="` + string(testID) + `"} 300`,
	} {
		for deadline := time.Now().Add(5 * time.Second); ; {
			var text strings.Builder
			if err := s.WriteMetrics(&text); err != nil {
				t.Fatal(err)
			}
			if strings.Contains(text.String(), want) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("no %s in\n%s", want, text.String())
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}
