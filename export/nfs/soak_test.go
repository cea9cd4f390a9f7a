package nfs

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// TestSoak lets connections come, ask, stall, break and talk nonsense for a
// while, SIDUS_SOAK_TIME or two seconds; what they took is given back then:
// goroutines, files and memory. `make soak` does it for longer, under the race
// detector.
func TestSoak(t *testing.T) {
	length := 2 * time.Second
	if text := os.Getenv("SIDUS_SOAK_TIME"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatal(err)
		}
	}
	root := makeTree(t)
	s := serveTree(t, root, func(s *Server) {
		s.Limits.StallTimeout = 200 * time.Millisecond
		s.Limits.OpenFiles = 64
		s.Limits.WaitingPerConnection = 4
		log := logrus.New() // its lines would be counted as memory of the server
		log.SetOutput(io.Discard)
		s.Logger = log
	})
	big, err := os.ReadFile(filepath.Join(root, "big"))
	if err != nil {
		t.Fatal(err)
	}
	var answers atomic.Int64
	connect := func() *rpcClient {
		conn, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Error(err)
			return nil
		}
		// Long: under the race detector, beside other work, a walk takes a while.
		_ = conn.SetDeadline(time.Now().Add(3 * time.Minute))
		_ = conn.(*net.TCPConn).SetLinger(0)
		return &rpcClient{t: t, conn: conn, cred: sysCred(0, 0), prog: 100003, vers: 3}
	}
	frame := func(m []byte) []byte { return append(words(uint32(lastFragment|len(m))), m...) }
	reads := func(c *rpcClient, handle []byte) (all []byte) {
		for at := 0; at < len(big); at += 1 << 17 {
			all = append(all, frame(c.message(procRead, handle, uint64(at), 1<<17))...)
		}
		return all
	}
	kinds := []func(){
		// Reads all of a file, and looks whether it is right.
		func() {
			c := connect()
			if c == nil {
				return
			}
			defer func() { _ = c.conn.Close() }()
			top := c.root("/channel/default")
			c.walk(top, "", 4096, func(string, []byte, fattr) { answers.Add(1) })
			if data := c.readAll(c.lookup(top, "big"), 0, 1<<(12+rand.IntN(9))); !bytes.Equal(data, big) {
				t.Errorf("%d bytes, not the %d of the file", len(data), len(big))
			}
		},
		// Breaks off while answers are on their way.
		func() {
			c := connect()
			if c == nil {
				return
			}
			handle := c.lookup(c.root("/channel/default"), "big")
			_, _ = c.conn.Write(reads(c, handle))
			time.Sleep(time.Duration(rand.IntN(5)) * time.Millisecond)
			_ = c.conn.Close()
		},
		// Never reads, until the server has enough of it.
		func() {
			c := connect()
			if c == nil {
				return
			}
			defer func() { _ = c.conn.Close() }()
			handle := c.lookup(c.root("/channel/default"), "big")
			_ = c.conn.SetDeadline(time.Now().Add(400 * time.Millisecond))
			for all := reads(c, handle); ; {
				if _, err := c.conn.Write(all); err != nil {
					return
				}
			}
		},
		// Stops within a request.
		func() {
			c := connect()
			if c == nil {
				return
			}
			_, _ = c.conn.Write(words(uint32(lastFragment|100), 1, 0))
			time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
			_ = c.conn.Close()
		},
		// Talks nonsense, some of it in records.
		func() {
			c := connect()
			if c == nil {
				return
			}
			b := make([]byte, rand.IntN(5000))
			for i := range b {
				b[i] = byte(rand.Uint32())
			}
			if rand.IntN(2) == 0 {
				b = frame(b)
			}
			_, _ = c.conn.Write(b)
			time.Sleep(time.Millisecond)
			_ = c.conn.Close()
		},
		// Takes the file out of the page cache.
		func() {
			if f, err := os.Open(filepath.Join(root, "big")); err == nil {
				_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
				_ = f.Close()
			}
			time.Sleep(5 * time.Millisecond)
		},
	}
	round := func(length time.Duration) {
		var wg sync.WaitGroup
		end := time.Now().Add(length)
		for _, kind := range kinds {
			for range 2 {
				wg.Go(func() {
					for time.Now().Before(end) && !t.Failed() {
						kind()
					}
				})
			}
		}
		wg.Wait()
	}
	type use struct{ goroutines, files, heap, anonymous int }
	measure := func() use {
		s.Forget(testID)
		runtime.GC()
		runtime.GC() // what pools hold goes with the second
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return use{runtime.NumGoroutine(), len(fds), int(m.HeapAlloc), anonymous(t, os.Getpid())}
	}
	// After one round there is what stays: a descriptor for the network, pools.
	round(min(length/2, 5*time.Second))
	settle := func(before use) (now use) {
		for limit := time.Now().Add(20 * time.Second); time.Now().Before(limit); time.Sleep(50 * time.Millisecond) {
			now = measure()
			if now.goroutines <= before.goroutines && now.files <= before.files && now.heap <= before.heap+4<<20 {
				break
			}
		}
		return now
	}
	quiet := use{goroutines: 1 << 30, files: 1 << 30, heap: 1 << 40}
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		s.mu.Lock()
		left := len(s.conns)
		s.mu.Unlock()
		if left == 0 {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%d connections are still there", left)
		}
	}
	before := settle(quiet)
	round(length)
	after := settle(before)
	t.Logf("before: %+v; after %v: %+v; %d connections, %d names seen", before, length, after, s.stats.accepted.Load(), answers.Load())
	if after.goroutines > before.goroutines || after.files > before.files || after.heap > before.heap+4<<20 {
		buf := make([]byte, 1<<20)
		t.Errorf("not all is given back; goroutines:\n%.5000s", buf[:runtime.Stack(buf, true)])
	}
	if after.anonymous > before.anonymous+64<<20 {
		t.Errorf("%d MB more of memory", (after.anonymous-before.anonymous)>>20)
	}
	if s.stats.accepted.Load() < 50 {
		t.Errorf("only %d connections", s.stats.accepted.Load())
	}
}
