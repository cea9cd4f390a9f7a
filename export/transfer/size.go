package transfer

import (
	"context"
	"errors"

	"sidus/export/stream"
	"sidus/image"
	"sidus/image/store"
)

// PayloadSize guesses the length of a native stream, for its manifest; 0 if the
// snapshot, or the base of a difference, cannot be read for now: what is
// encrypted can be sent nevertheless.
func PayloadSize(ctx context.Context, m *image.Manager, id, base store.SnapshotID) (size int64, err error) {
	var roots []string
	for _, id := range []store.SnapshotID{id, base} {
		if id == "" {
			break
		}
		mount, mountErr := m.MountSnapshot(ctx, id)
		if errors.Is(mountErr, store.ErrUnavailable) {
			return 0, nil
		}
		if mountErr != nil {
			return 0, mountErr
		}
		defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
		roots = append(roots, mount.Path())
	}
	if base == "" {
		return stream.Estimate(ctx, roots[0], ""), nil
	}
	return stream.Estimate(ctx, roots[0], roots[1]), nil
}
