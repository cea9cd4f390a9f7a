// Package xdr reads and writes the items of XDR (RFC 4506) that ONC RPC
// programs need, without allocating.
package xdr

import "encoding/binary"

var be = binary.BigEndian

// Decoder takes XDR items from a buffer. After the first item that
// is malformed or missing, Bad is set and the rest is zero.
type Decoder struct {
	Data []byte // what is left
	Bad  bool
}

// Uint32 takes an unsigned integer.
func (d *Decoder) Uint32() uint32 {
	if len(d.Data) < 4 {
		d.Fail()
		return 0
	}
	v := be.Uint32(d.Data)
	d.Data = d.Data[4:]
	return v
}

// Uint64 takes an unsigned hyper integer.
func (d *Decoder) Uint64() uint64 {
	if len(d.Data) < 8 {
		d.Fail()
		return 0
	}
	v := be.Uint64(d.Data)
	d.Data = d.Data[8:]
	return v
}

// Bool takes a boolean: 0 or 1.
func (d *Decoder) Bool() bool {
	v := d.Uint32()
	if v > 1 {
		d.Fail()
	}
	return v == 1
}

// Opaque takes variable-length bytes or a string of at most limit bytes. The
// result points into the buffer.
func (d *Decoder) Opaque(limit uint32) []byte {
	n := d.Uint32()
	if n > limit {
		d.Fail()
		return nil
	}
	padded := (int(n) + 3) &^ 3
	if padded > len(d.Data) {
		d.Fail()
		return nil
	}
	v := d.Data[:n:n]
	d.Data = d.Data[padded:]
	return v
}

// Fail makes the rest malformed.
func (d *Decoder) Fail() {
	d.Data, d.Bad = nil, true
}

// Extend makes dst longer by n bytes, which it returns for filling in.
func Extend(dst []byte, n int) (all, tail []byte) {
	l := len(dst)
	if l+n > cap(dst) {
		dst = append(dst, make([]byte, n)...)
	} else {
		dst = dst[:l+n]
	}
	return dst, dst[l : l+n : l+n]
}

// AppendUint32 appends unsigned integers.
func AppendUint32(dst []byte, v ...uint32) []byte {
	for _, n := range v {
		dst = be.AppendUint32(dst, n)
	}
	return dst
}

// AppendOpaque appends variable-length bytes or a string.
func AppendOpaque(dst, v []byte) []byte {
	dst = be.AppendUint32(dst, uint32(len(v)))
	dst = append(dst, v...)
	return append(dst, zeros[:-len(v)&3]...)
}

var zeros [4]byte
