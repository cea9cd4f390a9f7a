package stream

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"go.uber.org/goleak"

	"sidus/image/store"
	"sidus/image/store/storetest"
	"sidus/image/tool"
)

func TestMain(m *testing.M) {
	if err := storetest.PrivateMounts(); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

func testManifest() Manifest {
	return Manifest{
		Kind: Btrfs, Tree: "debian", Number: 14, Snapshot: "00112233445566778899aabbccddeeff", Parent: "ffeeddccbbaa99887766554433221100",
		Base: "ffeeddccbbaa99887766554433221100", Phase: "packages", Key: "abc", Recipe: "debian.yaml", Message: "two\nlines", Author: "root",
		Created: time.Date(2024, 5, 6, 7, 8, 9, 123456789, time.UTC), Complete: true, Size: 20 << 20,
	}
}

// payload makes bytes that shrink by about a half, the same for each seed.
func payload(seed uint64, size int) []byte {
	random := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, size)
	for i := 0; i+8 <= len(b); i += 16 {
		binary.LittleEndian.PutUint64(b[i:], random.Uint64())
	}
	return b
}

func writeStream(t testing.TB, m Manifest, content []byte, o WriterOptions) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out, m, o)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(content); err != nil {
		t.Fatal(err)
	}
	result, err := w.Close()
	if err != nil {
		t.Fatal(err)
	}
	if result.Payload != int64(len(content)) || result.Stream != int64(out.Len()) {
		t.Errorf("the result %+v is of %d bytes in %d", result, len(content), out.Len())
	}
	return out.Bytes()
}

func TestThereAndBack(t *testing.T) {
	for _, size := range []int{0, 1, 15, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 12345} {
		content := payload(7, size+16)[:size]
		for _, level := range []Level{Stored, 1, 0, 7} {
			if level == 7 && size > chunkSize+1 {
				continue // slow
			}
			calls := int64(0)
			stream := writeStream(t, testManifest(), content, WriterOptions{Level: level, Workers: 2, Progress: func(p Progress) { calls = p.Payload }})
			if calls != int64(size) {
				t.Errorf("%d bytes: the last call of Progress said %d", size, calls)
			}
			r, err := Open(iotest.HalfReader(bytes.NewReader(stream)), ReaderOptions{Workers: 2})
			if err != nil {
				t.Fatal(err)
			}
			want := testManifest()
			want.Format = Version
			if r.Manifest() != want {
				t.Errorf("the manifest is %+v", r.Manifest())
			}
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, content) {
				t.Fatalf("level %d, %d bytes: %d bytes came back, %v", level, size, len(got), err)
			}
			if r.Result().Stream != int64(len(stream)) || r.Result().Payload != int64(size) || r.Result().Digest == "" {
				t.Errorf("the result is %+v", r.Result())
			}
		}
	}
}

func TestSameBytes(t *testing.T) {
	content := payload(3, 2*chunkSize+99)
	a := writeStream(t, testManifest(), content, WriterOptions{Workers: 1})
	b := writeStream(t, testManifest(), content, WriterOptions{Workers: 5})
	if !bytes.Equal(a, b) {
		t.Error("the number of workers changes the stream")
	}
}

// zstd(1) yields the payload alone, and finds damage by its own checksums.
func TestForeignDecompressor(t *testing.T) {
	content := payload(5, chunkSize+777)
	for _, level := range []Level{Stored, 1, 3} {
		stream := writeStream(t, testManifest(), content, WriterOptions{Level: level})
		got, err := tool.Output(t.Context(), tool.Options{Stdin: bytes.NewReader(stream)}, "zstd", "-dc")
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("level %d: %d bytes came back, %v", level, len(got), err)
		}
	}
}

// read reads all of a stream.
func read(stream []byte) ([]byte, error) {
	r, err := Open(bytes.NewReader(stream), ReaderOptions{Workers: 2})
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// smallStream has three small chunks, so that each of its bytes can be changed.
func smallStream(t testing.TB) (stream, content []byte) {
	content = payload(9, 600)
	var out bytes.Buffer
	w, err := NewWriter(&out, testManifest(), WriterOptions{Workers: 1})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := w.Write(content[i*200 : i*200+200]); err != nil {
			t.Fatal(err)
		}
		w.send()
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), content
}

func TestCutAnywhere(t *testing.T) {
	stream, content := smallStream(t)
	if got, err := read(stream); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("the stream itself: %v", err)
	}
	for n := range stream {
		got, err := read(stream[:n])
		want := ErrTruncated
		if n < 4 {
			want = ErrForeign
		}
		if !errors.Is(err, want) {
			t.Fatalf("cut after %d bytes: %v", n, err)
		}
		if !bytes.HasPrefix(content, got) {
			t.Fatalf("cut after %d bytes: something else came out", n)
		}
	}
}

func TestEveryBitCounts(t *testing.T) {
	stream, content := smallStream(t)
	for i := range stream {
		for bit := range 8 {
			stream[i] ^= 1 << bit
			got, err := read(stream)
			stream[i] ^= 1 << bit
			if err == nil {
				t.Fatalf("bit %d of byte %d was changed and nobody noticed", bit, i)
			}
			known := false
			for _, class := range []error{ErrForeign, ErrVersion, ErrTruncated, ErrDamaged, ErrManifest} {
				known = known || errors.Is(err, class)
			}
			if !known {
				t.Fatalf("bit %d of byte %d: %v is of no class", bit, i, err)
			}
			if !bytes.HasPrefix(content, got) {
				t.Fatalf("bit %d of byte %d: something else came out", bit, i)
			}
		}
	}
}

func TestMixedUp(t *testing.T) {
	stream, _ := smallStream(t)
	frames := split(t, stream)
	join := func(order ...int) []byte {
		var b []byte
		for _, i := range order {
			b = append(b, frames[i]...)
		}
		return b
	}
	other := split(t, writeStream(t, testManifest(), payload(10, 200), WriterOptions{}))
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"swapped":          {join(0, 3, 4, 1, 2, 5, 6, 7), ErrDamaged},
		"missing":          {join(0, 1, 2, 5, 6, 7), ErrDamaged},
		"last missing":     {join(0, 1, 2, 3, 4, 7), ErrDamaged},
		"twice":            {join(0, 1, 2, 1, 2, 3, 4, 5, 6, 7), ErrDamaged},
		"no end":           {join(0, 1, 2, 3, 4, 5, 6), ErrTruncated},
		"no digest":        {join(0, 1, 3, 4), ErrDamaged},
		"no manifest":      {join(1, 2, 7), ErrForeign},
		"end first":        {join(7, 0), ErrForeign},
		"two manifests":    {join(0, 0, 1, 2), ErrDamaged},
		"foreign chunk":    {append(append(join(0), join2(other[1:3])...), join(3, 4, 5, 6, 7)...), ErrDamaged},
		"trailing garbage": {append(join(0, 1, 2, 3, 4, 5, 6, 7), "x"...), ErrDamaged},
		"trailing zeros":   {append(join(0, 1, 2, 3, 4, 5, 6, 7), make([]byte, 8)...), ErrDamaged},
		"two streams":      {append(bytes.Clone(stream), stream...), ErrDamaged},
	} {
		if _, err := read(c.stream); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

func join2(parts [][]byte) []byte { return bytes.Join(parts, nil) }

// split takes a stream apart into its frames.
func split(t testing.TB, stream []byte) [][]byte {
	t.Helper()
	f := frameReader{r: bufio.NewReader(bytes.NewReader(stream))}
	var frames [][]byte
	for at := int64(0); at < int64(len(stream)); at = f.n {
		magic, err := f.magic()
		if err == nil && magic == skipMagic {
			_, err = f.skippable(maxManifest)
		} else if err == nil {
			_, _, err = f.data(nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		frames = append(frames, stream[at:f.n])
	}
	return frames
}

func TestForeign(t *testing.T) {
	plain, err := tool.Output(t.Context(), tool.Options{Stdin: strings.NewReader("hello")}, "zstd", "-c")
	if err != nil {
		t.Fatal(err)
	}
	for name, stream := range map[string][]byte{
		"empty": nil, "short": []byte("ab"), "text": []byte("hello, world"), "gzip": []byte("\x1f\x8b\x08\x00\x00\x00"),
		"zeros": make([]byte, 1024), "zstd": plain, "skippable": appendSkippable(nil, []byte("something else altogether")),
	} {
		_, err := read(stream)
		if !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
	}
}

func TestNewerVersion(t *testing.T) {
	for _, text := range []string{`{"format":2}`, `{"format":3,"kind":{"of":"another form"},"x":[]}`} {
		_, err := read(appendSkippable(nil, manifestRecord([]byte(text))))
		if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "update") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestBadManifest(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"no snapshot":      func(m *Manifest) { m.Snapshot = "" },
		"path as snapshot": func(m *Manifest) { m.Snapshot = "../../../../../../../../etc/passwd" },
		"bad base":         func(m *Manifest) { m.Base = "x" },
		"bad parent":       func(m *Manifest) { m.Parent = store.SnapshotID(strings.Repeat("A", 32)) },
		"base is itself":   func(m *Manifest) { m.Base = m.Snapshot },
		"portable base":    func(m *Manifest) { m.Kind = Portable },
		"no kind":          func(m *Manifest) { m.Kind = "" },
		"escape sequence":  func(m *Manifest) { m.Tree = "a\x1b[2J" },
		"not UTF-8":        func(m *Manifest) { m.Message = "\xff" },
		"negative":         func(m *Manifest) { m.Size = -1 },
	} {
		m := testManifest()
		spoil(&m)
		if _, err := NewWriter(io.Discard, m, WriterOptions{}); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, text := range []string{"", "{", "[]", `{"format":1}`, `{"format":1} {}`, `{"format":0}`, `null`} {
		if _, err := read(appendSkippable(nil, manifestRecord([]byte(text)))); !errors.Is(err, ErrManifest) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// What follows a stream in a pipe is left for others.
func TestMore(t *testing.T) {
	stream, content := smallStream(t)
	pipe := bufio.NewReaderSize(iotest.OneByteReader(bytes.NewReader(append(append(bytes.Clone(stream), stream...), "rest"...))), readAhead)
	for range 2 {
		r, err := Open(pipe, ReaderOptions{More: true})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
			t.Fatal(err)
		}
	}
	if rest, err := io.ReadAll(pipe); err != nil || string(rest) != "rest" {
		t.Errorf("%q is left, %v", rest, err)
	}
	if _, err := Open(bytes.NewReader(stream), ReaderOptions{More: true}); err == nil {
		t.Error("More was taken with a reader that cannot be left in time")
	}
}

// A reader's own error is passed on as it is.
func TestReadError(t *testing.T) {
	stream, _ := smallStream(t)
	gone := errors.New("the wire broke")
	for _, n := range []int{3, 100, len(stream) - 70, len(stream) - 1} {
		r, err := Open(io.MultiReader(bytes.NewReader(stream[:n]), iotest.ErrReader(gone)), ReaderOptions{})
		if err == nil {
			_, err = io.ReadAll(r)
		}
		if !errors.Is(err, gone) || errors.Is(err, ErrTruncated) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}

type failingWriter struct {
	left int
	err  error
}

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func TestWriteError(t *testing.T) {
	full := errors.New("the disk is full")
	if _, err := NewWriter(&failingWriter{10, full}, testManifest(), WriterOptions{}); !errors.Is(err, full) {
		t.Error(err)
	}
	w, err := NewWriter(&failingWriter{3 * chunkSize / 2, full}, testManifest(), WriterOptions{Level: Stored, Workers: 2})
	if err != nil {
		t.Fatal(err)
	}
	content := make([]byte, chunkSize)
	for range 100 {
		if _, err = w.Write(content); err != nil {
			break
		}
	}
	if !errors.Is(err, full) {
		t.Errorf("Write: %v", err)
	}
	if _, err := w.Close(); !errors.Is(err, full) {
		t.Errorf("Close: %v", err)
	}
	w.Abort()
}

func TestAbort(t *testing.T) {
	var out bytes.Buffer
	w, err := NewWriter(&out, testManifest(), WriterOptions{Level: Stored})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, chunkSize+1)); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if _, err := w.Close(); err == nil {
		t.Error("an aborted stream was closed well")
	}
	if _, err := read(out.Bytes()); !errors.Is(err, ErrTruncated) {
		t.Errorf("an aborted stream was read: %v", err)
	}
}

func TestParseLevel(t *testing.T) {
	for text, want := range map[string]Level{"": 3, "none": Stored, "0": Stored, "fast": 1, "default": 3, "better": 7, "best": 19, "12": 12} {
		if got, err := ParseLevel(text); err != nil || got != want {
			t.Errorf("%q: %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"-1", "20", "x", "3.5"} {
		if _, err := ParseLevel(text); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
	if _, err := NewWriter(io.Discard, testManifest(), WriterOptions{Level: 99}); err == nil {
		t.Error("level 99 was taken")
	}
}

func FuzzRead(f *testing.F) {
	stream, _ := smallStream(f)
	f.Add(stream)
	for _, frame := range split(f, stream) {
		f.Add(frame)
	}
	f.Add(appendStored(appendSkippable(nil, manifestRecord([]byte(`{"format":1,"kind":"portable","snapshot":"00112233445566778899aabbccddeeff"}`))), []byte("abc")))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r, err := Open(bytes.NewReader(stream), ReaderOptions{Workers: 1})
		if err != nil {
			return
		}
		n, err := io.Copy(io.Discard, r)
		if err == nil && r.Result().Payload != n {
			t.Error("the result is wrong")
		}
	})
}

// FuzzFrames reads frames without the manifest and the digests before them.
func FuzzFrames(f *testing.F) {
	stream, _ := smallStream(f)
	for _, frame := range split(f, stream) {
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := frameReader{r: bufio.NewReader(bytes.NewReader(stream))}
		_, _, _ = r.data(nil)
		s := Reader{frames: frameReader{r: bufio.NewReader(bytes.NewReader(stream))}, options: ReaderOptions{Workers: 1}, whole: sha256.New()}
		_ = s.open()
		_, _ = decodeChunkRecord(stream)
		_, _ = decodeEndRecord(stream)
	})
}
