package stream

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"sidus/export/internal/processors"
)

// ReaderOptions say how a stream is read. The zero value is good.
type ReaderOptions struct {
	// More says that something else may follow the stream in what it is read
	// from, which must then be a *bufio.Reader of at least 64 KiB: it is left
	// at the first byte after the stream. Without it, more is ErrDamaged.
	More bool
	// Workers is the number of chunks that are decompressed at the same time;
	// 0 means one for each processor. Each takes about 50 MB, and at most
	// 100 MB if the stream has larger chunks than this package writes.
	Workers int
	// Progress is called after each chunk that was passed on; nil means no
	// calls. Calls do not overlap.
	Progress func(Progress)
}

// Reader reads a stream. It is used by one goroutine.
type Reader struct {
	manifest Manifest
	options  ReaderOptions
	frames   frameReader
	whole    hash.Hash
	decoders chan *zstd.Decoder
	free     []*piece
	queue    []*piece // chunks on their way, in order
	head     []byte   // what is left of the chunk that is passed on
	holder   *piece   // whose buffer head is in
	next     uint64   // index of the next chunk to be read
	length   uint64   // of the payload, as far as it was read
	ended    bool     // the end record was read
	failed   error    // io.EOF after the end
	result   Result
}

// piece is a chunk on its way.
type piece struct {
	frame  []byte
	chunk  []byte
	record chunkRecord
	stream int64
	err    error
	done   chan struct{}
}

const readAhead = 64 << 10

// Open reads the manifest of a stream. The error wraps ErrForeign, ErrVersion,
// ErrTruncated, ErrDamaged or ErrManifest, or is that of r.
func Open(r io.Reader, o ReaderOptions) (*Reader, error) {
	if o.Workers <= 0 {
		o.Workers = processors.Count()
	}
	s := &Reader{options: o, whole: sha256.New()}
	if o.More {
		buffered := bufio.NewReaderSize(r, readAhead)
		if io.Reader(buffered) != r {
			return nil, errors.New("stream.Open: ReaderOptions.More takes a *bufio.Reader of at least 64 KiB")
		}
		s.frames.r = buffered
	} else {
		s.frames.r = bufio.NewReaderSize(r, readAhead)
	}
	if err := s.open(); err != nil {
		return nil, err
	}
	s.decoders = make(chan *zstd.Decoder, o.Workers)
	for range o.Workers {
		decoder, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1),
			zstd.WithDecoderMaxMemory(maxChunk), zstd.WithDecoderMaxWindow(maxChunk))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		s.decoders <- decoder
	}
	return s, nil
}

func (s *Reader) open() error {
	magic, err := s.frames.magic()
	switch {
	case errors.Is(err, ErrTruncated):
		return fmt.Errorf("%w: it has less than four bytes", ErrForeign)
	case err != nil:
		return err
	case magic == 0:
		return fmt.Errorf("%w: it is empty, or begins with zeros", ErrForeign)
	case magic == dataMagic:
		return fmt.Errorf("%w: it is zstd without a manifest (an archive: import --tar takes one)", ErrForeign)
	case magic != skipMagic:
		return fmt.Errorf("%w: it begins with %08x", ErrForeign, magic)
	}
	head, err := s.frames.r.Peek(8 + tagSize)
	if err != nil {
		return cut(err)
	}
	if string(head[8:]) != tagManifest {
		return fmt.Errorf("%w: it begins with a zstd frame of something else", ErrForeign)
	}
	record, err := s.frames.skippable(tagSize + digestSize + maxManifest)
	if err != nil {
		return err
	}
	if len(record) < tagSize+digestSize {
		return fmt.Errorf("%w: the manifest has no digest", ErrDamaged)
	}
	text := record[tagSize+digestSize:]
	if sum := sha256.Sum256(text); !bytes.Equal(sum[:], record[tagSize:tagSize+digestSize]) {
		return fmt.Errorf("%w: the manifest's digest is wrong", ErrDamaged)
	}
	s.whole.Write(record)
	s.manifest, err = decodeManifest(text)
	return err
}

// Manifest says what the stream holds. It is the sender's word: the end of the
// payload tells whether all of the stream is as it was written.
func (s *Reader) Manifest() Manifest { return s.manifest }

// Result says what was read so far.
func (s *Reader) Result() Result { return s.result }

// Read reads the payload. It yields a byte of a chunk when the whole chunk is
// right, and io.EOF when the whole stream is. Any other error is final, and
// nothing of what was read may then be used.
func (s *Reader) Read(p []byte) (int, error) {
	for len(s.head) == 0 {
		if err := s.advance(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.head)
	s.head = s.head[n:]
	return n, nil
}

// WriteTo writes the rest of the payload to w. It returns nil when the whole
// stream is right.
func (s *Reader) WriteTo(w io.Writer) (n int64, err error) {
	for {
		for len(s.head) == 0 {
			if err := s.advance(); errors.Is(err, io.EOF) {
				return n, nil
			} else if err != nil {
				return n, err
			}
		}
		k, err := w.Write(s.head)
		n += int64(k)
		s.head = s.head[k:]
		if err != nil {
			return n, err
		}
	}
}

// advance gets the next chunk.
func (s *Reader) advance() error {
	if s.failed != nil {
		return s.failed
	}
	if s.holder != nil {
		s.free = append(s.free, s.holder)
		s.holder = nil
	}
	for !s.ended && len(s.queue) <= s.options.Workers {
		if err := s.fetch(); err != nil {
			// Chunks before the place that is bad are not passed on: nothing
			// would come of it.
			return s.fail(err)
		}
	}
	if len(s.queue) == 0 {
		return s.fail(io.EOF)
	}
	piece := s.queue[0]
	s.queue = append(s.queue[:0], s.queue[1:]...)
	<-piece.done
	if piece.err != nil {
		return s.fail(piece.err)
	}
	s.holder, s.head = piece, piece.chunk
	s.result.Chunks++
	s.result.Payload += int64(len(piece.chunk))
	if !s.ended {
		s.result.Stream = piece.stream
	}
	if s.options.Progress != nil {
		s.options.Progress(Progress{Payload: s.result.Payload, Stream: piece.stream, Total: s.manifest.Size})
	}
	return nil
}

// fail notes the end of the reading, and waits for what runs.
func (s *Reader) fail(err error) error {
	s.failed = err
	for _, piece := range s.queue {
		<-piece.done
	}
	s.queue, s.free, s.head, s.decoders = nil, nil, nil, nil
	return err
}

// fetch reads the next chunk or the end.
func (s *Reader) fetch() error {
	magic, err := s.frames.magic()
	switch {
	case err != nil:
		return err
	case magic == 0:
		return fmt.Errorf("%w: it ends after chunk %d", ErrTruncated, s.next)
	case magic == skipMagic:
		return s.end()
	case magic != dataMagic:
		return fmt.Errorf("%w: after chunk %d comes %08x", ErrDamaged, s.next, magic)
	}
	var p *piece
	if n := len(s.free); n > 0 {
		p, s.free = s.free[n-1], s.free[:n-1]
	} else {
		p = &piece{done: make(chan struct{}, 1)}
	}
	var told int64
	if p.frame, told, err = s.frames.data(p.frame); err != nil {
		return fmt.Errorf("chunk %d: %w", s.next, err)
	}
	record, err := s.frames.skippable(chunkRecordSize)
	if err != nil {
		return fmt.Errorf("chunk %d: digest: %w", s.next, err)
	}
	if p.record, err = decodeChunkRecord(record); err != nil {
		return fmt.Errorf("chunk %d: %w", s.next, err)
	}
	length := p.record.length
	if p.record.index != s.next || length == 0 || length > maxChunk || told >= 0 && told != int64(length) {
		return fmt.Errorf("%w: chunk %d is said to be chunk %d of %d bytes", ErrDamaged, s.next, p.record.index, length)
	}
	s.whole.Write(record)
	s.next++
	s.length += uint64(length)
	p.stream, p.err = s.frames.n, nil
	s.queue = append(s.queue, p)
	go s.decode(p)
	return nil
}

func (s *Reader) decode(p *piece) {
	defer func() { p.done <- struct{}{} }()
	decoders := s.decoders
	decoder := <-decoders
	defer func() { decoders <- decoder }()
	if sha256.Sum256(p.frame) != p.record.sum {
		p.err = fmt.Errorf("chunk %d: %w: its digest is wrong", p.record.index, ErrDamaged)
		return
	}
	if cap(p.chunk) < int(p.record.length) {
		p.chunk = make([]byte, 0, sizeClass(uint64(p.record.length)))
	}
	var err error
	if p.chunk, err = decoder.DecodeAll(p.frame, p.chunk[:0]); err != nil {
		p.err = fmt.Errorf("chunk %d: %w: %w", p.record.index, ErrDamaged, err)
	} else if len(p.chunk) != int(p.record.length) {
		p.err = fmt.Errorf("chunk %d: %w: it has %d bytes instead of %d", p.record.index, ErrDamaged, len(p.chunk), p.record.length)
	}
}

// end reads the last record and compares it with what was read.
func (s *Reader) end() error {
	record, err := s.frames.skippable(endRecordSize)
	if err != nil {
		return fmt.Errorf("the last record: %w", err)
	}
	end, err := decodeEndRecord(record)
	if err != nil {
		return err
	}
	if end.chunks != s.next || end.length != s.length || end.sum != digest(s.whole.Sum(nil)) {
		return fmt.Errorf("%w: the digest of the whole is wrong", ErrDamaged)
	}
	if !s.options.More {
		if magic, err := s.frames.magic(); err != nil || magic != 0 || s.frames.r.Buffered() > 0 {
			if err != nil && !errors.Is(err, ErrTruncated) {
				return err
			}
			return fmt.Errorf("%w: something follows its end", ErrDamaged)
		}
	}
	s.result.Stream = s.frames.n
	s.ended = true
	s.result.Digest = fmt.Sprintf("%x", end.sum)
	return nil
}
