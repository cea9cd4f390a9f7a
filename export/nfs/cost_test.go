package nfs

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidus/image/index"
)

// TestNoAllocations makes many calls of each kind of metadata, and of small
// reads, and counts what was allocated meanwhile, the test's own client
// included.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: means nothing under the race detector")
	}
	root := makeTree(t)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	var stream []byte
	add := func(m []byte) { stream = append(append(stream, words(uint32(lastFragment|len(m)))...), m...) }
	three := c.lookup(top, "three")
	link := c.lookup(top, "link")
	for range 100 {
		add(c.message(procGetattr, three))
		add(c.message(procLookup, top, []byte("acl")))
		add(c.message(procLookup, top, []byte("missing")))
		add(c.message(procAccess, three, 63))
		add(c.message(procReadlink, link))
		add(c.message(procReaddirplus, top, uint64(0), uint64(0), 8192, 8192))
		add(c.message(procReaddir, top, uint64(0), uint64(0), 8192))
		add(c.message(procRead, three, uint64(0), 4096))
	}
	const calls = 800
	in := make([]byte, 1<<20)
	round := func() {
		go func() { _, _ = c.conn.Write(stream) }()
		rest := 0 // bytes of a reply that are still to come, or a part of a mark
		for done := 0; done < calls; {
			n, err := c.conn.Read(in[rest:])
			if err != nil {
				t.Error(err)
				return
			}
			b := in[:rest+n]
			for len(b) >= 4 {
				size := 4 + int(be.Uint32(b)&^lastFragment)
				if len(b) < size {
					break
				}
				b = b[size:]
				done++
			}
			rest = copy(in, b)
		}
	}
	round()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	const rounds = 100
	for range rounds {
		round()
	}
	runtime.ReadMemStats(&after)
	perMillion := float64(after.Mallocs-before.Mallocs) / (calls * rounds) * 1e6
	t.Logf("%.0f allocations per million calls, those of the client included (a goroutine for each %d calls)", perMillion, calls)
	if perMillion > 1e6/calls*4 {
		t.Errorf("%.0f allocations per million calls", perMillion)
	}
}

// TestMallocs counts what a server in a process of its own allocates for a
// million calls over connections that are there already.
func TestMallocs(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: means nothing under the race detector")
	}
	root, file := makeTree(t), filepath.Join(t.TempDir(), "mallocs")
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	addr := startProcess(t, cmd, root, t.TempDir(), "SIDUS_TEST_MALLOCS="+file)
	mallocs := func() (n int) {
		t.Helper()
		_ = os.Remove(file)
		if err := cmd.Process.Signal(syscall.SIGUSR1); err != nil {
			t.Fatal(err)
		}
		for limit := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			text, err := os.ReadFile(file)
			if err == nil {
				if _, err := fmt.Sscan(string(text), &n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			if time.Now().After(limit) {
				t.Fatal(err)
			}
		}
	}
	s := &testServer{addr: addr}
	first := dial(t, s)
	top := first.root("/channel/default")
	three := first.lookup(top, "three")
	calls := [][]byte{
		first.message(procGetattr, three), first.message(procLookup, top, []byte("acl")), first.message(procAccess, three, 63),
		first.message(procReaddirplus, top, uint64(0), uint64(0), 8192, 8192), first.message(procRead, three, uint64(0), 4096),
	}
	clients := make([]*rpcClient, 8)
	for i := range clients {
		clients[i] = dial(t, s)
	}
	load := func(total int) {
		var wg sync.WaitGroup
		for _, c := range clients {
			wg.Go(func() { drive(t, c.conn, 0, total/len(clients), 16, calls) })
		}
		wg.Wait()
	}
	load(10000)
	before := mallocs()
	const million = 1000000
	load(million)
	each := mallocs() - before
	t.Logf("the server allocates %d objects for a million calls", each)
	if each >= 1000 {
		t.Errorf("the server allocates %d objects for a million calls", each)
	}
}

// TestNoSystemCalls watches a server with strace while it answers metadata
// calls: only those of the sockets and the scheduler are made.
func TestNoSystemCalls(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: means nothing under the race detector")
	}
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: strace is not installed")
	}
	root, dir := makeTree(t), t.TempDir()
	if _, err := index.Build(context.Background(), root, filepath.Join(dir, string(testID)), index.Options{}); err != nil {
		t.Fatal(err)
	}
	summary := filepath.Join(t.TempDir(), "strace")
	cmd := exec.Command("strace", "-f", "-c", "-o", summary, os.Args[0], "-test.run=^$")
	addr := startProcess(t, cmd, root, dir)
	s := &testServer{addr: addr}
	c := dial(t, s)
	top := c.root("/channel/default")
	const rounds = 20000
	var stream []byte
	for range 16 {
		m := c.message(procLookup, top, []byte("three"))
		stream = append(append(stream, words(uint32(lastFragment|len(m)))...), m...)
	}
	for range rounds / 16 {
		if _, err := c.conn.Write(stream); err != nil {
			t.Fatal(err)
		}
		for range 16 {
			c.receive()
		}
	}
	_ = c.conn.Close()
	// The child of strace is the server: it ends when told to.
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	run(t, "kill", strings.Fields(string(children))[0])
	_ = cmd.Wait()
	text, err := os.ReadFile(summary)
	if err != nil {
		t.Fatal(err)
	}
	allowed := " read sendto epoll_pwait futex nanosleep sched_yield "
	for _, line := range strings.Split(string(text), "\n") {
		f := strings.Fields(line)
		if len(f) < 5 || f[0] == "%" || strings.HasPrefix(f[0], "-") || f[len(f)-1] == "total" {
			continue
		}
		var count int
		_, _ = fmt.Sscan(f[3], &count)
		if name := f[len(f)-1]; count > rounds/50 && !strings.Contains(allowed, " "+name+" ") {
			t.Errorf("%d calls of %s for %d calls of LOOKUP", count, name, rounds)
		}
	}
}

// TestIdleConnections measures what a connection takes that has been used and
// then waits: heap, stack and all.
func TestIdleConnections(t *testing.T) {
	if raceEnabled {
		t.Skip("SKIPPED: means nothing under the race detector")
	}
	root := makeTree(t)
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	addr := startProcess(t, cmd, root, t.TempDir())
	s := &testServer{addr: addr}
	use := func(count int) {
		for range count {
			c := dial(t, s)
			top := c.root("/channel/default")
			for range 3 {
				c.call(procReaddirplus, top, uint64(0), uint64(0), 65536, 65536)
			}
			c.readAll(c.lookup(top, "odd"), 0, 65536)
		}
	}
	use(100)
	before := anonymous(t, cmd.Process.Pid)
	const more = 800
	use(more)
	after := anonymous(t, cmd.Process.Pid)
	each := (after - before) / more
	t.Logf("%d bytes a connection; %d KiB in all with %d connections", each, after>>10, more+100)
	if each > 16<<10 {
		t.Errorf("%d bytes a connection", each)
	}
}

// anonymous returns the anonymous memory of a process, in bytes.
func anonymous(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	var kib int
	_, after, _ := strings.Cut(string(text), "RssAnon:")
	if _, err := fmt.Sscan(after, &kib); err != nil {
		t.Fatal(err)
	}
	return kib << 10
}
