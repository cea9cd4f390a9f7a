package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/tool"
)

// spaceCheck is how often the space that is left is looked at while a stream is
// received.
const spaceCheck = 500 * time.Millisecond

// Receive implements store.NativeReceiver by btrfs-receive(8).
//
// The program makes its subvolume, bit by bit, in a subvolume that List shows
// as a partial snapshot. When that is whole, a snapshot of it gets the name, in
// one transaction of the kernel. (It cannot be moved: a read-only subvolume
// stays in its folder.) The UUID by which later differences name it is kept.
func (s *Store) Receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) (err error) {
	if kind != sendKind {
		return fmt.Errorf("snapshot %s: a %q stream: %w", snap, kind, store.ErrUnsupported)
	}
	target, err := itemOfSnapshot(snap)
	if err != nil {
		return err
	}
	if base != "" {
		held, err := s.MountSnapshot(ctx, base)
		if err != nil {
			return fmt.Errorf("base: %w", err)
		}
		defer func() { err = errors.Join(err, held.Unmount(context.WithoutCancel(ctx))) }()
	}
	if err := s.begin(ctx, target); err != nil {
		return err
	}
	dir, err := s.openDir(target)
	if err != nil {
		return err
	}
	defer dir.Close()
	undo := backend.Undo{Log: s.opts.Log}
	defer func() { undo.Unwind(&err) }()

	if err := s.opts.step("create subvolume"); err != nil {
		return err
	}
	if err := subvolCreate(dir, filepath.Base(target.newPath())); err != nil {
		return classify(target, "create", err)
	}
	undo.Add(func() error { return s.discard(target) })
	if err := s.receiveInto(ctx, target, r, base); err != nil {
		return err
	}
	root, err := s.received(target)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := s.opts.step("snapshot"); err != nil {
		return err
	}
	if err := subvolSnapshot(root, dir, target.id, true); err != nil {
		return classify(target, "name", err)
	}
	undo.Add(func() error { return subvolDestroy(dir, target.id) })
	// A partial snapshot beside the whole one would say that this was cut.
	if err := s.opts.step("clean up"); err != nil {
		return err
	}
	if err := root.Close(); err != nil {
		return classify(target, "close", err)
	}
	return s.discard(target)
}

// discard destroys what a snapshot was received into, if it is there.
func (s *Store) discard(target item) error {
	for _, path := range []string{target.newPath(), target.gonePath()} {
		if err := s.destroyAt(target, path); err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
	}
	// destroyAt leaves for later what it could remove in part only.
	if _, err := os.Lstat(s.path(target.gonePath())); err == nil {
		return fmt.Errorf("%v: what it was received into cannot be removed: %w", target, store.ErrInUse)
	}
	return nil
}

// receiveInto runs btrfs receive until r has said io.EOF and the program has
// ended well.
func (s *Store) receiveInto(ctx context.Context, target item, r io.Reader, base store.SnapshotID) error {
	if err := s.opts.step("receive"); err != nil {
		return err
	}
	// Whoever collects what was left over must see that this is in work.
	locked, err := s.lockItem(target, target.newPath(), unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer locked.Close()
	ctx, stop := store.GuardSpace(ctx, s, spaceCheck)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	input := &source{r: r, failed: cancel}
	err = tool.Run(ctx, tool.Options{Stdin: input, Log: s.opts.Log}, "btrfs", "receive", s.path(target.newPath()))
	switch text := tool.StderrOf(err); {
	case input.err != nil:
		return fmt.Errorf("%v: receive: %w", target, input.err)
	case err == nil:
	case strings.Contains(text, "cannot find parent subvolume"), strings.Contains(text, "clone source subvol"):
		return fmt.Errorf("%v: receive: %w (base %s): %w", target, store.ErrBaseUnusable, base, err)
	case strings.Contains(text, "No space left on device"):
		return fmt.Errorf("%v: receive: %w: %w", target, store.ErrNoSpace, err)
	default:
		return fmt.Errorf("%v: receive: %w", target, err)
	}
	left, err := io.Copy(io.Discard, input)
	if err == nil && left > 0 {
		err = fmt.Errorf("%d bytes follow the end of the btrfs stream", left)
	}
	if err != nil {
		return fmt.Errorf("%v: receive: %w", target, err)
	}
	return nil
}

// source ends the program that reads from it when reading fails: an end of its
// input might look like a good one.
type source struct {
	r      io.Reader
	err    error
	failed context.CancelCauseFunc
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
		s.failed(err)
	}
	return n, err
}

// received opens what btrfs receive has made, and checks that it is one whole
// subvolume.
func (s *Store) received(target item) (*os.File, error) {
	outer, err := s.openItem(target, target.newPath())
	if err != nil {
		return nil, err
	}
	defer outer.Close()
	children, err := subvolChildren(outer)
	if err != nil {
		return nil, classify(target, "look for what was received", err)
	}
	if len(children) != 1 {
		return nil, fmt.Errorf("%v: receive: the stream holds %d subvolumes instead of one", target, len(children))
	}
	root, err := openIn(outer, children[0])
	if err != nil {
		return nil, classify(target, "open what was received", err)
	}
	var info subvolInfo
	if err = ioctl(root, ioc(iocRead, 60, unsafe.Sizeof(info)), unsafe.Pointer(&info)); err == nil {
		if info.receivedUUID == [16]byte{} || info.flags&1 == 0 {
			err = errors.New("the stream has no end")
		}
	}
	if err != nil {
		_ = root.Close()
		return nil, classify(target, "receive", err)
	}
	return root, nil
}
