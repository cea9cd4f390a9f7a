package lvm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// spaceCheck is how often the space that is left is looked at while a stream is
// received.
const spaceCheck = time.Second

// Receive implements store.NativeReceiver. The blocks are written into a clone
// of the base, or an empty thin volume, which has the snapshot's name and the tag
// of what is half-made until the stream's end was seen and all of it is durable.
func (s *Store) Receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) (err error) {
	if kind != sendKind {
		return fmt.Errorf("snapshot %s: a %q stream: %w", snap, kind, store.ErrUnsupported)
	}
	target, err := lvOfSnapshot(snap)
	if err != nil {
		return err
	}
	if err := s.begin(ctx, target); err != nil {
		return err
	}
	if err := s.refuseFullGroup(ctx, target, groupReserve); err != nil {
		return err
	}
	var from *receiveBase
	if base != "" {
		if from, err = s.holdBase(ctx, base); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, from.release()) }()
	}
	if err := s.clearHalfMade(ctx, target, pointOfSnapshot(snap)); err != nil {
		return err
	}
	stream, err := newStreamReader(r)
	if err != nil {
		return fmt.Errorf("snapshot %s: receive: %w", snap, err)
	}
	if err := from.fits(stream.header); err != nil {
		return fmt.Errorf("snapshot %s: receive: %w", snap, err)
	}
	// Whoever collects what was left over must see that this is in work.
	held, err := s.points.Hold(pointOfSnapshot(snap), func(string) error { return nil })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, held.Release()) }()
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()
	clean := context.WithoutCancel(ctx)

	if err := s.opts.step("create"); err != nil {
		return err
	}
	if err := s.createTarget(clean, target, stream.header, from); err != nil {
		return err
	}
	undo.Add(func() error { return s.remove(clean, target) })
	if err := s.opts.step("receive"); err != nil {
		return err
	}
	if err := s.receiveInto(ctx, target, stream); err != nil {
		return fmt.Errorf("snapshot %s: receive: %w", snap, err)
	}
	if err := s.opts.step("make it read-only"); err != nil {
		return err
	}
	if err := s.deactivate(clean, target); err != nil {
		return err
	}
	if _, err := s.lvm(clean, "lvchange", "--permission", "r", s.full(target)); err != nil {
		return classify(target, target, err)
	}
	if err := s.opts.step("finish"); err != nil {
		return err
	}
	_, err = s.lvm(clean, "lvchange", "--deltag", tagNew, s.full(target))
	return classify(target, target, err)
}

// clearHalfMade removes what a process that was killed, or a machine that was
// reset, has begun under a name. ErrExists if it is not half-made, ErrInUse if
// somebody is at work on it.
func (s *Store) clearHalfMade(ctx context.Context, name lv, point string) error {
	found, err := s.lookUp(ctx, name)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	case !found.has("lv_tags", tagNew):
		return fmt.Errorf("%v: %w", name, store.ErrExists)
	}
	return s.destroy(ctx, name, point)
}

// receiveBase is the snapshot that a difference is received on.
type receiveBase struct {
	id      store.SnapshotID
	name    lv
	image   string
	size    int64
	release func() error
}

// holdBase keeps a snapshot from being destroyed.
func (s *Store) holdBase(ctx context.Context, id store.SnapshotID) (*receiveBase, error) {
	name, err := lvOfSnapshot(id)
	if err != nil {
		return nil, err
	}
	held, err := s.points.Hold(pointOfSnapshot(id), func(string) error { return nil })
	if err != nil {
		return nil, err
	}
	found, err := s.finished(ctx, name)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("base: %w", err), held.Release())
	}
	size, err := found.number("lv_size")
	if err != nil {
		return nil, errors.Join(err, held.Release())
	}
	return &receiveBase{id: id, name: name, image: imageOf(found), size: size, release: held.Release}, nil
}

// fits checks that a stream is one for this base, or for none.
func (b *receiveBase) fits(h streamHeader) error {
	switch {
	case b == nil && h.Base != "":
		return fmt.Errorf("%w: it is a difference, and no base was named", store.ErrBaseUnusable)
	case b == nil:
		return nil
	case h.Base == "":
		return fmt.Errorf("the stream is a whole snapshot, not a difference from %s", b.id)
	case h.Base != b.image:
		return fmt.Errorf("base %s: %w: its blocks are others than the sender's (%s, not %s)", b.id, store.ErrBaseUnusable, b.image, h.Base)
	case h.Size < b.size:
		return fmt.Errorf("base %s: %w: it is larger than what the stream is of", b.id, store.ErrBaseUnusable)
	}
	return nil
}

// createTarget makes the thin volume that is written to, and its device.
func (s *Store) createTarget(ctx context.Context, target lv, h streamHeader, from *receiveBase) error {
	tags := []string{"--addtag", tagNew, "--addtag", tagImage + h.Image}
	use := []string{"--setactivationskip", "y", "--activate", "y", "--ignoreactivationskip"}
	if from == nil {
		args := append([]string{"--yes", "--type", "thin", "--thinpool", s.pool, "--name", string(target),
			"--virtualsize", fmt.Sprintf("%db", h.Size), "--wipesignatures", "n"}, tags...)
		_, err := s.lvm(ctx, "lvcreate", append(append(args, use...), s.group)...)
		return classify(target, target, err)
	}
	args := append([]string{"--yes", "--snapshot", "--name", string(target), "--permission", "rw"}, tags...)
	// The base may have the sender's tag of an image, which a snapshot does not
	// inherit.
	if _, err := s.lvm(ctx, "lvcreate", append(append(args, use...), s.full(from.name))...); err != nil {
		return classify(target, target, err)
	}
	if h.Size == from.size {
		return nil
	}
	_, err := s.lvm(ctx, "lvextend", "--size", fmt.Sprintf("%db", h.Size), s.full(target))
	if err != nil {
		err = errors.Join(classify(target, target, err), s.remove(ctx, target))
	}
	return err
}

// receiveInto writes a stream to a device, all of it and durably.
func (s *Store) receiveInto(ctx context.Context, target lv, stream *streamReader) (err error) {
	ctx, stop := store.GuardSpace(ctx, s, spaceCheck)
	defer stop()
	file, err := os.OpenFile(s.node(target), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if size, err := file.Seek(0, io.SeekEnd); err != nil || size != stream.header.Size {
		return errors.Join(err, fmt.Errorf("the device has %d bytes, not %d", size, stream.header.Size))
	}
	w := blockWriter{file: file, chunk: s.chunk, size: stream.header.Size}
	for {
		offset, data, zeros, err := stream.next()
		if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && data != nil {
			err = w.write(offset, data)
		} else if err == nil {
			err = w.zero(offset, zeros)
		}
		if errors.Is(err, unix.ENOSPC) {
			err = fmt.Errorf("%w: %w", store.ErrNoSpace, err)
		}
		if err != nil {
			return err
		}
	}
	if err := file.Sync(); err != nil {
		return err
	}
	if fs, err := fileSystemOn(file.Name()); err != nil || fs != stream.header.FileSystem {
		return errors.Join(fmt.Errorf("the stream said that it is of a file system %s", stream.header.FileSystem), err)
	}
	return nil
}

// blockWriter writes to a thin device by whole chunks: the pool may leave what
// lay in a new chunk before, and what is not written of it would be that.
type blockWriter struct {
	file   *os.File
	chunk  int64
	size   int64
	buffer []byte
	keeps  bool // the pool does not take discards
}

func (w *blockWriter) write(offset int64, data []byte) error {
	return w.each(offset, int64(len(data)), func(at, n int64) error {
		part := data[at-offset : at-offset+n]
		if at%w.chunk == 0 && (n%w.chunk == 0 || at+n == w.size) {
			_, err := w.file.WriteAt(part, at)
			return err
		}
		return w.patch(at, n, func(p []byte) { copy(p, part) })
	})
}

func (w *blockWriter) zero(offset, length int64) error {
	begin := (offset + w.chunk - 1) / w.chunk * w.chunk
	end := (offset + length) / w.chunk * w.chunk
	if begin < end && !w.keeps {
		// Whole chunks are given back, and read as zeros.
		err := discard(w.file, begin, end-begin)
		switch {
		case err == nil:
			if err := w.clear(offset, begin-offset); err != nil {
				return err
			}
			return w.clear(end, offset+length-end)
		case !errors.Is(err, unix.EOPNOTSUPP):
			return &os.PathError{Op: "discard", Path: w.file.Name(), Err: err}
		}
		w.keeps = true
	}
	return w.clear(offset, length)
}

// clear writes zeros.
func (w *blockWriter) clear(offset, length int64) error {
	return w.each(offset, length, func(at, n int64) error {
		return w.patch(at, n, func(p []byte) { clear(p) })
	})
}

// each calls do for a range, split so that each part is whole chunks or lies
// within one.
func (w *blockWriter) each(offset, length int64, do func(at, n int64) error) error {
	for at, end := offset, offset+length; at < end; {
		n := min(end-at, w.chunk-at%w.chunk)
		if at%w.chunk == 0 && end-at >= w.chunk {
			n = min((end-at)/w.chunk*w.chunk, max(w.chunk, maxData/w.chunk*w.chunk))
		}
		if err := do(at, n); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// patch changes a part of chunks that lie beside each other, and writes all of
// them.
func (w *blockWriter) patch(at, n int64, change func(p []byte)) error {
	begin := at / w.chunk * w.chunk
	end := min((at+n+w.chunk-1)/w.chunk*w.chunk, w.size)
	if int64(cap(w.buffer)) < end-begin {
		w.buffer = make([]byte, end-begin)
	}
	whole := w.buffer[:end-begin]
	if _, err := w.file.ReadAt(whole, begin); err != nil {
		return err
	}
	change(whole[at-begin : at-begin+n])
	_, err := w.file.WriteAt(whole, begin)
	return err
}

// discard is ioctl BLKDISCARD.
func discard(device *os.File, offset, length int64) error {
	bytes := [2]uint64{uint64(offset), uint64(length)}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), unix.BLKDISCARD, uintptr(unsafe.Pointer(&bytes)))
	if errno != 0 {
		return errno
	}
	return nil
}
