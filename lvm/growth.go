package lvm

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/gofrs/flock"
	"golang.org/x/sys/unix"

	"sidus/image/store/backend"
)

const (
	// headroom is what a volume that somebody may write to has free, in bytes,
	// if the thin pool has it: what is written while it grows must fit.
	headroom = 1 << 30
	// growthLook is how often that is looked at, and growthPause how often where
	// the pool has less, or growing has failed.
	growthLook  = 50 * time.Millisecond
	growthPause = 2 * time.Second
	// growthLock is the name of the file that is locked while a volume grows.
	growthLock = "growth"
)

// room is what is left in a mounted volume. Sizes are in bytes.
type room struct {
	size, free       int64
	files, freeFiles uint64
}

func roomIn(folder string) (r room, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(folder, &st); err != nil {
		return r, &os.PathError{Op: "statfs", Path: folder, Err: err}
	}
	return room{size: int64(st.Blocks) * st.Bsize, free: int64(st.Bavail) * st.Bsize, files: st.Files, freeFiles: st.Ffree}, nil
}

// narrow tells whether a volume shall be larger: less than a fifth of its space,
// or of the files that an ext4 has room for, is left, or less than wanted.
func (r room) narrow(wanted int64) bool {
	return r.free < max(r.size/5, wanted) || r.freeFiles < r.files/5
}

// widen makes a mounted volume larger by half, and at least by headroom, if it is
// narrow and the thin pool has space: what is larger costs next to nothing until
// it is written, and nobody has to think of sizes. next is when to look again.
func (s *Store) widen(ctx context.Context, name lv, folder string) (next time.Duration, err error) {
	if r, err := roomIn(folder); err != nil {
		return growthPause, err
	} else if !r.narrow(headroom) {
		return growthLook, nil
	}
	lock, err := s.lockGrowth(ctx)
	if err != nil {
		return growthPause, err
	}
	defer lock.Close()
	r, err := roomIn(folder) // another may have been quicker
	if err != nil {
		return growthPause, err
	}
	usage, err := s.Usage(ctx)
	if err != nil || !r.narrow(min(headroom, usage.Available)) {
		return growthPause, err
	}
	if err := s.begin(ctx, name); err != nil {
		return growthPause, err
	}
	if err := s.refuseFullGroup(ctx, name, groupReserve); err != nil {
		return growthPause, err
	}
	now, err := deviceSize(s.node(name))
	if err != nil {
		return growthPause, err
	}
	size := min(now+max(now/2, min(headroom, usage.Available)), maxVolumeSize)
	if err := s.grow(ctx, name, folder, now, size); err != nil {
		return growthPause, err
	}
	s.opts.Log.WithField("volume", string(name)).Infof("a volume of %s was nearly full and has %s now", backend.Human(now), backend.Human(size))
	return growthLook, nil
}

// lockGrowth lets one at a time make a volume larger.
func (s *Store) lockGrowth(ctx context.Context) (*flock.Flock, error) {
	lock := flock.New(s.points.Path(growthLock), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
	if _, err := lock.TryLockContext(ctx, growthLook); err != nil {
		return nil, fmt.Errorf("wait for another volume that grows: %w", err)
	}
	return lock, nil
}

// keepWide widens a mounted volume until stop is called, which waits for its end.
// What fails is logged: there is still some space.
func (s *Store) keepWide(name lv, folder string) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	warned := false
	look := func() time.Duration {
		next, err := s.widen(ctx, name, folder)
		if err != nil && !warned && ctx.Err() == nil {
			s.opts.Log.WithError(err).Warn("a volume is nearly full and does not grow")
			warned = true
		}
		return next
	}
	next := look() // before anything is written
	go func() {
		defer close(done)
		for {
			timer := time.NewTimer(next)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				next = look()
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}
