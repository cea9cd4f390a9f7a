package nfs

import (
	"bytes"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

// TestRPCErrors checks whole replies to calls that RPC refuses (RFC 5531).
func TestRPCErrors(t *testing.T) {
	s := serveTree(t, t.TempDir())
	const ok = "00000001 00000000 00000000 00000000 "
	none := words(0, 0)
	for _, test := range []struct {
		name string
		call []byte // after the transaction's ID
		want string
	}{
		{"NULL", words(0, 2, 100003, 3, 0, raw(none), raw(none)), ok + "00000000"},
		{"NULL of MOUNT 1", words(0, 2, 100005, 1, 0, raw(none), raw(none)), ok + "00000000"},
		{"NULL of NFSACL", words(0, 2, 100227, 3, 0, raw(none), raw(none)), ok + "00000000"},
		{"program", words(0, 2, 100228, 3, 0, raw(none), raw(none)), ok + "00000001"},
		{"version 2 of NFSACL", words(0, 2, 100227, 2, 0, raw(none), raw(none)), ok + "00000002 00000003 00000003"},
		{"procedure of NFSACL", words(0, 2, 100227, 3, 3, raw(none), raw(none)), ok + "00000003"},
		{"no arguments of GETACL", words(0, 2, 100227, 3, 1, raw(none), raw(none)), ok + "00000004"},
		{"version 2 of NFS", words(0, 2, 100003, 2, 0, raw(none), raw(none)), ok + "00000002 00000003 00000003"},
		{"version 4 of NFS", words(0, 2, 100003, 4, 0, raw(none), raw(none)), ok + "00000002 00000003 00000003"},
		{"version 4 of MOUNT", words(0, 2, 100005, 4, 0, raw(none), raw(none)), ok + "00000002 00000001 00000003"},
		{"procedure", words(0, 2, 100003, 3, 22, raw(none), raw(none)), ok + "00000003"},
		{"procedure of MOUNT", words(0, 2, 100005, 3, 6, raw(none), raw(none)), ok + "00000003"},
		{"RPC 3", words(0, 3, 100003, 3, 0, raw(none), raw(none)), "00000001 00000001 00000000 00000002 00000002"},
		{"no arguments", words(0, 2, 100003, 3, 1, raw(none), raw(none)), ok + "00000004"},
		{"handle too long", words(0, 2, 100003, 3, 1, raw(none), raw(none), make([]byte, 68)), ok + "00000004"},
		{"handle cut", words(0, 2, 100003, 3, 1, raw(none), raw(none), 32, 1), ok + "00000004"},
		{"path of MNT too long", words(0, 2, 100005, 3, 1, raw(none), raw(none), make([]byte, 1028)), ok + "00000004"},
		{"credentials cut", words(0, 2, 100003, 3, 1, 1, 20, 0), "00000001 00000001 00000001 00000001"},
		{"credentials too long", words(0, 2, 100003, 3, 1, 1, make([]byte, 404), raw(none)), "00000001 00000001 00000001 00000001"},
		{"17 groups", words(0, 2, 100003, 3, 1, raw(sysCred(1, 1, make([]int, 17)...)), raw(none)), "00000001 00000001 00000001 00000001"},
		{"AUTH_DH", words(0, 2, 100003, 3, 1, 3, 0, raw(none)), "00000001 00000001 00000001 00000001"},
		{"RPCSEC_GSS", words(0, 2, 100003, 3, 0, 6, []byte("12345678"), raw(none)), "00000001 00000001 00000001 00000001"},
	} {
		c := dial(t, s)
		c.send(append(words(0x1234), test.call...))
		want, err := hex.DecodeString("00001234" + strings.ReplaceAll(test.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.receive(); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", test.name, got, want)
		}
		c.call(0).end() // the connection goes on
	}
}

// TestRepliesAreIgnored sends what is no call.
func TestRepliesAreIgnored(t *testing.T) {
	s := serveTree(t, t.TempDir())
	c := dial(t, s)
	c.send(words(1, 1, 0, 0, 0, 0))
	c.call(0).end()
}

// closed checks that the server closes the connection.
func closed(t *testing.T, c *rpcClient, what string) {
	t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.conn.Read(make([]byte, 100)); n != 0 || err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("%s: read %d bytes, %v", what, n, err)
	}
}

// TestRecords sends calls in fragments of all sizes, and refuses records that
// are too long.
func TestRecords(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	random := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var stream []byte
		calls := 1 + random.IntN(5)
		first := c.xid + 1
		for range calls {
			var m []byte
			if random.IntN(10) > 0 {
				m = c.message(procLookup, top, []byte("three"))
			} else {
				m = c.message(procWrite, top, uint64(0), 50000, 0, make([]byte, 50000))
			}
			for len(m) > 0 {
				n := min(len(m), random.IntN(60)*random.IntN(60))
				last := uint32(0)
				if n == len(m) {
					last = lastFragment
				}
				stream = append(append(stream, words(last|uint32(n))...), m[:n]...)
				m = m[n:]
			}
		}
		go func() {
			for len(stream) > 0 {
				n := min(len(stream), 1+random.IntN(20000))
				if random.IntN(3) == 0 {
					n = 1
				}
				if _, err := c.conn.Write(stream[:n]); err != nil {
					t.Error(err)
					return
				}
				stream = stream[n:]
			}
		}()
		last := c.xid
		for xid := first; xid <= last; xid++ {
			c.xid = xid
			if status := c.accepted(c.receive()).u32(); status != 0 && status != 30 {
				t.Fatalf("status %d", status)
			}
		}
		c.xid = last
	}
	for name, stream := range map[string][]byte{
		"a long fragment":      words(lastFragment | 1<<20),
		"long in fragments":    append(append(words(100000), make([]byte, 100000)...), words(100000)...),
		"a record too short":   words(lastFragment|8, 1, 0),
		"empty fragments":      make([]byte, 400000),
		"an empty record":      words(lastFragment),
		"the largest fragment": words(^uint32(0)),
	} {
		c := dial(t, s)
		_, _ = c.conn.Write(stream)
		closed(t, c, name)
	}
}

// TestPipelined has 1,000 calls in flight, of all kinds of answers, and gets
// each answer once.
func TestPipelined(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	big := c.lookup(top, "big")
	dropCache(t, root+"/big")
	var stream []byte
	want := map[uint32]bool{}
	for i := range 1000 {
		var m []byte
		switch i % 5 {
		case 0:
			m = c.message(procGetattr, top)
		case 1:
			m = c.message(procRead, big, uint64(i*2000), 4096)
		case 2:
			m = c.message(procRead, big, uint64(i*1000), 65537)
		case 3:
			m = c.message(procReaddirplus, top, uint64(0), uint64(0), 65536, 65536)
		case 4:
			m = c.message(procLookup, top, []byte("missing"))
		}
		want[c.xid] = true
		stream = append(append(stream, words(uint32(lastFragment|len(m)))...), m...)
	}
	go func() { _, _ = c.conn.Write(stream) }()
	for range 1000 {
		r := &reader{t: t, b: c.receive()}
		xid := r.u32()
		if !want[xid] {
			t.Fatalf("reply to %d, twice or never asked", xid)
		}
		delete(want, xid)
	}
}

// TestStalled closes connections that stop within a request, or read nothing.
func TestStalled(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root, func(s *Server) { s.Limits.StallTimeout = 200 * time.Millisecond })
	idle := dial(t, s)
	top := idle.root("/channel/default")
	big := idle.lookup(top, "big")

	c := dial(t, s)
	_, _ = c.conn.Write(words(lastFragment|100, 1, 2))
	closed(t, c, "half a request")

	c = dial(t, s)
	m := c.message(procRead, big, uint64(0), 1<<20)
	m = append(words(uint32(lastFragment|len(m))), m...)
	for range 100 {
		if _, err := c.conn.Write(m); err != nil {
			break
		}
	}
	// 100 MB do not fit into the buffers of the connection.
	n, err := io.Copy(&slowWriter{time.Second}, c.conn)
	if err == nil && n > 90<<20 {
		t.Errorf("a client that does not read got %d bytes", n)
	}
	// A client that only waits is left alone.
	idle.call(procNull).end()
}

// slowWriter waits before its first write.
type slowWriter struct{ wait time.Duration }

func (w *slowWriter) Write(b []byte) (int, error) {
	time.Sleep(w.wait)
	w.wait = 0
	return len(b), nil
}
