package btrfs

import (
	"context"
	"fmt"
	"io"
	"sync"

	"sidus/image/store"
	"sidus/image/tool"
)

// sendKind is the name of what btrfs-send(8) writes.
const sendKind = "btrfs"

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
	sender := &sender{store: s, snap: snap}
	defer func() {
		if err != nil {
			sender.release()
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
	if sender.Stream, err = tool.Start(ctx, tool.Options{Log: s.opts.Log}, 0, "btrfs", args...); err != nil {
		return nil, fmt.Errorf("snapshot %s: send: %w", snap, err)
	}
	return sender, nil
}

// sender is a running btrfs send.
type sender struct {
	*tool.Stream
	store *Store
	snap  store.SnapshotID
	held  []store.Mount
	once  sync.Once
}

// Read implements io.Reader.
func (r *sender) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	if err != nil && err != io.EOF {
		err = fmt.Errorf("snapshot %s: send: %w", r.snap, err)
	}
	return n, err
}

// Close ends the program, if it has not ended. It returns how it failed, unless
// Close itself was the reason.
func (r *sender) Close() error {
	err := r.Stream.Close()
	r.once.Do(r.release)
	if err != nil {
		err = fmt.Errorf("snapshot %s: send: %w", r.snap, err)
	}
	return err
}

func (r *sender) release() {
	for _, held := range r.held {
		if err := held.Unmount(context.Background()); err != nil {
			r.store.opts.Log.WithError(err).Warn("a snapshot that was sent stays locked")
		}
	}
	r.held = nil
}
