package zfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"sidus/image/store"
	"sidus/image/store/mountpoint"
	"sidus/image/tool"
)

// sendKind is the name of what zfs-send(8) writes.
const sendKind = "zfs"

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
	r := &sender{store: s, snap: snap}
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
		encrypted = isEncrypted(found)
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

// Encrypted implements store.Encrypter.
func (s *Store) Encrypted(ctx context.Context, id store.SnapshotID) (bool, error) {
	if err := id.Validate(); err != nil {
		return false, err
	}
	_, found, err := s.find(ctx, id)
	return isEncrypted(found), err
}

func isEncrypted(found map[string]property) bool {
	kind := found["encryption"].value
	return kind != "" && kind != "off" && kind != "-"
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
	*tool.Stream
	store *Store
	snap  store.SnapshotID
	held  []*mountpoint.Held
	hold  *holding
	once  sync.Once
}

// start runs zfs.
func (r *sender) start(ctx context.Context, args []string) (err error) {
	r.Stream, err = tool.Start(ctx, tool.Options{Log: r.store.opts.Log}, r.store.opts.Timeout, "zfs", args...)
	return r.classify(err)
}

// Read implements io.Reader. A zfs that says nothing for too long is given up.
func (r *sender) Read(p []byte) (int, error) {
	n, err := r.Stream.Read(p)
	if err != nil && err != io.EOF {
		err = r.classify(err)
	}
	return n, err
}

// Close ends the program, if it has not ended. It returns how it failed, unless
// Close itself was the reason. One that hangs in the kernel is left behind.
func (r *sender) Close() error {
	err := r.Stream.Close()
	r.once.Do(r.release)
	return r.classify(err)
}

func (r *sender) classify(err error) error {
	what := fmt.Sprintf("snapshot %s: send", r.snap)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return r.store.opts.hangs(what)
	case strings.Contains(said(err), "not an earlier snapshot from the same fs"):
		err = fmt.Errorf("%w: %w", store.ErrBaseUnusable, err)
	}
	return classify(what, "", err)
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
