package nfs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"sidus/image/index"
)

// A file handle, version 1, is 32 bytes:
//
//	 0  version, 1
//	 1  three zero bytes
//	 4  file ID, big-endian
//	 8  snapshot ID
//	24  tag: SipHash-2-4 of bytes 0 to 23, big-endian
//
// The key of the tag is the first 16 bytes of HMAC-SHA256(site key,
// "sidus nfs handle 1"). SipHash was made to authenticate short messages; it
// costs some 20 ns where HMAC costs hundreds, on every call. Its tag of 64
// bits is enough here because a guess can only be tried by asking a server:
// at a million calls a second, 2⁶³ tries take 290,000 years.
const (
	handleSize    = 32
	handleVersion = 1
	handleKeyName = "sidus nfs handle 1"
)

// KeySize is the length of the site's key in bytes.
const KeySize = 32

// handleKey makes and checks handles.
type handleKey struct{ k0, k1 uint64 }

func newHandleKey(site []byte) handleKey {
	h := hmac.New(sha256.New, site)
	h.Write([]byte(handleKeyName))
	sum := h.Sum(nil)
	return handleKey{binary.LittleEndian.Uint64(sum), binary.LittleEndian.Uint64(sum[8:])}
}

// put writes a handle into dst, which holds at least handleSize bytes.
func (k handleKey) put(dst []byte, snapshot *[16]byte, id index.ID) {
	_ = dst[handleSize-1]
	dst[0], dst[1], dst[2], dst[3] = handleVersion, 0, 0, 0
	binary.BigEndian.PutUint32(dst[4:], uint32(id))
	copy(dst[8:24], snapshot[:])
	binary.BigEndian.PutUint64(dst[24:], sipHash24(k.k0, k.k1, dst[:24]))
}

// check takes a handle apart. It returns false for one that this site has not
// made.
func (k handleKey) check(handle []byte) (snapshot *[16]byte, id index.ID, ok bool) {
	if len(handle) != handleSize {
		return nil, 0, false
	}
	if binary.BigEndian.Uint32(handle) != handleVersion<<24 ||
		binary.BigEndian.Uint64(handle[24:]) != sipHash24(k.k0, k.k1, handle[:24]) {
		return nil, 0, false
	}
	return (*[16]byte)(handle[8:24]), index.ID(binary.BigEndian.Uint32(handle[4:])), true
}
