package stream

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sirupsen/logrus"

	"sidus/export/stream/paxtar"
	"sidus/image/store"
)

// ImportOptions say how a stream is taken into a store.
type ImportOptions struct {
	// Volume is the volume that a portable stream is unpacked into. It must
	// not exist; when Import returns, it is gone again. Whoever keeps intents
	// names it there before. Empty means a random one.
	Volume store.VolumeID
	// Properties are what that volume gets, see store.PropertySetter, and with it
	// the snapshot of a portable stream.
	Properties map[string]string
	// PortableOnly refuses native payloads: the kernel parses them, so that
	// they are taken from authenticated senders only.
	PortableOnly bool
	// Log gets warnings, and programs at debug level; nil means none.
	Log logrus.FieldLogger
}

// Import makes the snapshot that a stream holds, under the ID that the manifest
// names. It is in the store when all of the stream was read and is right;
// otherwise there is nothing of it, but for partial items that a crash leaves.
//
// Errors are those of the Reader and of the store; ErrKind if the store does
// not take native streams of this kind, store.ErrNotFound if the base is
// missing, store.ErrExists if the snapshot is there already.
func Import(ctx context.Context, s store.Store, r *Reader, o ImportOptions) error {
	m := r.Manifest()
	var err error
	if m.Kind.Native() {
		err = importNative(ctx, s, r, m, o)
	} else {
		err = importPortable(ctx, s, r, m, o)
	}
	if err != nil {
		return fmt.Errorf("import %s (%s@%d): %w", m.Snapshot, m.Tree, m.Number, err)
	}
	return nil
}

func importNative(ctx context.Context, s store.Store, r *Reader, m Manifest, o ImportOptions) error {
	receiver, ok := s.(store.NativeReceiver)
	if o.PortableOnly || !ok {
		return fmt.Errorf("%w: it is a %q stream; export it with --portable", ErrKind, m.Kind)
	}
	kept := &errorKeeper{r: contextReader{ctx, r}}
	err := receiver.Receive(ctx, string(m.Kind), kept, m.Snapshot, m.Base)
	switch {
	case kept.err != nil:
		return kept.err
	case errors.Is(err, store.ErrUnsupported):
		return fmt.Errorf("%w: it is a %q stream; export it with --portable (%w)", ErrKind, m.Kind, err)
	}
	return err
}

func importPortable(ctx context.Context, s store.Store, r *Reader, m Manifest, o ImportOptions) (err error) {
	if o.Volume == "" {
		o.Volume = store.NewVolumeID()
	}
	if err := store.CreateVolumeWith(ctx, s, o.Volume, o.Properties); err != nil {
		return err
	}
	defer func() {
		if destroyErr := s.DestroyVolume(context.WithoutCancel(ctx), o.Volume); destroyErr != nil && err == nil && o.Log != nil {
			o.Log.WithError(destroyErr).Debug("the volume that the import worked in is left to the caller")
		}
	}()
	if err := unpackInto(ctx, s, o.Volume, r, o.Log); err != nil {
		return err
	}
	return s.Snapshot(ctx, o.Volume, m.Snapshot)
}

func unpackInto(ctx context.Context, s store.Store, v store.VolumeID, r *Reader, log logrus.FieldLogger) (err error) {
	mount, err := s.MountVolume(ctx, v)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	if err := store.MakeRoom(ctx, s, v, r.Manifest().Size); err != nil {
		return err
	}
	return Unpack(ctx, r, mount.Path(), log)
}

// Unpack unpacks a portable stream into the empty directory root. What is there
// may be used only if it returns nil: then all of the stream is right.
func Unpack(ctx context.Context, r *Reader, root string, log logrus.FieldLogger) error {
	if kind := r.Manifest().Kind; kind != Portable {
		return fmt.Errorf("%w: a %q stream is no archive", ErrKind, kind)
	}
	// A failure ends tar at once, and not by an end of its input that it could
	// take for a good one.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	kept := &errorKeeper{r: contextReader{ctx, r}, failed: cancel}
	err := paxtar.Unpack(ctx, kept, root, log)
	if kept.err != nil {
		return kept.err
	}
	if err != nil {
		return err
	}
	// Only the end of the stream tells that it is right.
	if _, err := io.Copy(io.Discard, kept); err != nil {
		return err
	}
	return nil
}
