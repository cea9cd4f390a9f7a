package nfs

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// fuzzServer is a server without a socket, and a connection of it.
func fuzzServer(f *testing.F) *conn {
	root := f.TempDir()
	for _, name := range []string{"a", "b", "dir/c", "dir/d"} {
		_ = os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755)
		_ = os.WriteFile(filepath.Join(root, name), bytes.Repeat([]byte(name), 20000), 0o644)
	}
	_ = os.Symlink("a", filepath.Join(root, "link"))
	s := serveTree(f, root, func(s *Server) { s.Limits.OpenTimeout = time.Second })
	s.start()
	c := &conn{s: s.Server, peer: netip.MustParseAddrPort("127.0.0.1:700")}
	c.client, _ = s.clients.enter(c.peer.Addr(), &s.limits)
	c.call.s, c.call.conn = s.Server, c
	return c
}

// FuzzCall answers one record: with a server that may not wait, and then as a
// deferred call. Replies are well-formed, and no bigger than their buffers.
func FuzzCall(f *testing.F) {
	c := fuzzServer(f)
	client := &rpcClient{cred: sysCred(1000, 1000, 4, 5), prog: 100003, vers: 3}
	handles := make([][]byte, 8)
	raw := testID.Bytes()
	for i := range handles {
		handles[i] = make([]byte, handleSize)
		c.s.key.put(handles[i], &raw, 1)
		binary.BigEndian.PutUint32(handles[i][4:], uint32(i))
	}
	// A handle in the input is made valid, so that what comes after it is
	// reached: file is which file it names.
	f.Add(client.message(procGetattr, handles[1]), byte(1))
	f.Add(client.message(procLookup, handles[1], []byte("dir")), byte(1))
	f.Add(client.message(procAccess, handles[1], 63), byte(2))
	f.Add(client.message(procReadlink, handles[1]), byte(6))
	f.Add(client.message(procRead, handles[1], uint64(3), 40000), byte(2))
	f.Add(client.message(procReaddir, handles[1], uint64(0), uint64(0), 400), byte(1))
	f.Add(client.message(procReaddirplus, handles[1], uint64(0), uint64(0), 400, 4000), byte(1))
	for _, proc := range []int{procFsstat, procFsinfo, procPathconf} {
		f.Add(client.message(proc, handles[1]), byte(1))
	}
	f.Add(client.message(procSetattr, handles[1], 1, 7, 0, 0, 1, uint64(3), 2, uint64(9), 1, 0), byte(2))
	f.Add(client.message(procMknod, handles[1], []byte("n"), 3, 0, 0, 0, 0, 0, 0, 1, 2), byte(2))
	f.Add(client.message(procRename, handles[1], []byte("n"), handles[1], []byte("m")), byte(2))
	client.prog = 100005
	f.Add(client.message(1, []byte("/channel/default/dir")), byte(0))
	f.Add(client.message(2), byte(0))
	f.Add(client.message(3, []byte("/channel/default")), byte(0))
	f.Add(client.message(5), byte(0))
	f.Fuzz(func(t *testing.T, record []byte, file byte) {
		if len(record) > c.s.limits.Record {
			return
		}
		for at := 0; at+4+handleSize <= len(record); at += 4 {
			if binary.BigEndian.Uint32(record[at:]) == handleSize && record[at+4] == handleVersion && file > 0 {
				record = bytes.Clone(record)
				c.s.key.put(record[at+4:], &raw, 0)
				binary.BigEndian.PutUint32(record[at+8:], uint32(file))
				binary.BigEndian.PutUint64(record[at+28:], sipHash24(c.s.key.k0, c.s.key.k1, record[at+4:at+28]))
			}
		}
		for _, wait := range []bool{false, true} {
			k := &c.call
			k.wait = wait
			k.out = make([]byte, 0, outputSize)
			result := k.run(record)
			if extra := 0; result == answered || result == streamed {
				if result == streamed {
					extra = (k.length + 3) &^ 3
					c.s.files.release(k.file)
				}
				mark := int(binary.BigEndian.Uint32(k.out) &^ lastFragment)
				if mark != len(k.out)-4+extra || mark%4 != 0 || !bytes.Equal(k.out[4:8], record[:4]) {
					t.Errorf("reply of %d bytes and %d: %x", len(k.out), extra, k.out[:min(len(k.out), 64)])
				}
			} else if len(k.out) != 0 && result != broken {
				t.Errorf("outcome %d leaves %d bytes", result, len(k.out))
			}
			if wait && result == deferred {
				t.Error("deferred again")
			}
			k.release()
		}
	})
}

// FuzzRecords feeds a stream to a connection in pieces, and compares the
// records with those of a reader that has all of it.
func FuzzRecords(f *testing.F) {
	c := fuzzServer(f)
	f.Add([]byte{0x80, 0, 0, 4, 1, 2, 3, 4, 0x80, 0, 0, 0}, uint16(3))
	f.Add([]byte{0, 0, 0, 4, 1, 2, 3, 4, 0, 0, 0, 0, 0x80, 0, 0, 1, 9, 0x80, 0, 0, 2, 1, 2}, uint16(1))
	f.Add(append([]byte{0x80, 0, 0xff, 0}, make([]byte, 0xff00)...), uint16(60000))
	f.Fuzz(func(t *testing.T, stream []byte, piece uint16) {
		var want [][]byte
		bad := false
		rest, record := stream, []byte(nil)
		for len(rest) >= 4 {
			mark := binary.BigEndian.Uint32(rest)
			size := int(mark &^ lastFragment)
			if size > c.s.limits.Record-len(record) {
				bad = true
				break
			}
			if size > len(rest)-4 {
				break
			}
			record = append(record, rest[4:4+size]...)
			rest = rest[4+size:]
			if mark&lastFragment != 0 {
				want = append(want, record)
				record = nil
			}
		}
		x, length := &conn{s: c.s}, len(stream)
		var got [][]byte
		var err error
		for len(stream) > 0 && err == nil {
			// What fillInput does, with a stream in place of a socket.
			if x.r == x.w {
				x.dropInput()
				x.input = c.s.inputs.Get().(*[]byte)
				x.in = *x.input
			} else if x.w == len(x.in) {
				x.makeRoom()
			}
			n := copy(x.in[x.w:min(len(x.in), x.w+1+int(piece))], stream)
			x.w += n
			stream = stream[n:]
			for err == nil {
				var b []byte
				if b, err = x.nextRecord(); b == nil {
					break
				}
				got = append(got, bytes.Clone(b))
			}
		}
		x.dropInput()
		// The headers of many fragments may fill the buffer, too.
		if bad != (err != nil) && length < c.s.limits.Record || len(got) != len(want) && (bad || err == nil) {
			t.Fatalf("%d records, want %d; bad %v, error %v", len(got), len(want), bad, err)
		}
		for i := range got {
			if !bytes.Equal(got[i], want[i]) {
				t.Fatalf("record %d differs", i)
			}
		}
	})
}
