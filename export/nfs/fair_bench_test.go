package nfs

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
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
	worst := map[string]func(conn net.Conn, stop chan struct{}){
		"alone": nil,
		"flood": func(conn net.Conn, stop chan struct{}) {
			// In a process of its own, which leaves the processors to the others:
			// a flood comes from another machine.
			f, err := conn.(*net.TCPConn).File()
			if err != nil {
				b.Error(err)
				return
			}
			defer func() { _ = f.Close() }()
			cmd := exec.Command("nice", "-n", "19", os.Args[0], "-test.run=^$")
			cmd.Env = append(os.Environ(), "SIDUS_TEST_FLOOD=1")
			cmd.ExtraFiles = []*os.File{f}
			var stream []byte
			for i := range 256 {
				stream = append(stream, frame(getattr[i%len(getattr)])...)
			}
			cmd.Stdin = bytes.NewReader(stream)
			if err := cmd.Start(); err != nil {
				b.Error(err)
				return
			}
			<-stop
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		},
		"never reads": func(conn net.Conn, stop chan struct{}) {
			for i := range 100 {
				_, _ = conn.Write(frame(large[i%len(large)]))
			}
			<-stop
		},
		"stalls": func(conn net.Conn, stop chan struct{}) {
			_, _ = conn.Write(words(uint32(lastFragment|100), 1, 2))
			<-stop
		},
	}
	for _, name := range []string{"alone", "flood", "never reads", "stalls", "alone"} {
		b.Run(name, func(b *testing.B) {
			stop := make(chan struct{})
			var bad []net.Conn
			var wg sync.WaitGroup
			if name != "alone" {
				if len(large) == 0 {
					b.Skip("no large file in the tree")
				}
				for range 8 {
					conn := t.dial(b).conn
					bad = append(bad, conn)
					wg.Go(func() { worst[name](conn, stop) })
				}
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
// standard input to descriptor 3, again and again, and drops what comes back.
func init() {
	if os.Getenv("SIDUS_TEST_FLOOD") == "" {
		return
	}
	conn, err := net.FileConn(os.NewFile(3, "connection"))
	if err != nil {
		os.Exit(1)
	}
	stream, _ := io.ReadAll(os.Stdin)
	go func() { _, _ = io.Copy(io.Discard, conn) }()
	for {
		if _, err := conn.Write(stream); err != nil {
			os.Exit(0)
		}
	}
}
