package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/tool"
)

// sendKind is the name of what btrfs-send(8) writes.
const sendKind = "btrfs"

// pipeSize is that of the pipe that btrfs send writes to, in bytes: the larger
// it is, the less often the two sides wait for each other.
const pipeSize = 1 << 20

var (
	_ store.NativeSender   = (*Store)(nil)
	_ store.NativeReceiver = (*Store)(nil)
)

// SendKind implements store.NativeSender.
func (s *Store) SendKind() string { return sendKind }

// Send implements store.NativeSender by btrfs-send(8). Data is sent as it reads,
// not as it is compressed in the store: so it shrinks further, and any version
// of btrfs receive takes it (protocol 1).
//
// A difference names its base by UUID: the one that the base got where it was
// made. Receive keeps it, so that servers can exchange differences in both
// directions, although inode numbers and change times are not the same there.
func (s *Store) Send(ctx context.Context, snap, base store.SnapshotID) (_ io.ReadCloser, err error) {
	sender := &sender{done: make(chan struct{})}
	defer func() {
		if err != nil {
			sender.release(s)
		}
	}()
	args := []string{"send", "-q"}
	for _, id := range []store.SnapshotID{base, snap} {
		if id == "" && id == base {
			continue
		}
		held, err := s.MountSnapshot(ctx, id)
		if err != nil {
			return nil, err
		}
		sender.held = append(sender.held, held)
		if id == base {
			args = append(args, "-p", held.Path())
		} else {
			args = append(args, held.Path())
		}
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: send: %w", snap, err)
	}
	if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		s.opts.Log.WithError(err).Debug("the pipe keeps its size")
	}
	sender.pipe = reader
	ctx, sender.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(sender.done)
		// This process holds the pipe open until the other has ended: its
		// reader sees no end before.
		defer func() { _ = writer.Close() }()
		if err := tool.Run(ctx, tool.Options{Stdout: writer, Log: s.opts.Log}, "btrfs", args...); err != nil {
			sender.failed = fmt.Errorf("snapshot %s: send: %w", snap, err)
		}
	}()
	sender.store = s
	return sender, nil
}

// sender is a running btrfs send.
type sender struct {
	store  *Store
	held   []store.Mount
	pipe   *os.File
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the program has ended
	failed error         // how it ended, after done
	once   sync.Once
}

// Read implements io.Reader: io.EOF comes after exit status 0 only.
func (r *sender) Read(p []byte) (int, error) {
	n, err := r.pipe.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if !errors.Is(err, io.EOF) {
		return 0, err
	}
	<-r.done
	if r.failed != nil {
		return 0, r.failed
	}
	return 0, io.EOF
}

var errSendClosed = errors.New("the stream was closed")

// Close ends the program, if it has not ended. It returns how it failed, unless
// Close itself was the reason.
func (r *sender) Close() error {
	r.once.Do(func() {
		r.cancel(errSendClosed)
		_ = r.pipe.Close()
		<-r.done
		r.release(r.store)
	})
	if errors.Is(r.failed, errSendClosed) {
		return nil
	}
	return r.failed
}

func (r *sender) release(s *Store) {
	for _, held := range r.held {
		if err := held.Unmount(context.Background()); err != nil {
			s.opts.Log.WithError(err).Warn("a snapshot that was sent stays locked")
		}
	}
	r.held = nil
}
