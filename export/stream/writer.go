package stream

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"

	"github.com/klauspost/compress/zstd"

	"sidus/export/internal/processors"
)

// WriterOptions say how a stream is written. The zero value is good.
type WriterOptions struct {
	// Level is how hard the payload is compressed; 0 means DefaultLevel.
	Level Level
	// Workers is the number of chunks that are compressed at the same time;
	// 0 means one for each processor. Each takes about 60 MB, and two chunks more on their way.
	Workers int
	// Progress is called after each chunk that was written; nil means no
	// calls. Calls do not overlap.
	Progress func(Progress)
}

// Progress tells how far the writing or reading of a stream has come, in bytes.
type Progress struct {
	Payload int64 // of the payload, uncompressed
	Stream  int64 // of the stream
	Total   int64 // of the payload, as the manifest guesses it; 0 if it does not
}

// Result says what was written or read.
type Result struct {
	Payload int64 // bytes of the payload, uncompressed
	Stream  int64 // bytes of the stream
	Chunks  int64
	Digest  string // the digest of the whole, in hexadecimal digits
	// Omitted are the paths of what a portable stream cannot hold: sockets.
	// Only the first 1,000 are listed; OmittedCount counts all.
	Omitted      []string
	OmittedCount int
}

// Writer writes a stream. What is written to it is the payload. It is used by
// one goroutine, and compresses in others.
type Writer struct {
	level    Level
	bench    *workbench
	free     chan *job // not in use
	todo     chan *job // to be compressed
	ordered  chan *job // to be written, in order
	current  *job      // being filled; nil if none is
	workers  sync.WaitGroup
	finished chan struct{} // the flusher has ended
	stop     chan struct{} // closed when the flusher has failed or Abort was called
	stopOnce sync.Once
	closed   bool

	// Of the flusher until finished is closed.
	w        io.Writer
	progress func(Progress)
	total    int64
	whole    hash.Hash
	result   Result
	failed   error
}

// job is a chunk on its way.
type job struct {
	in   []byte // payload, up to chunkSize
	out  []byte // the frame, and that of the record
	sum  digest
	done chan struct{} // has one element when out and sum are there
}

// NewWriter begins a stream with its manifest. Close must be called, or Abort.
// Each Write to w is one Unit, or the end record.
func NewWriter(w io.Writer, m Manifest, o WriterOptions) (*Writer, error) {
	if o.Level == 0 {
		o.Level = DefaultLevel
	}
	if err := o.Level.validate(); err != nil {
		return nil, err
	}
	m.Format = Version
	text, err := m.encode()
	if err != nil {
		return nil, err
	}
	if o.Workers <= 0 {
		o.Workers = processors.Count()
	}
	bench, err := takeWorkbench(o.Level, o.Workers)
	if err != nil {
		return nil, err
	}
	s := &Writer{
		level: o.Level, w: w, progress: o.Progress, total: m.Size, whole: sha256.New(), bench: bench,
		free: make(chan *job, len(bench.jobs)), todo: make(chan *job, len(bench.jobs)), ordered: make(chan *job, len(bench.jobs)),
		finished: make(chan struct{}), stop: make(chan struct{}),
	}
	for _, j := range bench.jobs {
		s.free <- j
	}
	record := manifestRecord(text)
	s.whole.Write(record)
	if err := s.put(appendSkippable(nil, record)); err != nil {
		return nil, err
	}
	for _, encoder := range bench.encoders {
		s.workers.Go(func() { s.compress(encoder) })
	}
	go s.flush()
	return s, nil
}

func (s *Writer) put(p []byte) error {
	n, err := s.w.Write(p)
	s.result.Stream += int64(n)
	return err
}

func (s *Writer) compress(encoder *zstd.Encoder) {
	for j := range s.todo {
		if j.out == nil {
			j.out = make([]byte, 0, maxEncoded)
		}
		if s.level == Stored {
			j.out = appendStored(j.out[:0], j.in)
		} else {
			j.out = encoder.EncodeAll(j.in, j.out[:0])
		}
		j.sum = sha256.Sum256(j.out)
		j.done <- struct{}{}
	}
}

// flush writes chunks in order, until the end or a failure.
func (s *Writer) flush() {
	defer close(s.finished)
	for j := range s.ordered {
		<-j.done
		if s.failed == nil {
			if s.failed = s.write(j); s.failed != nil {
				s.halt()
			}
		}
		s.free <- j
	}
}

func (s *Writer) halt() { s.stopOnce.Do(func() { close(s.stop) }) }

func (s *Writer) write(j *job) error {
	record := chunkRecord{index: uint64(s.result.Chunks), length: uint32(len(j.in)), sum: j.sum}.encode()
	s.whole.Write(record)
	j.out = appendSkippable(j.out, record)
	if err := s.put(j.out); err != nil {
		return err
	}
	s.result.Chunks++
	s.result.Payload += int64(len(j.in))
	if s.progress != nil {
		s.progress(Progress{Payload: s.result.Payload, Stream: s.result.Stream, Total: s.total})
	}
	return nil
}

// errHalted stands for the flusher's error until that can be read.
var errHalted = errors.New("the stream is not written any more")

// room returns what can be written to of the current chunk: at least one byte.
func (s *Writer) room() ([]byte, error) {
	if s.closed {
		return nil, errHalted
	}
	if s.current == nil {
		select {
		case <-s.stop:
			return nil, s.failure()
		default:
		}
		select {
		case <-s.stop:
			return nil, s.failure()
		case s.current = <-s.free:
		}
		if s.current.in == nil {
			s.current.in = make([]byte, 0, chunkSize)
		}
		s.current.in = s.current.in[:0]
	}
	return s.current.in[len(s.current.in):chunkSize], nil
}

// filled says that n bytes of room were used.
func (s *Writer) filled(n int) {
	s.current.in = s.current.in[:len(s.current.in)+n]
	if len(s.current.in) == chunkSize {
		s.send()
	}
}

func (s *Writer) send() {
	j := s.current
	s.current = nil
	s.ordered <- j
	s.todo <- j
}

// failure waits for the goroutines and returns why the stream has halted.
func (s *Writer) failure() error {
	s.end()
	if s.failed == nil {
		return errHalted
	}
	return s.failed
}

// end waits until nothing runs any more.
func (s *Writer) end() {
	if s.closed {
		return
	}
	s.closed = true
	close(s.todo)
	close(s.ordered)
	s.workers.Wait()
	<-s.finished
	s.bench.giveBack()
	s.bench, s.current = nil, nil
}

// Write adds to the payload.
func (s *Writer) Write(p []byte) (n int, err error) {
	for n < len(p) {
		room, err := s.room()
		if err != nil {
			return n, err
		}
		k := copy(room, p[n:])
		s.filled(k)
		n += k
	}
	return n, nil
}

// ReadFrom adds all that r yields to the payload, without another copy.
func (s *Writer) ReadFrom(r io.Reader) (n int64, err error) {
	for idle := 0; ; {
		room, err := s.room()
		if err != nil {
			return n, err
		}
		k, err := r.Read(room)
		if k > 0 {
			s.filled(k)
			n, idle = n+int64(k), 0
		} else if idle++; idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
		if errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, err
		}
	}
}

// Close ends the stream: only now is it whole.
func (s *Writer) Close() (Result, error) {
	if s.closed {
		return s.result, s.failure()
	}
	if s.current != nil && len(s.current.in) > 0 {
		s.send()
	}
	s.end()
	if s.failed != nil {
		return s.result, s.failed
	}
	end := endRecord{chunks: uint64(s.result.Chunks), length: uint64(s.result.Payload), sum: digest(s.whole.Sum(nil))}
	s.result.Digest = fmt.Sprintf("%x", end.sum)
	s.failed = s.put(appendSkippable(nil, end.encode()))
	return s.result, s.failed
}

// Abort ends the work and leaves the stream cut off. After Close it does
// nothing.
func (s *Writer) Abort() {
	s.halt()
	s.end()
}
