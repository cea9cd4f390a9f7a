package nfs

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// words encodes XDR from numbers (uint32 if int, hyper if uint64), opaques
// ([]byte, string) and raw bytes (raw).
type raw []byte

func words(items ...any) []byte {
	var b []byte
	for _, item := range items {
		switch v := item.(type) {
		case int:
			b = binary.BigEndian.AppendUint32(b, uint32(v))
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case string:
			b = append(words(len(v)), v...)
			panic("strings are opaques: " + string(b))
		case []byte:
			b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
			b = append(b, v...)
			for len(b)%4 != 0 {
				b = append(b, 0)
			}
		case raw:
			b = append(b, v...)
		default:
			panic("words: type")
		}
	}
	return b
}

// rpcClient is a client for tests. It knows nothing of the server's code.
type rpcClient struct {
	t    testing.TB
	conn net.Conn
	xid  uint32
	cred []byte // flavor and body
	prog int
	vers int
}

func sysCred(uid, gid int, groups ...int) []byte {
	body := words(0, []byte("test"), uid, gid, len(groups))
	for _, g := range groups {
		body = append(body, words(g)...)
	}
	return words(flavorSys, body)
}

func dial(t testing.TB, s *testServer) *rpcClient {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { _ = conn.Close() })
	return &rpcClient{t: t, conn: conn, cred: sysCred(0, 0), prog: 100003, vers: 3}
}

// message makes a call without its record mark.
func (c *rpcClient) message(proc int, args ...any) []byte {
	c.xid++
	return append(words(c.xid, 0, 2, c.prog, c.vers, proc, raw(c.cred), 0, 0), words(args...)...)
}

func (c *rpcClient) send(message []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(append(words(1<<31|uint32(len(message))), message...)); err != nil {
		c.t.Fatal(err)
	}
}

// receive returns a reply without its record mark.
func (c *rpcClient) receive() []byte {
	c.t.Helper()
	var head [4]byte
	if _, err := io.ReadFull(c.conn, head[:]); err != nil {
		c.t.Fatalf("reply: %v", err)
	}
	n := binary.BigEndian.Uint32(head[:])
	if n>>31 != 1 {
		c.t.Fatalf("record mark %#x", n)
	}
	b := make([]byte, n&^(1<<31))
	if _, err := io.ReadFull(c.conn, b); err != nil {
		c.t.Fatalf("reply: %v", err)
	}
	if len(b)%4 != 0 {
		c.t.Fatalf("reply of %d bytes", len(b))
	}
	return b
}

// call makes a call and returns the results after the RPC header, which must
// say success.
func (c *rpcClient) call(proc int, args ...any) *reader {
	c.t.Helper()
	c.send(c.message(proc, args...))
	return c.accepted(c.receive())
}

func (c *rpcClient) accepted(reply []byte) *reader {
	c.t.Helper()
	r := &reader{t: c.t, b: reply}
	if xid := r.u32(); xid != c.xid {
		c.t.Fatalf("transaction %d, want %d", xid, c.xid)
	}
	for i, want := range []uint32{1, 0, 0, 0, 0} {
		if got := r.u32(); got != want {
			c.t.Fatalf("word %d of the reply is %d, want %d", i+1, got, want)
		}
	}
	return r
}

// root mounts a path and returns the handle.
func (c *rpcClient) root(path string) []byte {
	c.t.Helper()
	c.prog = 100005
	defer func() { c.prog = 100003 }()
	r := c.call(1, []byte(path))
	if status := r.u32(); status != 0 {
		c.t.Fatalf("MNT %s: status %d", path, status)
	}
	return r.opaque()
}

// lookup returns the handle of a path below a directory.
func (c *rpcClient) lookup(dir []byte, names ...string) []byte {
	c.t.Helper()
	for _, name := range names {
		r := c.call(procLookup, dir, []byte(name))
		if status := r.u32(); status != 0 {
			c.t.Fatalf("LOOKUP %q: status %d", name, status)
		}
		dir = r.opaque()
	}
	return dir
}

// reader takes XDR items; it fails the test where there are none.
type reader struct {
	t testing.TB
	b []byte
}

func (r *reader) u32() uint32 {
	r.t.Helper()
	if len(r.b) < 4 {
		r.t.Fatal("the reply is too short")
	}
	v := binary.BigEndian.Uint32(r.b)
	r.b = r.b[4:]
	return v
}

func (r *reader) u64() uint64 {
	r.t.Helper()
	return uint64(r.u32())<<32 | uint64(r.u32())
}

func (r *reader) opaque() []byte {
	r.t.Helper()
	n := int(r.u32())
	padded := (n + 3) / 4 * 4
	if padded > len(r.b) {
		r.t.Fatalf("opaque of %d bytes in %d", n, len(r.b))
	}
	v := r.b[:n]
	for _, p := range r.b[n:padded] {
		if p != 0 {
			r.t.Fatal("padding is not zero")
		}
	}
	r.b = r.b[padded:]
	return v
}

func (r *reader) end() {
	r.t.Helper()
	if len(r.b) != 0 {
		r.t.Fatalf("%d bytes after the reply", len(r.b))
	}
}

// fattr is a decoded fattr3.
type fattr struct {
	kind, mode, nlink, uid, gid uint32
	size, used                  uint64
	major, minor                uint32
	fsid, fileid                uint64
	atime, mtime, ctime         [2]uint32
}

func (r *reader) fattr() fattr {
	r.t.Helper()
	var a fattr
	a.kind, a.mode, a.nlink, a.uid, a.gid = r.u32(), r.u32(), r.u32(), r.u32(), r.u32()
	a.size, a.used = r.u64(), r.u64()
	a.major, a.minor = r.u32(), r.u32()
	a.fsid, a.fileid = r.u64(), r.u64()
	for _, t := range []*[2]uint32{&a.atime, &a.mtime, &a.ctime} {
		t[0], t[1] = r.u32(), r.u32()
	}
	return a
}

// post takes a post_op_attr, which must hold attributes.
func (r *reader) post() fattr {
	r.t.Helper()
	if r.u32() != 1 {
		r.t.Fatal("no attributes in post_op_attr")
	}
	return r.fattr()
}

// wcc takes a wcc_data, whose parts must agree.
func (r *reader) wcc() fattr {
	r.t.Helper()
	if r.u32() != 1 {
		r.t.Fatal("no attributes in pre_op_attr")
	}
	size, mtime, ctime := r.u64(), [2]uint32{r.u32(), r.u32()}, [2]uint32{r.u32(), r.u32()}
	a := r.post()
	if a.size != size || a.mtime != mtime || a.ctime != ctime {
		r.t.Fatalf("wcc_data: before %d %v %v, after %+v", size, mtime, ctime, a)
	}
	return a
}
