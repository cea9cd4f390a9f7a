package tool

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// PipeSize is that of the pipes to and from programs that move much data, in
// bytes: the larger it is, the less often the two sides wait for each other.
const PipeSize = 1 << 20

// Stream is the standard output of a program while it runs. It is not safe for
// concurrent use.
type Stream struct {
	idle   time.Duration
	pipe   *os.File
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the program has ended
	failed error         // how it ended, after done
	once   sync.Once
	closed error
}

// Start starts a program whose output is read from a Stream. The program ends
// with ctx, or when the Stream is closed. If idle is not zero, it is for how
// long the program may write nothing, and what Close waits for it.
func Start(ctx context.Context, o Options, idle time.Duration, name string, args ...string) (*Stream, error) {
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, PipeSize); err != nil && o.Log != nil {
		o.Log.WithError(err).Debug("the pipe keeps its size")
	}
	s := &Stream{idle: idle, pipe: reader, done: make(chan struct{})}
	ctx, s.cancel = context.WithCancelCause(ctx)
	o.Stdout = writer
	go func() {
		defer close(s.done)
		// This process holds the pipe open until the other has ended: its
		// reader sees no end before.
		defer func() { _ = writer.Close() }()
		s.failed = Run(ctx, o, name, args...)
	}()
	return s, nil
}

// Read implements io.Reader. io.EOF comes after exit status 0 only; else the
// error is that of Run, or wraps os.ErrDeadlineExceeded if the program wrote
// nothing for too long.
func (s *Stream) Read(p []byte) (int, error) {
	if s.idle > 0 {
		_ = s.pipe.SetReadDeadline(time.Now().Add(s.idle))
	}
	n, err := s.pipe.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) {
		return 0, err
	}
	<-s.done
	if s.failed != nil {
		return 0, s.failed
	}
	return 0, io.EOF
}

var errClosed = errors.New("the stream was closed")

// Close ends the program, if it has not ended. The error says how it failed,
// unless Close itself was the reason; it wraps os.ErrDeadlineExceeded if the
// program does not end: one that hangs in the kernel is left behind.
func (s *Stream) Close() error {
	s.once.Do(func() {
		s.cancel(errClosed)
		// First: a program that waits to write may not end before.
		_ = s.pipe.Close()
		var limit <-chan time.Time
		if s.idle > 0 {
			timer := time.NewTimer(s.idle)
			defer timer.Stop()
			limit = timer.C
		}
		select {
		case <-s.done:
			if !errors.Is(s.failed, errClosed) {
				s.closed = s.failed
			}
		case <-limit:
			s.closed = os.ErrDeadlineExceeded
		}
	})
	return s.closed
}
