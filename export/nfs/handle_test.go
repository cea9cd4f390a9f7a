package nfs

import (
	"bytes"
	"encoding/hex"
	"testing"

	"sidus/image/index"
)

// TestSipHash checks the vectors of the reference implementation: key 00…0f,
// messages 00, 00 01, … (vectors_sip64 of github.com/veorq/SipHash).
func TestSipHash(t *testing.T) {
	const k0, k1 = 0x0706050403020100, 0x0f0e0d0c0b0a0908
	message := make([]byte, 64)
	for i := range message {
		message[i] = byte(i)
	}
	for n, want := range map[int]uint64{
		0: 0x726fdb47dd0e0e31, 1: 0x74f839c593dc67fd, 2: 0x0d6c8009d9a94f5a, 7: 0xab0200f58b01d137,
		8: 0x93f5f5799a932462, 15: 0xa129ca6149be45e5, 16: 0x3f2acc7f57c29bdb,
	} {
		if got := sipHash24(k0, k1, message[:n]); got != want {
			t.Errorf("%d bytes: %#x, want %#x", n, got, want)
		}
	}
}

// TestHandleGolden fixes the form of handles: clients keep them for as long as
// they run, and other servers of the site must make the same.
func TestHandleGolden(t *testing.T) {
	key := newHandleKey(testKey)
	id := testID.Bytes()
	for file, want := range map[index.ID]string{
		1:          "010000000000000100112233445566778899aabbccddeeff65b2d0a3e54f5d88",
		0x01020304: "010000000102030400112233445566778899aabbccddeeff3588a73a96d35cd7",
	} {
		var h [handleSize]byte
		key.put(h[:], &id, file)
		if got := hex.EncodeToString(h[:]); got != want {
			t.Errorf("handle of file %d is\n%s, want\n%s", file, got, want)
		}
		snapshot, back, ok := key.check(h[:])
		if !ok || *snapshot != id || back != file {
			t.Errorf("check: %x %d %v", snapshot, back, ok)
		}
	}
}

func TestHandleForged(t *testing.T) {
	key := newHandleKey(testKey)
	other := newHandleKey(bytes.Repeat([]byte{7}, KeySize))
	id := testID.Bytes()
	var h [handleSize]byte
	key.put(h[:], &id, 77)
	if _, _, ok := other.check(h[:]); ok {
		t.Error("another site's handle is accepted")
	}
	for bit := range handleSize * 8 {
		h[bit/8] ^= 1 << (bit % 8)
		if _, _, ok := key.check(h[:]); ok {
			t.Errorf("accepted with bit %d changed", bit)
		}
		h[bit/8] ^= 1 << (bit % 8)
	}
	for n := range handleSize {
		if _, _, ok := key.check(h[:n]); ok {
			t.Errorf("accepted when cut to %d bytes", n)
		}
	}
	if _, _, ok := key.check(append(h[:], 0)); ok {
		t.Error("accepted with a byte more")
	}
}

func BenchmarkHandleCheck(b *testing.B) {
	key := newHandleKey(testKey)
	id := testID.Bytes()
	var h [handleSize]byte
	key.put(h[:], &id, 77)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, ok := key.check(h[:]); !ok {
			b.Fatal("not accepted")
		}
	}
}
