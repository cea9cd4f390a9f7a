package lvm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"sidus/image/store"
)

const (
	imageOne = "AbCdEf-0123-4567-89ab-cdef-GHIJ-KLMNOP"
	imageTwo = "AbCdEf-0123-4567-89ab-cdef-GHIJ-KLMNOQ"
)

// disk is a device of a test: a plain file.
func disk(t *testing.T, content []byte) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	if _, err := file.Write(content); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestBlockStream sends what differs between two devices and writes it to a copy
// of the first, in chunks of another size than the sender's.
func TestBlockStream(t *testing.T) {
	const size, block = MinVolumeSize / 64, 64 << 10 // the header has the least size
	source := rand.New(rand.NewPCG(1, 2))
	fill := func(p []byte) {
		for i := range p {
			p[i] = byte(source.Uint32())
		}
	}
	before := make([]byte, size)
	fill(before[:size/2])
	now := bytes.Clone(before)
	var changed []extent
	for range 12 {
		at := source.Int64N(size/block) * block
		switch piece := now[at : at+block]; source.IntN(3) {
		case 0:
			fill(piece[4096*3 : 4096*7])
		case 1:
			clear(piece[4096 : 4096*9])
		default:
			fill(piece)
		}
	}
	for at := int64(0); at < size; at += block {
		if !bytes.Equal(before[at:at+block], now[at:at+block]) {
			changed = append(changed, extent{offset: at, length: block})
		}
	}
	gone := changed[len(changed)-1]
	clear(now[gone.offset : gone.offset+block])
	changed[len(changed)-1].gone = true

	for _, chunk := range []int64{64 << 10, 256 << 10, 4096} {
		for _, whole := range []bool{true, false} {
			var text bytes.Buffer
			header := streamHeader{Size: MinVolumeSize, FileSystem: Ext4, Image: imageOne, Base: imageTwo}
			snap, base := &thinDevice{file: disk(t, now), size: size}, &thinDevice{file: disk(t, before), size: size}
			ranges, target := changed, disk(t, before)
			if whole {
				header.Base, base = "", nil
				ranges, target = []extent{{offset: 0, length: size}}, disk(t, make([]byte, size))
			}
			packed := extents{block: block}
			for _, e := range ranges {
				if err := packed.add(e.offset/block, e.length/block, e.gone); err != nil {
					t.Fatal(err)
				}
			}
			if err := writeBlocks(t.Context(), &text, header, snap, base, packed); err != nil {
				t.Fatal(err)
			}
			if !whole && text.Len() > 13*block {
				t.Errorf("a difference of %d blocks has %d bytes", len(changed), text.Len())
			}
			stream, err := newStreamReader(&text)
			if err != nil {
				t.Fatal(err)
			}
			if stream.header != header {
				t.Errorf("%+v became %+v", header, stream.header)
			}
			w := blockWriter{file: target, chunk: chunk, size: size, keeps: true} // a file takes no discard
			for err == nil {
				var offset, zeros int64
				var data []byte
				if offset, data, zeros, err = stream.next(); err != nil {
					break
				}
				if data != nil {
					err = w.write(offset, data)
				} else {
					err = w.zero(offset, zeros)
				}
			}
			if !errors.Is(err, io.EOF) {
				t.Fatal(err)
			}
			got, err := os.ReadFile(target.Name())
			if err != nil || !bytes.Equal(got, now) {
				t.Errorf("chunk %d, whole %v: what was received is not what was sent, %v", chunk, whole, err)
			}
		}
	}
}

func TestDamagedBlockStreams(t *testing.T) {
	header := streamHeader{Size: MinVolumeSize, FileSystem: XFS, Image: imageOne}
	make := func(h streamHeader, records func(w *streamWriter)) []byte {
		var text bytes.Buffer
		w, err := newStreamWriter(&text, h)
		if err != nil {
			t.Fatal(err)
		}
		records(w)
		if err := w.end(); err != nil {
			t.Fatal(err)
		}
		return text.Bytes()
	}
	read := func(text []byte) error {
		stream, err := newStreamReader(bytes.NewReader(text))
		for err == nil {
			_, _, _, err = stream.next()
		}
		if err == io.EOF { //nolint:errorlint // exactly that
			return nil
		}
		return err
	}
	data := bytes.Repeat([]byte("x"), 4096)
	good := make(header, func(w *streamWriter) {
		_ = w.data(0, data)
		_ = w.zeros(4096, 8192)
		_ = w.data(MinVolumeSize-4096, data)
	})
	if err := read(good); err != nil {
		t.Fatal(err)
	}
	for cut := range len(good) {
		if cut%97 == 0 || cut > len(good)-50 {
			if err := read(good[:cut]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("cut after %d bytes: %v", cut, err)
			}
		}
	}
	for at := 0; at < len(good); at += 31 {
		bad := bytes.Clone(good)
		bad[at] ^= 0x40
		if err := read(bad); err == nil {
			t.Errorf("altered at byte %d, and nobody notices", at)
		}
	}
	future := bytes.Replace(good, []byte(streamFormat), []byte("sidus-lvm-2\n"), 1)
	if err := read(future); !errors.Is(err, store.ErrUnsupported) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("a later version: %v", err)
	}
	for what, text := range map[string][]byte{
		"after the end":   make(header, func(w *streamWriter) { _ = w.data(MinVolumeSize, data) }),
		"across the end":  make(header, func(w *streamWriter) { _ = w.zeros(MinVolumeSize-4096, 8192) }),
		"backwards":       make(header, func(w *streamWriter) { _ = w.data(8192, data); _ = w.data(4096, data) }),
		"overlapping":     make(header, func(w *streamWriter) { _ = w.zeros(0, 8192); _ = w.data(4096, data) }),
		"empty record":    make(header, func(w *streamWriter) { _ = w.zeros(0, 0) }),
		"huge zeros":      make(header, func(w *streamWriter) { _ = w.zeros(0, -512) }),
		"huge offset":     make(header, func(w *streamWriter) { _ = w.zeros(-512, 512) }),
		"no sector":       make(header, func(w *streamWriter) { _ = w.data(0, data[:100]) }),
		"huge data":       make(header, func(w *streamWriter) { _ = w.data(0, bytes.Repeat(data, 257)) }),
		"trailing":        append(bytes.Clone(good), 'x'),
		"garbage":         bytes.Repeat([]byte("garbage"), 100),
		"small device":    make(streamHeader{Size: 4096, FileSystem: Ext4, Image: imageOne}, func(*streamWriter) {}),
		"huge device":     make(streamHeader{Size: 1 << 60, FileSystem: Ext4, Image: imageOne}, func(*streamWriter) {}),
		"foreign system":  make(streamHeader{Size: MinVolumeSize, FileSystem: "ntfs", Image: imageOne}, func(*streamWriter) {}),
		"no image":        make(streamHeader{Size: MinVolumeSize, FileSystem: Ext4, Image: "x; reboot"}, func(*streamWriter) {}),
		"a base in words": make(streamHeader{Size: MinVolumeSize, FileSystem: Ext4, Image: imageOne, Base: strings.Repeat(" ", 38)}, func(*streamWriter) {}),
	} {
		if err := read(text); err == nil {
			t.Errorf("%s: accepted", what)
		}
	}
}

// What thin-provisioning-tools 0.9 says.
const (
	dumpText = `<superblock uuid="" time="2" transaction="4" flags="0" version="2" data_block_size="128" nr_data_blocks="32768">
  <device dev_id="2" mapped_blocks="6" transaction="1" creation_time="1" snap_time="1">
    <range_mapping origin_begin="0" data_begin="10" length="3" time="1"/>
    <single_mapping origin_block="3" data_block="40" time="0"/>
    <range_mapping origin_begin="100" data_begin="50" length="2" time="0"/>
  </device>
</superblock>
`
	deltaText = `<superblock uuid="" time="2" transaction="4" data_block_size="128" nr_data_blocks="32768">
  <diff left="1" right="2">
    <same begin="0" length="3"/>
    <different begin="3" length="2"/>
    <right_only begin="5" length="1"/>
    <left_only begin="6" length="4"/>
    <same begin="20" length="1"/>
  </diff>
</superblock>
`
)

func listOf(packed extents) (list []extent) {
	_ = packed.each(func(e extent) error {
		list = append(list, e)
		return nil
	})
	return list
}

// TestExtents packs ranges of every kind and unpacks them.
func TestExtents(t *testing.T) {
	const block = 64 << 10
	source := rand.New(rand.NewPCG(3, 4))
	packed := extents{block: block}
	var want []extent
	for at := int64(0); len(want) < 1000; {
		at += source.Int64N(1<<source.IntN(20)) * source.Int64N(2)
		length, gone := 1+source.Int64N(1<<source.IntN(20)), source.IntN(3) == 0
		if err := packed.add(at, length, gone); err != nil {
			t.Fatal(err)
		}
		e := extent{offset: at * block, length: length * block, gone: gone}
		if n := len(want); n > 0 && want[n-1].offset+want[n-1].length == e.offset && want[n-1].gone == gone {
			want[n-1].length += e.length
		} else {
			want = append(want, e)
		}
		at += length
	}
	if got := listOf(packed); !slices.Equal(got, want) {
		t.Errorf("%d ranges became %d", len(want), len(got))
	}
	if err := packed.add(0, 1, false); err == nil {
		t.Error("a range before the others is taken")
	}
	stop := errors.New("stop")
	if err := packed.each(func(extent) error { return stop }); err != stop { //nolint:errorlint // exactly that
		t.Error(err)
	}
}

// scattered says what thin_dump says of a volume of which every second chunk is
// mapped, line by line.
type scattered struct {
	n, of int
	rest  []byte
	peak  uint64 // of the heap, in bytes
}

func (s *scattered) Read(p []byte) (int, error) {
	if len(s.rest) == 0 {
		switch {
		case s.n == s.of+2:
			return 0, io.EOF
		case s.n == 0:
			s.rest = []byte(`<superblock data_block_size="128"><device dev_id="1">` + "\n")
		case s.n == s.of+1:
			s.rest = []byte("</device></superblock>\n")
		default:
			s.rest = fmt.Appendf(nil, "    <single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"3\"/>\n", 2*s.n, s.of-s.n)
		}
		if s.n%100_000 == 0 {
			runtime.GC() // what is garbage is not held
			var stats runtime.MemStats
			runtime.ReadMemStats(&stats)
			s.peak = max(s.peak, stats.HeapAlloc)
		}
		s.n++
	}
	n := copy(p, s.rest)
	s.rest = s.rest[n:]
	return n, nil
}

// TestScatteredVolume: what the pool's metadata tells of a volume is not held in
// memory as the program writes it. A terabyte in which every second chunk is mapped
// has forty times as many.
func TestScatteredVolume(t *testing.T) {
	const chunks = 200_000
	said := &scattered{of: chunks}
	packed, err := parseDump(said)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	_ = packed.each(func(extent) error { n++; return nil })
	if n != chunks {
		t.Errorf("%d ranges, not %d", n, chunks)
	}
	if each := cap(packed.packed) / chunks; each > 4 {
		t.Errorf("%d bytes for each range", each)
	}
	if said.peak > 16<<20 {
		t.Errorf("%d MiB on the heap", said.peak>>20)
	}
}

func TestParseThinMetadata(t *testing.T) {
	const block = 64 << 10
	same := func(what string, packed extents, err error, want ...extent) {
		t.Helper()
		got := listOf(packed)
		for i := range want {
			want[i].offset, want[i].length = want[i].offset*block, want[i].length*block
		}
		if err != nil || len(got) != len(want) {
			t.Fatalf("%s: %v, %v", what, got, err)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Errorf("%s: %v, want %v", what, got, want)
			}
		}
	}
	got, err := parseDump(strings.NewReader(dumpText))
	same("dump", got, err, extent{offset: 0, length: 4}, extent{offset: 100, length: 2})
	got, err = parseDelta(strings.NewReader(deltaText))
	same("delta", got, err, extent{offset: 3, length: 3}, extent{offset: 6, length: 4, gone: true})
	for what, text := range map[string]string{
		"nothing":         "",
		"no device":       `<superblock data_block_size="128"></superblock>`,
		"cut":             dumpText[:len(dumpText)/2],
		"two devices":     strings.Replace(dumpText, "</device>", `</device><device dev_id="3"></device>`, 1),
		"no block size":   strings.Replace(dumpText, `data_block_size="128"`, "", 1),
		"no number":       strings.Replace(dumpText, `length="3"`, `length="three"`, 1),
		"overlapping":     strings.Replace(dumpText, `origin_block="3"`, `origin_block="2"`, 1),
		"larger than all": strings.Replace(dumpText, `length="2"`, `length="9000000000000000000"`, 1),
	} {
		if got, err := parseDump(strings.NewReader(text)); err == nil {
			t.Errorf("%s: %v", what, got)
		}
	}
	if got, err := parseDelta(strings.NewReader(deltaText[:len(deltaText)-40])); err == nil {
		t.Errorf("a delta that was cut: %v", got)
	}
}

func TestImageOf(t *testing.T) {
	if got := imageOf(row{"lv_uuid": imageOne, "lv_tags": ""}); got != imageOne {
		t.Error(got)
	}
	if got := imageOf(row{"lv_uuid": imageOne, "lv_tags": tagNew + "," + tagImage + imageTwo}); got != imageTwo {
		t.Error(got)
	}
	for _, bad := range []string{"", "x", imageOne + "x", strings.Replace(imageOne, "-", "/", 1)} {
		if validImage(bad) {
			t.Errorf("%q", bad)
		}
	}
}
