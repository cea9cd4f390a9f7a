package nfs

import "encoding/binary"

var be = binary.BigEndian

// decoder takes XDR items (RFC 4506) from a buffer. After the first item that
// is malformed or missing, bad is set and the rest is zero.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) uint32() uint32 {
	if len(d.b) < 4 {
		d.fail()
		return 0
	}
	v := be.Uint32(d.b)
	d.b = d.b[4:]
	return v
}

func (d *decoder) uint64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := be.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

// bool takes a boolean: 0 or 1.
func (d *decoder) bool() bool {
	v := d.uint32()
	if v > 1 {
		d.fail()
	}
	return v == 1
}

// opaque takes variable-length bytes or a string of at most limit bytes. The
// result points into the buffer.
func (d *decoder) opaque(limit uint32) []byte {
	n := d.uint32()
	if n > limit {
		d.fail()
		return nil
	}
	padded := (int(n) + 3) &^ 3
	if padded > len(d.b) {
		d.fail()
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[padded:]
	return v
}

func (d *decoder) skip(n int) {
	if n > len(d.b) {
		d.fail()
		return
	}
	d.b = d.b[n:]
}

func (d *decoder) fail() {
	d.b, d.bad = nil, true
}

// extend makes dst longer by n bytes, which it returns for filling in.
func extend(dst []byte, n int) (all, tail []byte) {
	l := len(dst)
	if l+n > cap(dst) {
		dst = append(dst, make([]byte, n)...)
	} else {
		dst = dst[:l+n]
	}
	return dst, dst[l : l+n : l+n]
}

func appendUint32(dst []byte, v ...uint32) []byte {
	for _, n := range v {
		dst = be.AppendUint32(dst, n)
	}
	return dst
}

// appendOpaque appends variable-length bytes or a string.
func appendOpaque(dst, v []byte) []byte {
	dst = be.AppendUint32(dst, uint32(len(v)))
	dst = append(dst, v...)
	return append(dst, zeros[:-len(v)&3]...)
}

var zeros [4]byte
