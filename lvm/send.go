package lvm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"sidus/image/store"
)

// sendKind is the name of a block stream among the kinds of streams.
const sendKind = "lvm"

// grain is what blocks are compared by, in bytes: that of the file systems.
const grain = 4 << 10

var (
	_ store.NativeSender   = (*Store)(nil)
	_ store.NativeReceiver = (*Store)(nil)
)

// SendKind implements store.NativeSender.
func (s *Store) SendKind() string { return sendKind }

// tagImage begins the tag of a snapshot that was received: the image follows.
const tagImage = "sidus.image."

// imageOf names the blocks of a snapshot: where it was taken, the UUID of its
// logical volume, and what was received keeps the sender's. So servers can
// exchange differences in every direction, and one that has the same snapshot by
// a portable stream, with the same files in other blocks, is told apart.
func imageOf(r row) string {
	for tag := range strings.SplitSeq(r["lv_tags"], ",") {
		if image, ok := strings.CutPrefix(tag, tagImage); ok {
			return image
		}
	}
	return r["lv_uuid"]
}

// validImage tells whether a name is a UUID of LVM's.
func validImage(text string) bool {
	if len(text) != 38 {
		return false
	}
	for i := range len(text) {
		c := text[i]
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// Send implements store.NativeSender. The thin pool's metadata tells which parts
// of the device are other blocks than those of base; of these, what differs is
// sent.
func (s *Store) Send(ctx context.Context, snap, base store.SnapshotID) (_ io.ReadCloser, err error) {
	out := &sender{store: s, done: make(chan struct{})}
	defer func() {
		if err != nil {
			out.release()
		}
	}()
	source, err := s.openSource(ctx, out, snap)
	if err != nil {
		return nil, err
	}
	var from *thinDevice
	if base != "" {
		if from, err = s.openSource(ctx, out, base); err != nil {
			return nil, err
		}
	}
	header := streamHeader{Size: source.size, Image: source.image}
	if header.FileSystem, err = fileSystemOn(source.file.Name()); err != nil {
		return nil, fmt.Errorf("snapshot %s: %w: %w", snap, store.ErrUnavailable, err)
	}
	thin := ""
	if from != nil {
		header.Base, thin = from.image, from.thin
	}
	changed, err := s.changedExtents(ctx, source.thin, thin)
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: send: %w", snap, err)
	}
	reader, writer := io.Pipe()
	out.pipe = reader
	ctx, out.cancel = context.WithCancelCause(ctx)
	go func() {
		defer close(out.done)
		// A reader that waits is told at once.
		stop := context.AfterFunc(ctx, func() { writer.CloseWithError(context.Cause(ctx)) })
		defer stop()
		err := writeBlocks(ctx, writer, header, source, from, changed)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			out.failed = fmt.Errorf("snapshot %s: send: %w", snap, err)
		}
		writer.CloseWithError(out.failed) // nil is io.EOF
	}()
	return out, nil
}

// thinDevice is a snapshot that is read.
type thinDevice struct {
	file  *os.File
	size  int64
	thin  string // the thin device's ID
	image string
}

// openSource mounts a snapshot, which holds it and makes its device, and opens
// the device.
func (s *Store) openSource(ctx context.Context, out *sender, id store.SnapshotID) (*thinDevice, error) {
	name, err := lvOfSnapshot(id)
	if err != nil {
		return nil, err
	}
	held, err := s.MountSnapshot(ctx, id)
	if err != nil {
		return nil, err
	}
	out.held = append(out.held, held)
	found, err := s.finished(ctx, name)
	if err != nil {
		return nil, err
	}
	size, err := found.number("lv_size")
	if err != nil {
		return nil, err
	}
	file, err := os.Open(s.node(name))
	if err != nil {
		return nil, fmt.Errorf("snapshot %s: %w", id, err)
	}
	out.files = append(out.files, file)
	return &thinDevice{file: file, size: size, thin: found["thin_id"], image: imageOf(found)}, nil
}

// writeBlocks writes a stream of what changed.
func writeBlocks(ctx context.Context, w io.Writer, h streamHeader, snap, base *thinDevice, changed extents) error {
	stream, err := newStreamWriter(w, h)
	if err != nil {
		return err
	}
	now, before := make([]byte, maxData), []byte(nil)
	if base != nil {
		before = make([]byte, maxData)
	}
	err = changed.each(func(e extent) error {
		end := min(e.offset+e.length, h.Size)
		if e.gone {
			if e.offset < end {
				return stream.zeros(e.offset, end-e.offset)
			}
			return nil
		}
		for offset := e.offset; offset < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(maxData, end-offset)
			if err := readBlocks(snap.file, now[:n], offset); err != nil {
				return err
			}
			if base != nil {
				clear(before[:n])
				if inBase := min(n, base.size-offset); inBase > 0 {
					if err := readBlocks(base.file, before[:inBase], offset); err != nil {
						return err
					}
				}
			}
			if err := writeRuns(stream, offset, now[:n], before); err != nil {
				return err
			}
			offset += n
		}
		return nil
	})
	if err != nil {
		return err
	}
	return stream.end()
}

func readBlocks(file *os.File, p []byte, offset int64) error {
	if _, err := file.ReadAt(p, offset); err != nil {
		return fmt.Errorf("read %s: %w: %w", file.Name(), store.ErrUnavailable, err)
	}
	return nil
}

var zeroGrain [grain]byte

// writeRuns writes what differs from before, grain by grain; before is nil for
// zeros.
func writeRuns(stream *streamWriter, offset int64, now, before []byte) error {
	const same, zero, data = 0, 1, 2
	kind := func(at int) int {
		to := min(at+grain, len(now))
		isZero := bytes.Equal(now[at:to], zeroGrain[:to-at])
		switch {
		case before == nil && isZero, before != nil && bytes.Equal(now[at:to], before[at:to]):
			return same
		case isZero:
			return zero
		}
		return data
	}
	for at := 0; at < len(now); {
		k, end := kind(at), min(at+grain, len(now))
		for end < len(now) && kind(end) == k {
			end = min(end+grain, len(now))
		}
		var err error
		switch k {
		case zero:
			err = stream.zeros(offset+int64(at), int64(end-at))
		case data:
			err = stream.data(offset+int64(at), now[at:end])
		}
		if err != nil {
			return err
		}
		at = end
	}
	return nil
}

// sender is a stream that is being written.
type sender struct {
	store  *Store
	held   []store.Mount
	files  []*os.File
	pipe   *io.PipeReader
	cancel context.CancelCauseFunc
	done   chan struct{} // closed when nothing is written any more
	failed error         // how it ended, after done
	once   sync.Once
}

// Read implements io.Reader: io.EOF comes after the end of the stream only.
func (r *sender) Read(p []byte) (int, error) { return r.pipe.Read(p) }

var errSendClosed = errors.New("the stream was closed")

// Close ends the work, if it has not ended. It returns how it failed, unless
// Close itself was the reason.
func (r *sender) Close() error {
	r.once.Do(func() {
		r.cancel(errSendClosed)
		_ = r.pipe.CloseWithError(errSendClosed)
		<-r.done
		r.release()
	})
	if errors.Is(r.failed, errSendClosed) {
		return nil
	}
	return r.failed
}

func (r *sender) release() {
	for _, file := range r.files {
		_ = file.Close()
	}
	for _, held := range r.held {
		if err := held.Unmount(context.Background()); err != nil {
			r.store.opts.Log.WithError(err).Warn("a snapshot that was sent stays mounted")
		}
	}
	r.files, r.held = nil, nil
}
