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
	flood := func(conns []net.Conn, calls [][]byte, stop chan struct{}) {
		cmd := exec.Command("nice", "-n", "19", os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("SIDUS_TEST_FLOOD=%d", len(conns)))
		for _, conn := range conns {
			f, err := conn.(*net.TCPConn).File()
			if err != nil {
				b.Error(err)
				return
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
			b.Error(err)
			return
		}
		<-stop
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	kinds := []struct {
		name  string
		conns int
		do    func(conns []net.Conn, stop chan struct{})
	}{
		{name: "alone"},
		{"floods", 8, func(conns []net.Conn, stop chan struct{}) { flood(conns, getattr, stop) }},
		{"reads all it can", 8, func(conns []net.Conn, stop chan struct{}) { flood(conns, large, stop) }},
		{"many connections", 200, func(conns []net.Conn, stop chan struct{}) { flood(conns, getattr, stop) }},
		{"never reads", 8, func(conns []net.Conn, stop chan struct{}) {
			for _, conn := range conns {
				_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
				for i := range 100 {
					_, _ = conn.Write(frame(large[i%len(large)]))
				}
			}
			<-stop
		}},
		{"stalls", 8, func(conns []net.Conn, stop chan struct{}) {
			for _, conn := range conns {
				_, _ = conn.Write(words(uint32(lastFragment|100), 1, 2))
			}
			<-stop
		}},
		{name: "alone again"},
	}
	for _, kind := range kinds {
		b.Run(kind.name, func(b *testing.B) {
			stop := make(chan struct{})
			var bad []net.Conn
			var wg sync.WaitGroup
			if kind.do != nil {
				if len(large) == 0 {
					b.Skip("no large file in the tree")
				}
				for range kind.conns {
					bad = append(bad, t.dialFrom(b, t.addr, net.IPv4(127, 0, 0, 2)).conn)
				}
				wg.Go(func() { kind.do(bad, stop) })
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
			close(stop)
			for _, conn := range bad {
				_ = conn.Close()
			}
			wg.Wait()
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
