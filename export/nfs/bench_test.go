package nfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"sidus/export/portmap"
	"sidus/image/store"
)

// The benchmarks drive a server in a process of its own. With
//
//	SIDUS_BENCH_TARGET=127.0.0.1:2049,/export/path,127.0.0.1:20048 SIDUS_BENCH_PID=123
//
// (NFS, path, MOUNT)
// they drive another NFSv3 server that serves the same tree, and
// SIDUS_BENCH_TREE says which tree (a small one is made otherwise).

// target is a server under load.
type target struct {
	addr, path string
	mountAddr  string
	pid        int
	tree       string
}

func benchTarget(b *testing.B) *target {
	b.Helper()
	t := &target{tree: os.Getenv("SIDUS_BENCH_TREE")}
	if t.tree == "" {
		t.tree = b.TempDir()
		for d := range 50 {
			dir := filepath.Join(t.tree, fmt.Sprint("dir", d))
			_ = os.Mkdir(dir, 0o755)
			for f := range 60 {
				if err := os.WriteFile(filepath.Join(dir, fmt.Sprint("file", f)), make([]byte, 200*f*f), 0o644); err != nil {
					b.Fatal(err)
				}
			}
		}
		if err := os.WriteFile(filepath.Join(t.tree, "large"), make([]byte, 64<<20), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	if foreign := os.Getenv("SIDUS_BENCH_TARGET"); foreign != "" {
		f := strings.Split(foreign, ",")
		t.addr, t.path, t.mountAddr = f[0], f[1], f[len(f)-1]
		t.pid, _ = strconv.Atoi(os.Getenv("SIDUS_BENCH_PID"))
		return t
	}
	cmd := exec.Command(os.Args[0], "-test.run=^$")
	t.addr, t.path, t.pid = startProcess(b, cmd, t.tree, b.TempDir()), "/channel/default", cmd.Process.Pid
	t.mountAddr = t.addr
	return t
}

// The test program, started with SIDUS_TEST_SERVE, is a server.
func init() {
	tree := os.Getenv("SIDUS_TEST_SERVE")
	if tree == "" {
		return
	}
	source := &testSource{roots: map[store.SnapshotID]string{testID: tree}, dir: os.Getenv("SIDUS_TEST_SERVE_DIR")}
	s := &Server{Key: testKey, Source: source, Allow: anyone}
	addr := os.Getenv("SIDUS_TEST_SERVE_ADDR")
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if os.Getenv("SIDUS_TEST_SERVE_PORTMAP") != "" {
		var all []portmap.Mapping
		for _, m := range [][2]uint32{{100003, 3}, {100005, 1}, {100005, 2}, {100005, 3}} {
			all = append(all, portmap.Mapping{Program: m[0], Version: m[1], Protocol: portmap.TCP, Port: uint16(l.Addr().(*net.TCPAddr).Port)})
		}
		ready := make(chan struct{})
		a := &portmap.Announcer{Mappings: all}
		go func() {
			if err := a.Run(context.Background(), func() { close(ready) }); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}()
		<-ready
	}
	fmt.Println(l.Addr())
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	go func() { _ = s.Serve(l) }()
	if path := os.Getenv("SIDUS_TEST_MALLOCS"); path != "" {
		go writeMallocs(path)
	}
	if path := os.Getenv("SIDUS_TEST_PROFILE"); path != "" {
		f, err := os.Create(path)
		if err != nil || pprof.StartCPUProfile(f) != nil {
			os.Exit(1)
		}
	}
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = s.Shutdown(limit)
	pprof.StopCPUProfile()
	os.Exit(0)
}

// writeMallocs writes how many objects this process has allocated so far to a
// file, each time it gets SIGUSR1.
func writeMallocs(path string) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	for range signals {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		if os.WriteFile(path+".new", fmt.Appendf(nil, "%d", m.Mallocs), 0o600) != nil || os.Rename(path+".new", path) != nil {
			os.Exit(1)
		}
	}
}

// cpu returns the CPU time that a process has used.
func cpu(pid int) time.Duration {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// benchFile is a file of the tree under load.
type benchFile struct {
	parent, handle []byte
	name           string
	size           uint64
	dir            bool
}

// files walks the tree over NFS.
func (t *target) files(b *testing.B) []benchFile {
	b.Helper()
	top := t.dialAt(b, t.mountAddr).root(t.path)
	c := t.dial(b)
	all := []benchFile{{handle: top, dir: true}}
	for i := 0; i < len(all); i++ {
		if !all[i].dir {
			continue
		}
		cookie, verifier := uint64(0), uint64(0)
		for end := uint32(0); end == 0; {
			r := c.call(procReaddirplus, all[i].handle, cookie, verifier, 8192, 32768)
			if status := r.u32(); status != 0 {
				b.Fatalf("READDIRPLUS: status %d", status)
			}
			if r.u32() == 1 {
				r.fattr()
			}
			verifier = r.u64()
			for r.u32() == 1 {
				r.u64()
				f := benchFile{parent: all[i].handle, name: string(r.opaque())}
				cookie = r.u64()
				if r.u32() == 1 {
					a := r.fattr()
					f.dir, f.size = a.kind == 2, a.size
					if a.kind != 1 {
						f.size = 0
					}
				}
				if r.u32() == 1 {
					f.handle = r.opaque()
				}
				if f.name != "." && f.name != ".." && f.handle != nil {
					all = append(all, f)
				}
			}
			end = r.u32()
		}
	}
	return all
}

func (t *target) dial(b testing.TB) *rpcClient { return t.dialAt(b, t.addr) }

func (t *target) dialAt(b testing.TB, addr string) *rpcClient { return t.dialFrom(b, addr, nil) }

func (t *target) dialFrom(b testing.TB, addr string, from net.IP) *rpcClient {
	b.Helper()
	var err error
	var conn net.Conn
	// A source port below 1024, which other servers want.
	for port := 1023; port > 600; port-- {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: from, Port: port}}
		if conn, err = d.Dial("tcp", addr); err == nil {
			break
		}
	}
	if err != nil {
		b.Fatal(err)
	}
	// The ports below 1024 are few: leave none in TIME_WAIT.
	_ = conn.(*net.TCPConn).SetLinger(0)
	b.Cleanup(func() { _ = conn.Close() })
	return &rpcClient{t: b, conn: conn, cred: sysCred(0, 0), prog: 100003, vers: 3}
}

// load makes b.N calls over conns connections, with some in flight on each.
// next returns the arguments of call i, a whole message without its
// transaction ID.
func (t *target) load(b *testing.B, conns, flight int, messages [][]byte) {
	b.Helper()
	clients := make([]*rpcClient, conns)
	for i := range clients {
		clients[i] = t.dial(b)
	}
	before, own := cpu(t.pid), cpu(os.Getpid())
	var bytes [64]int64
	var wg sync.WaitGroup
	b.ResetTimer()
	for i, c := range clients {
		n := b.N / conns
		if i < b.N%conns {
			n++
		}
		wg.Go(func() { bytes[i] = drive(b, c.conn, i*len(messages)/conns, n, flight, messages) })
	}
	wg.Wait()
	b.StopTimer()
	total := int64(0)
	for _, n := range bytes {
		total += n
	}
	used := cpu(t.pid) - before
	own = cpu(os.Getpid()) - own
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
	b.ReportMetric(float64(total)/1e6/b.Elapsed().Seconds(), "MB/s")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "serverµs/call")
	b.ReportMetric(float64(own.Microseconds())/float64(b.N), "loadµs/call")
}

// drive makes n calls over a connection and returns the bytes received.
func drive(b testing.TB, conn net.Conn, at, n, flight int, messages [][]byte) int64 {
	limited := &limitedReader{Reader: conn}
	in := bufio.NewReaderSize(limited, largeReply)
	var out []byte
	sent, total := 0, int64(0)
	send := func() {
		m := messages[at%len(messages)]
		at++
		sent++
		out = binary.BigEndian.AppendUint32(out, 1<<31|uint32(len(m)))
		out = append(out, m...)
	}
	for sent < min(flight, n) {
		send()
	}
	for received := 0; received < n; received++ {
		if in.Buffered() == 0 && len(out) > 0 {
			if _, err := conn.Write(out); err != nil {
				b.Error(err)
				return total
			}
			out = out[:0]
		}
		var head [32]byte
		if _, err := io.ReadFull(in, head[:]); err != nil {
			b.Error(err)
			return total
		}
		size := int64(binary.BigEndian.Uint32(head[:])&^(1<<31)) - 28
		if accepted, status := binary.BigEndian.Uint32(head[24:]), binary.BigEndian.Uint32(head[28:]); accepted != 0 || status != 0 {
			b.Errorf("status %d, %d", accepted, status)
			return total
		}
		buffered := min(int64(in.Buffered()), size)
		_, _ = in.Discard(int(buffered)) // it is there
		if err := discard(conn, int(size-buffered)); err != nil {
			b.Error(err)
			return total
		}
		total += size
		limited.limit = largeReply
		if size >= largeReply {
			limited.limit = 512 // what follows is likely to be as large: see discard
		}
		if sent < n {
			send()
		}
	}
	return total
}

// largeReply is the size in bytes from which on a reply is not worth copying.
const largeReply = 32 << 10

// limitedReader reads no more than limit at once, if that is not 0.
type limitedReader struct {
	io.Reader
	limit int
}

func (r *limitedReader) Read(b []byte) (int, error) {
	if r.limit > 0 && len(b) > r.limit {
		b = b[:r.limit]
	}
	return r.Reader.Read(b)
}

// discard takes bytes from a connection without copying them (tcp(7),
// MSG_TRUNC): the load shares the processors with the server.
func discard(conn net.Conn, n int) error {
	if n == 0 {
		return nil
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return err
	}
	errRead := raw.Read(func(fd uintptr) bool {
		for n > 0 {
			got, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno == unix.EINTR:
			case errno != 0:
				err = errno
				return true
			case got == 0:
				err = io.ErrUnexpectedEOF
				return true
			default:
				n -= int(got)
			}
		}
		return true
	})
	return errors.Join(errRead, err)
}

// messages makes one call for each file that keep accepts.
func messages(files []benchFile, make func(c *rpcClient, f benchFile) [][]byte) [][]byte {
	c := &rpcClient{cred: sysCred(0, 0), prog: 100003, vers: 3}
	var all [][]byte
	for _, f := range files {
		all = append(all, make(c, f)...)
	}
	return all
}

func one(m []byte) [][]byte { return [][]byte{m} }

func BenchmarkServer(b *testing.B) {
	if b.N != 1 {
		return
	}
	t := benchTarget(b)
	files := t.files(b)
	loads := []struct {
		name string
		make func(c *rpcClient, f benchFile) [][]byte
	}{
		{"GETATTR", func(c *rpcClient, f benchFile) [][]byte { return one(c.message(procGetattr, f.handle)) }},
		{"LOOKUP", func(c *rpcClient, f benchFile) [][]byte {
			if f.parent == nil {
				return nil
			}
			return one(c.message(procLookup, f.parent, []byte(f.name)))
		}},
		{"ACCESS", func(c *rpcClient, f benchFile) [][]byte { return one(c.message(procAccess, f.handle, 0x3f)) }},
		{"READDIRPLUS", func(c *rpcClient, f benchFile) [][]byte {
			if !f.dir {
				return nil
			}
			return one(c.message(procReaddirplus, f.handle, uint64(0), uint64(0), 8192, 32768))
		}},
		{"READ4K", func(c *rpcClient, f benchFile) [][]byte {
			if f.size == 0 {
				return nil
			}
			return one(c.message(procRead, f.handle, f.size/2&^4095, 4096))
		}},
		{"READall", func(c *rpcClient, f benchFile) [][]byte {
			var all [][]byte
			for at := uint64(0); at < f.size; at += 131072 {
				all = append(all, c.message(procRead, f.handle, at, 131072))
			}
			return all
		}},
		{"READ128K", func(c *rpcClient, f benchFile) [][]byte {
			var all [][]byte
			for at := uint64(0); at+131072 <= f.size; at += 131072 {
				all = append(all, c.message(procRead, f.handle, at, 131072))
			}
			return all
		}},
	}
	for _, shape := range []struct{ conns, flight int }{{8, 16}, {8, 1}} {
		for _, l := range loads {
			m := messages(files, l.make)
			b.Run(fmt.Sprintf("%s/%dx%d", l.name, shape.conns, shape.flight), func(b *testing.B) {
				if len(m) == 0 {
					b.Skip("no such file in the tree")
				}
				t.load(b, shape.conns, shape.flight, m)
			})
		}
	}
}
