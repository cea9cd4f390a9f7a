package nfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// BenchmarkHonest measures how long the calls of a client with one call in
// flight take, alone and beside one that does its worst: floods with calls,
// reads all it can, does so over many connections, asks for data that it never
// reads, or stops within requests.
//
// In reality clients have processors of their own. Here they share them, so
// the bad one runs in a process that the kernel's scheduler lets work only
// while nobody else wants to (SCHED_IDLE, sched(7)), and the honest one as soon
// as it is answered (SCHED_FIFO): what a client does itself delays nobody, what
// the server does for it counts in full. How much the bad one got is reported
// beside the times: one that got nothing shows nothing.
func BenchmarkHonest(b *testing.B) {
	if b.N != 1 {
		return
	}
	t := benchTarget(b)
	answerAtOnce(b)
	files := t.files(b)
	getattr := messages(files, func(c *rpcClient, f benchFile) [][]byte { return one(c.message(procGetattr, f.handle)) })
	large := messages(files, func(c *rpcClient, f benchFile) [][]byte {
		if f.size < 1<<20 {
			return nil
		}
		return one(c.message(procRead, f.handle, uint64(0), 1<<20))
	})
	frame := func(m []byte) []byte { return append(words(uint32(lastFragment|len(m))), m...) }
	// flood starts a process that does its worst.
	flood := func(b *testing.B, conns []net.Conn, calls [][]byte) (end func()) {
		cmd := exec.Command("chrt", "--idle", "0", os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("SIDUS_TEST_FLOOD=%d", len(conns)))
		for _, conn := range conns {
			f, err := conn.(*net.TCPConn).File()
			if err != nil {
				b.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		var stream []byte
		for i := range 256 {
			stream = append(stream, frame(calls[i%len(calls)])...)
		}
		cmd.Stdin = bytes.NewReader(stream)
		out, err := cmd.StdoutPipe()
		if err != nil {
			b.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		says := bufio.NewReader(out)
		if _, err := says.ReadString('\n'); err != nil {
			b.Fatalf("the bad client does not begin: %v", err)
		}
		return func() {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			var rate float64
			if _, err := fmt.Fscan(says, &rate); err != nil {
				b.Fatalf("the bad client: %v", err)
			}
			if err := cmd.Wait(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(rate/1e6, "bad-MB/s")
		}
	}
	// What each does has begun when it returns, and goes on until end is called.
	kinds := []struct {
		name  string
		conns int
		do    func(b *testing.B, conns []net.Conn) (end func())
	}{
		{name: "alone"},
		{"floods", 8, func(b *testing.B, conns []net.Conn) func() { return flood(b, conns, getattr) }},
		{"reads all it can", 8, func(b *testing.B, conns []net.Conn) func() { return flood(b, conns, large) }},
		{"many connections", 200, func(b *testing.B, conns []net.Conn) func() { return flood(b, conns, getattr) }},
		{"never reads", 8, func(_ *testing.B, conns []net.Conn) func() {
			var wg sync.WaitGroup
			wg.Go(func() {
				for _, conn := range conns {
					_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
					for i := range 100 {
						_, _ = conn.Write(frame(large[i%len(large)]))
					}
				}
			})
			return func() {
				for _, conn := range conns {
					_ = conn.Close()
				}
				wg.Wait()
			}
		}},
		{"stalls", 8, func(_ *testing.B, conns []net.Conn) func() {
			for _, conn := range conns {
				_, _ = conn.Write(words(uint32(lastFragment|100), 1, 2))
			}
			return func() {}
		}},
		{name: "alone again"},
	}
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			var bad []net.Conn
			end := func() {}
			if kind.do != nil {
				if len(large) == 0 {
					b.Skip("no large file in the tree")
				}
				for range kind.conns {
					bad = append(bad, t.dialFrom(b, t.addr, net.IPv4(127, 0, 0, 2)).conn)
				}
				end = kind.do(b, bad)
			}
			c := t.dial(b)
			took := make([]time.Duration, 0, b.N)
			at := 0
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				c.send(getattr[at%len(getattr)])
				c.receive()
				took = append(took, time.Since(began))
				at++
				time.Sleep(100 * time.Microsecond) // a boot thinks between calls
			}
			b.StopTimer()
			end()
			for _, conn := range bad {
				_ = conn.Close()
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// answerAtOnce has the threads of this process, and those that they start, go
// before all others.
func answerAtOnce(b *testing.B) {
	b.Helper()
	for range 3 { // some are started meanwhile
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			b.Fatal(err)
		}
		for _, thread := range threads {
			id, err := strconv.Atoi(thread.Name())
			if err != nil {
				b.Fatal(err)
			}
			if err := unix.SchedSetAttr(id, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 1}, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				b.Fatalf("SCHED_FIFO, which takes root: %v", err)
			}
		}
	}
}

// The test program, started with SIDUS_TEST_FLOOD, writes what it reads from
// standard input to so many connections, again and again, and drops what comes
// back. It prints a line when it has begun, and how many bytes a second came back
// when it gets SIGTERM.
func init() {
	n, _ := strconv.Atoi(os.Getenv("SIDUS_TEST_FLOOD"))
	if n == 0 {
		return
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	stream, _ := io.ReadAll(os.Stdin)
	var got atomic.Int64
	for i := range n {
		conn, err := net.FileConn(os.NewFile(uintptr(3+i), "connection"))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		go func() {
			const each = 64 << 10
			for discard(conn, each) == nil {
				got.Add(each)
			}
		}()
		go func() {
			for {
				if _, err := conn.Write(stream); err != nil {
					return
				}
			}
		}()
	}
	for got.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	fmt.Println("begun")
	before := got.Load()
	began := time.Now()
	<-signals
	fmt.Println(float64(got.Load()-before) / time.Since(began).Seconds())
	os.Exit(0)
}
