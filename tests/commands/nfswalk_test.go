package commands

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// nfsClient is a client of NFS version 3 (RFC 1813) that knows nothing of the
// server's code: it mounts, and reads directories and files.
type nfsClient struct {
	conn net.Conn
	xid  uint32
}

const (
	nfsProgram   = 100003
	mountProgram = 100005
)

// xdr puts together what RFC 4506 calls unsigned int, hyper and opaque<>.
func xdr(items ...any) (b []byte) {
	for _, item := range items {
		switch v := item.(type) {
		case uint32:
			b = binary.BigEndian.AppendUint32(b, v)
		case uint64:
			b = binary.BigEndian.AppendUint64(b, v)
		case []byte:
			b = append(binary.BigEndian.AppendUint32(b, uint32(len(v))), v...)
			b = append(b, make([]byte, -len(v)&3)...)
		}
	}
	return b
}

var errShort = errors.New("the reply is too short")

// unxdr takes XDR items; after the first that is missing all are zero.
type unxdr struct {
	b     []byte
	short bool
}

func (r *unxdr) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.short, r.b = true, nil
		return make([]byte, max(0, min(n, 8)))
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *unxdr) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *unxdr) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *unxdr) opaque() []byte {
	n := int(r.u32())
	b := r.take((n + 3) &^ 3)
	return b[:min(n, len(b))]
}

// call makes one call as root and returns the results.
func (c *nfsClient) call(program, procedure uint32, args []byte) (*unxdr, error) {
	c.xid++
	const rpcVersion, authSys = 2, 1
	credentials := xdr(uint32(0), []byte("test"), uint32(0), uint32(0), uint32(0))
	message := xdr(c.xid, uint32(0), uint32(rpcVersion), program, uint32(3), procedure, uint32(authSys), credentials, uint32(0), uint32(0))
	message = append(message, args...)
	if err := c.conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return nil, err
	}
	if _, err := c.conn.Write(append(xdr(1<<31|uint32(len(message))), message...)); err != nil {
		return nil, err
	}
	var mark [4]byte
	if _, err := io.ReadFull(c.conn, mark[:]); err != nil {
		return nil, err
	}
	reply := &unxdr{b: make([]byte, binary.BigEndian.Uint32(mark[:])&^(1<<31))}
	if _, err := io.ReadFull(c.conn, reply.b); err != nil {
		return nil, err
	}
	if xid := reply.u32(); xid != c.xid {
		return nil, fmt.Errorf("transaction %d instead of %d", xid, c.xid)
	}
	for i, want := range []uint32{1, 0, 0, 0, 0} { // reply, accepted, no verifier, success
		if got := reply.u32(); got != want {
			return nil, fmt.Errorf("word %d of the reply is %d instead of %d", i+1, got, want)
		}
	}
	return reply, nil
}

func (c *nfsClient) ok(program, procedure uint32, args []byte) (*unxdr, error) {
	reply, err := c.call(program, procedure, args)
	if err != nil {
		return nil, err
	}
	if status := reply.u32(); status != 0 {
		return nil, fmt.Errorf("procedure %d of %d: status %d", procedure, program, status)
	}
	return reply, nil
}

// mount returns the handle of an export's root.
func (c *nfsClient) mount(path string) ([]byte, error) {
	reply, err := c.ok(mountProgram, 1, xdr([]byte(path)))
	if err != nil {
		return nil, err
	}
	return reply.opaque(), nil
}

// lookup returns the handle of a name in a directory.
func (c *nfsClient) lookup(dir []byte, name string) ([]byte, error) {
	reply, err := c.ok(nfsProgram, 3, xdr(dir, []byte(name)))
	if err != nil {
		return nil, err
	}
	return reply.opaque(), nil
}

// read returns the first 64 KiB of a file.
func (c *nfsClient) read(file []byte) ([]byte, error) {
	reply, err := c.ok(nfsProgram, 6, xdr(file, uint64(0), uint32(65536)))
	if err != nil {
		return nil, err
	}
	reply.attributes()
	reply.u32() // count
	reply.u32() // end of file
	return reply.opaque(), nil
}

// attributes takes a post_op_attr and returns the type of the file.
func (r *unxdr) attributes() (kind uint32) {
	if r.u32() == 1 {
		kind = r.u32()
		r.take(80)
	}
	return kind
}

// walk reads all directories below one with READDIRPLUS and returns how many
// files of all kinds there are.
func (c *nfsClient) walk(dir []byte) (files int, err error) {
	const directory = 2
	var below [][]byte
	cookie, verifier := uint64(0), uint64(0)
	for end := false; !end; {
		reply, err := c.ok(nfsProgram, 17, xdr(dir, cookie, verifier, uint32(32<<10), uint32(128<<10)))
		if err != nil {
			return files, err
		}
		reply.attributes()
		verifier = reply.u64()
		for reply.u32() == 1 {
			reply.u64() // file ID
			name := string(reply.opaque())
			cookie = reply.u64()
			kind := reply.attributes()
			var handle []byte
			if reply.u32() == 1 {
				handle = append(handle, reply.opaque()...)
			}
			if name == "." || name == ".." {
				continue
			}
			files++
			if kind == directory {
				below = append(below, handle)
			}
		}
		end = reply.u32() == 1
		if reply.short {
			return files, errShort
		}
	}
	for _, dir := range below {
		n, err := c.walk(dir)
		files += n
		if err != nil {
			return files, err
		}
	}
	return files, nil
}
