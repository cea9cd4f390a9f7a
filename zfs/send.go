package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/mountpoint"
	"sidus/image/tool"
)

// sendKind is the name of what zfs-send(8) writes.
const sendKind = "zfs"

// pipeSize is that of the pipes between this process and zfs, in bytes: the
// larger it is, the less often the two sides wait for each other.
const pipeSize = 1 << 20

var (
	_ store.NativeSender     = (*Store)(nil)
	_ store.NativeReceiver   = (*Store)(nil)
	_ store.CompressedSender = (*Store)(nil)
)

// SendKind implements store.NativeSender.
func (s *Store) SendKind() string { return sendKind }

// Send implements store.NativeSender by zfs-send(8): with large blocks (-L) and
// embedded data (-e), and raw (-w) if the snapshot is encrypted, so that what
// is secret here is secret on the way and there. Else data is sent as it reads,
// and shrinks further when the stream is compressed.
//
// A base must be among the ancestors of the snapshot; ErrBaseUnusable if it is
// not.
func (s *Store) Send(ctx context.Context, snap, base store.SnapshotID) (io.ReadCloser, error) {
	return s.send(ctx, snap, base, false)
}

// SendCompressed implements store.CompressedSender: blocks stay as they are
// compressed in the pool (-c).
func (s *Store) SendCompressed(ctx context.Context, snap, base store.SnapshotID) (io.ReadCloser, error) {
	return s.send(ctx, snap, base, true)
}

func (s *Store) send(ctx context.Context, snap, base store.SnapshotID, compressed bool) (_ io.ReadCloser, err error) {
	r := &sender{store: s, snap: snap, done: make(chan struct{})}
	defer func() {
		if err != nil {
			r.release()
		}
	}()
	var names []dataset
	encrypted := false
	for _, id := range []store.SnapshotID{base, snap} {
		if id == "" && id == base {
			continue
		}
		d, found, err := s.use(ctx, r, id)
		if err != nil {
			return nil, err
		}
		names = append(names, d)
		encrypted = found["encryption"].value != "off" && found["encryption"].value != "-"
	}
	if r.hold, err = s.holdAll(ctx, names); err != nil {
		return nil, err
	}
	args := []string{"send", "-L", "-e"}
	switch {
	case encrypted:
		args = []string{"send", "-w"}
	case compressed:
		args = append(args, "-c")
	}
	if base != "" {
		args = append(args, "-i", string(names[0]))
	}
	return r, r.start(ctx, append(args, string(names[len(names)-1])))
}

// use finds a snapshot and keeps Destroy away from it until r is closed. It is
// not mounted: what is encrypted can be sent without its key.
func (s *Store) use(ctx context.Context, r *sender, id store.SnapshotID) (dataset, map[string]property, error) {
	if err := id.Validate(); err != nil {
		return "", nil, err
	}
	held, err := s.points.Hold(pointOfSnapshot(id), func(string) error { return nil })
	if err != nil {
		return "", nil, err
	}
	r.held = append(r.held, held)
	return s.find(ctx, id)
}

// sender is a running zfs send.
type sender struct {
	store  *Store
	snap   store.SnapshotID
	held   []*mountpoint.Held
	hold   *holding
	pipe   *os.File
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when the program has ended
	failed error         // how it ended, after done
	once   sync.Once
	closed error
}

// start runs zfs.
func (r *sender) start(ctx context.Context, args []string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("snapshot %s: send: %w", r.snap, err)
	}
	if _, err := unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		r.store.opts.Log.WithError(err).Debug("the pipe keeps its size")
	}
	r.pipe = reader
	ctx, r.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(r.done)
		// This process holds the pipe open until the other has ended: its
		// reader sees no end before.
		defer func() { _ = writer.Close() }()
		err := tool.Run(ctx, tool.Options{Stdout: writer, Log: r.store.opts.Log}, "zfs", args...)
		if err == nil {
			return
		}
		if strings.Contains(said(err), "not an earlier snapshot from the same fs") {
			err = fmt.Errorf("%w: %w", store.ErrBaseUnusable, err)
		}
		r.failed = classify(fmt.Sprintf("snapshot %s: send", r.snap), "", err)
	}()
	return nil
}

// Read implements io.Reader: io.EOF comes after exit status 0 only, and a zfs
// that says nothing for too long is given up.
func (r *sender) Read(p []byte) (int, error) {
	_ = r.pipe.SetReadDeadline(time.Now().Add(r.store.opts.Timeout))
	n, err := r.pipe.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, r.store.opts.hangs(fmt.Sprintf("snapshot %s: zfs send", r.snap))
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
// Close itself was the reason. The pipe is closed first: a zfs send that waits
// to write does not end before. One that hangs in the kernel is left behind.
func (r *sender) Close() error {
	r.once.Do(func() {
		r.cancel(errSendClosed)
		_ = r.pipe.Close()
		limit := time.NewTimer(r.store.opts.Timeout)
		defer limit.Stop()
		select {
		case <-r.done:
			if !errors.Is(r.failed, errSendClosed) {
				r.closed = r.failed
			}
		case <-limit.C:
			r.closed = r.store.opts.hangs(fmt.Sprintf("snapshot %s: zfs send", r.snap))
		}
		r.release()
	})
	return r.closed
}

func (r *sender) release() {
	if r.hold != nil {
		r.hold.release()
	}
	for _, held := range r.held {
		if err := held.Release(); err != nil {
			r.store.opts.Log.WithError(err).Warn("a snapshot that was sent stays locked")
		}
	}
	r.hold, r.held = nil, nil
}
