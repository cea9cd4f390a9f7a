package nfs

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// BenchmarkHonest measures how long the calls of a client with one call in
// flight take, alone and beside one that does its worst: floods with calls,
// asks for data that it never reads, or stops within requests.
func BenchmarkHonest(b *testing.B) {
	if b.N != 1 {
		return
	}
	t := benchTarget(b)
	files := t.files(b)
	getattr := messages(files, func(c *rpcClient, f benchFile) [][]byte { return one(c.message(procGetattr, f.handle)) })
	large := messages(files, func(c *rpcClient, f benchFile) [][]byte {
		if f.size < 1<<20 {
			return nil
		}
		return one(c.message(procRead, f.handle, uint64(0), 1<<20))
	})
	frame := func(m []byte) []byte { return append(words(uint32(lastFragment|len(m))), m...) }
	// flood runs in a process of its own, which leaves the processors to the
	// others: a flood comes from another machine.
	flood := func(b *testing.B, conns []net.Conn, calls [][]byte) (end func()) {
		cmd := exec.Command("nice", "-n", "19", os.Args[0], "-test.run=^$")
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
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		return func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	// What each does goes on until end, which is called when conns are closed.
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
			return wg.Wait
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
			for _, conn := range bad {
				_ = conn.Close()
			}
			end()
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
			b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
		})
	}
}

// The test program, started with SIDUS_TEST_FLOOD, writes what it reads from
// standard input to so many connections, again and again, and drops what comes
// back.
func init() {
	n, _ := strconv.Atoi(os.Getenv("SIDUS_TEST_FLOOD"))
	if n == 0 {
		return
	}
	stream, _ := io.ReadAll(os.Stdin)
	for i := range n {
		conn, err := net.FileConn(os.NewFile(uintptr(3+i), "connection"))
		if err != nil {
			os.Exit(1)
		}
		go func() { _ = discard(conn, 1<<62) }()
		go func() {
			for {
				if _, err := conn.Write(stream); err != nil {
					os.Exit(0)
				}
			}
		}()
	}
	select {}
}
