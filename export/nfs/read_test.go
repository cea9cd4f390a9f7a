package nfs

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// readAll reads a file by READ calls of a size.
func (c *rpcClient) readAll(handle []byte, from uint64, size int) []byte {
	c.t.Helper()
	var data []byte
	for {
		r := c.call(procRead, handle, from, size)
		if status := r.u32(); status != 0 {
			c.t.Fatalf("READ: status %d", status)
		}
		r.post()
		count, end, b := r.u32(), r.u32(), r.opaque()
		r.end()
		if int(count) != len(b) || len(b) > size {
			c.t.Fatalf("READ: count %d of %d, data %d", count, size, len(b))
		}
		data = append(data, b...)
		from += uint64(count)
		if end == 1 {
			return data
		}
		if count == 0 {
			c.t.Fatal("READ: nothing, and not the end")
		}
	}
}

// dropCache takes a file out of the page cache.
func dropCache(t testing.TB, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	// Pages that something else looks at just then stay: those that are being
	// read ahead from a busy disk, or not yet taken from a socket.
	var io ioArgs
	for range 1000 {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if _, err := io.cached(int(f.Fd()), 0, int(info.Size())); err != nil || io.stat.cache == 0 {
			return
		}
		freePackets(t)
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%d pages of %s stay in the page cache", io.stat.cache, path)
}

// freePackets has each processor free the packets that another one has left to
// it: that waits for the next packet, and until then they hold pages.
func freePackets(t testing.TB) {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its affinity
		var err error
		for cpu := range runtime.NumCPU() {
			var one unix.CPUSet
			one.Set(cpu)
			errSend := unix.SchedSetaffinity(0, &one)
			if errSend == nil {
				_, errSend = conn.WriteTo([]byte("x"), conn.LocalAddr())
			}
			err = errors.Join(err, errSend)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestRead reads files warm and cold, in all the ways that the server has.
func TestRead(t *testing.T) {
	root := makeTree(t)
	for _, mode := range []string{"cachestat", "no cachestat"} {
		t.Run(mode, func(t *testing.T) {
			noCachestat.Store(mode != "cachestat")
			defer noCachestat.Store(false)
			s := serveTree(t, root)
			c := dial(t, s)
			top := c.root("/channel/default")
			for _, name := range []string{"big", "odd", "three", "empty"} {
				want, err := os.ReadFile(filepath.Join(root, name))
				if err != nil {
					t.Fatal(err)
				}
				handle := c.lookup(top, name)
				for _, size := range []int{1 << 20, 131072, 32768, 32767, 5001, 1 << 21} {
					for _, cold := range []bool{false, true} {
						if cold {
							dropCache(t, filepath.Join(root, name))
						}
						if got := c.readAll(handle, 0, size); !bytes.Equal(got, want) {
							t.Errorf("%s by %d, cold %v: %d bytes, want %d, or they differ", name, size, cold, len(got), len(want))
						}
					}
				}
			}
			sparse := c.lookup(top, "sparse")
			if got := c.readAll(sparse, 5<<30-10, 100); string(got) != string(make([]byte, 10))+"tail\n" {
				t.Errorf("behind 4 GiB: %q", got)
			}
			for _, test := range []struct {
				name   string
				handle []byte
				offset uint64
				count  int
				status uint32
			}{
				{"after the end", c.lookup(top, "three"), 100, 10, 0},
				{"at the largest offset", c.lookup(top, "three"), ^uint64(0), 1 << 20, 0},
				{"directory", top, 0, 10, 22},
				{"symbolic link", c.lookup(top, "link"), 0, 10, 22},
				{"device", c.lookup(top, "null"), 0, 10, 22},
				{"FIFO", c.lookup(top, "fifo"), 0, 10, 22},
			} {
				r := c.call(procRead, test.handle, test.offset, test.count)
				if got := r.u32(); got != test.status {
					t.Errorf("%s: status %d, want %d", test.name, got, test.status)
				}
				r.post()
				if test.status == 0 && (r.u32() != 0 || r.u32() != 1 || len(r.opaque()) != 0) {
					t.Errorf("%s: there is data, or not the end", test.name)
				}
				r.end()
			}
			// A count of 0 is answered, and tells the end only at the end.
			r := c.call(procRead, c.lookup(top, "three"), uint64(0), 0)
			if r.u32() != 0 || r.post().size != 3 || r.u32() != 0 || r.u32() != 0 || r.u32() != 0 {
				t.Error("a READ of nothing")
			}
		})
	}
}

// TestReadErrors breaks files behind the server's back.
// TestInCore compares mincore's word with what was done to a file.
func TestInCore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	data := make([]byte, 1<<20+1)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	vec := make([]byte, 300)
	if in, err := inCore(int(f.Fd()), int64(len(data)), vec); err != nil || !in {
		t.Errorf("just written: %v, %v", in, err)
	}
	dropCache(t, path)
	if in, err := inCore(int(f.Fd()), int64(len(data)), vec); err != nil || in {
		t.Errorf("dropped: %v, %v", in, err)
	}
	if _, err := f.ReadAt(data[:100<<10], 0); err != nil {
		t.Fatal(err)
	}
	if in, err := inCore(int(f.Fd()), int64(len(data)), vec); err != nil || in {
		t.Errorf("read in part: %v, %v", in, err)
	}
	if _, err := f.ReadAt(data, 0); err != nil {
		t.Fatal(err)
	}
	if in, err := inCore(int(f.Fd()), int64(len(data)), vec); err != nil || !in {
		t.Errorf("read: %v, %v", in, err)
	}
}

func TestReadErrors(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	big, odd, three := c.lookup(top, "big"), c.lookup(top, "odd"), c.lookup(top, "three")
	c.readAll(big, 0, 4096)
	if err := os.Truncate(filepath.Join(root, "big"), 100000); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "odd")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("three", filepath.Join(root, "odd")); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{4096, 131072} {
		for name, handle := range map[string][]byte{"short": big, "replaced": odd} {
			offset := uint64(0)
			if name == "short" && size == 4096 {
				offset = 98304
			}
			r := c.call(procRead, handle, offset, size)
			if status := r.u32(); status != 5 {
				t.Errorf("%s by %d: status %d", name, size, status)
			}
			r.post()
			r.end()
		}
	}
	if got := c.readAll(three, 0, 100); string(got) != "abc" {
		t.Errorf("the connection gave %q afterwards", got)
	}
}

// TestColdReadDelaysNothing has a READ wait for a disk while the same
// connection is answered other calls.
func TestColdReadDelaysNothing(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root, func(s *Server) { s.Limits.DiskReads = 1 })
	c := dial(t, s)
	top := c.root("/channel/default")
	big := c.lookup(top, "big")
	s.disk <- struct{}{} // somebody else uses the only place
	var reading uint32
	for try := 0; ; try++ {
		dropCache(t, filepath.Join(root, "big"))
		c.send(c.message(procRead, big, uint64(0), 8192))
		reading = c.xid
		c.send(c.message(procGetattr, top))
		if first := be.Uint32(c.receive()); first != reading {
			break
		}
		// The kernel begins to read ahead while it looks what it has: where
		// the disk is faster than that, nothing had to wait.
		c.receive()
		if try == 20 {
			t.Skip("SKIPPED: the disk is too quick for a READ to wait for it")
		}
	}
	for range 100 {
		if c.call(procGetattr, top).u32() != 0 {
			t.Fatal("GETATTR")
		}
	}
	<-s.disk
	c.xid = reading
	r := c.accepted(c.receive())
	if r.u32() != 0 || r.post().size != 3000000 || r.u32() != 8192 {
		t.Error("READ")
	}
}
