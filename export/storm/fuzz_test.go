package storm

import (
	"bytes"
	"compress/gzip"
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// numbers are 32-bit words as XDR has them.
func numbers(words ...uint32) (b []byte) {
	for _, w := range words {
		b = be.AppendUint32(b, w)
	}
	return b
}

// FuzzSegments gives the recorder what a client and a server say to each other:
// a byte that tells who says it (bit 0), whether it is a record (bit 1), and
// by how much it comes too early or again (the other bits), a byte with the
// length of what follows in words, and that.
func FuzzSegments(f *testing.F) {
	say := func(how byte, words ...uint32) []byte {
		return append([]byte{how, byte(len(words))}, numbers(words...)...)
	}
	call := func(program, proc uint32, arguments ...uint32) []byte {
		return say(2, append([]uint32{7, 0, 2, program, 3, proc, 0, 0, 0, 0}, arguments...)...)
	}
	reply := func(results ...uint32) []byte { return say(3, append([]uint32{7, 1, 0, 0, 0, 0}, results...)...) }
	attributes := []uint32{1, 0o644, 1, 0, 0, 0, 5, 0, 4096, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0}
	mount := append(call(mountProgram, mountProcMnt, 2, 0x2f780000), reply(0, 4, 0x11223344, 1, 1)...)
	handle := []uint32{4, 0x11223344}
	for _, one := range [][]byte{
		mount,
		append(append(mount, call(nfsProgram, procGetattr, handle...)...), reply(append([]uint32{0}, attributes...)...)...),
		append(append(mount, call(nfsProgram, procLookup, append(handle, 1, 0x61000000)...)...),
			reply(append([]uint32{0, 4, 0x55667788, 1}, append(attributes, 0)...)...)...),
		append(append(mount, call(nfsProgram, procRead, append(handle, 0, 0, 4)...)...), reply(0, 0, 4, 1, 4, 0x61626364)...),
		append(append(mount, call(nfsProgram, procReaddirplus, append(handle, 0, 0, 0, 0, 100, 1000)...)...),
			reply(0, 0, 0, 0, 1, 0, 9, 1, 0x61000000, 0, 1, 0, 1, 4, 0x55667788, 0, 1)...),
		say(8|1, 1, 2, 3), say(0, 0x80000004, 5), say(0, 4, 5, 0x80000000),
	} {
		f.Add(one)
	}
	client, server := netip.MustParseAddrPort("10.0.0.1:800"), netip.MustParseAddrPort("10.0.0.2:2049")
	f.Fuzz(func(t *testing.T, data []byte) {
		r := newRecorder(netip.Addr{})
		_ = r.add(segment{src: client, dst: server, syn: true})
		_ = r.add(segment{src: server, dst: client, syn: true, ack: true})
		seqs := [2]uint32{1, 1}
		for len(data) > 2 {
			n := min(len(data)-2, int(data[1])*4)
			side := data[0] & 1
			s := segment{src: client, dst: server, seq: seqs[side] + uint32(data[0]>>2), data: data[2 : 2+n]}
			if side == 1 {
				s.src, s.dst = server, client
			}
			if data[0]&2 != 0 {
				s.data = append(numbers(lastFragment|uint32(n)), s.data...)
			}
			seqs[side] += uint32(len(s.data))
			data = data[2+n:]
			_ = r.add(s)
		}
		// What was recorded can be written, and read again.
		recording, err := r.finish()
		if err != nil {
			return
		}
		if err := recording.validate(); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzCapture reads captures, and the TCP segments in them.
func FuzzCapture(f *testing.F) {
	ip := []byte{0x45, 0, 0, 44, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 255, 8, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4}
	for link, head := range map[uint32][]byte{linkRaw: nil, linkEthernet: append(make([]byte, 12), 8, 0), linkCooked: append(make([]byte, 14), 8, 0), linkCooked2: append([]byte{8, 0}, make([]byte, 18)...)} {
		n := uint32(len(head) + len(ip))
		f.Add(bytes.Join([][]byte{numbers(0xa1b2c3d4, 2<<16|4, 0, 0, 65535, link), numbers(1, 2, n, n), head, ip}, nil))
	}
	if unix.ETH_P_IP != 0x800 {
		f.Fatal("the frames are of another protocol")
	}
	f.Fuzz(func(_ *testing.T, data []byte) {
		_ = readPcap(bytes.NewReader(data), func(p packet) error {
			_, _, err := parseTCP(p)
			return err
		})
		_, _, _ = parseTCP(packet{ip: data})
	})
}

// FuzzRecording reads recordings.
func FuzzRecording(f *testing.F) {
	f.Add([]byte(`{"format":"sidus boot recording","version":1,"objects":2,"calls":1}` + "\n{}\n" + `{"name":"a","parent":0}` + "\n" + `{"proc":"LOOKUP","object":0,"gives":1,"after":-1,"needs":-1}`))
	if whole, err := os.Open("../../tests/bench/boot.jsonl.gz"); err == nil {
		if z, err := gzip.NewReader(whole); err == nil {
			begin := make([]byte, 2000)
			n, _ := z.Read(begin)
			f.Add(begin[:n])
		}
		_ = whole.Close()
	}
	z, _ := gzip.NewWriterLevel(nil, gzip.NoCompression) // the level is valid
	f.Fuzz(func(t *testing.T, data []byte) {
		var zipped bytes.Buffer
		z.Reset(&zipped)
		_, _ = z.Write(data)
		_ = z.Close()
		r, err := Read(&zipped)
		if err != nil {
			return
		}
		for i := range r.Objects {
			_ = r.path(i) // ends
		}
	})
}
