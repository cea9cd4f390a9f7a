package zfs

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// Usage implements store.Store. Size and Available follow the parent's quota,
// if it has one. Writes show when their transaction is done, some seconds
// later.
func (s *Store) Usage(ctx context.Context) (store.Usage, error) {
	u, _, err := s.usage(ctx)
	return u, err
}

// usage also names what limits Available.
func (s *Store) usage(ctx context.Context) (u store.Usage, limit string, err error) {
	parent := dataset(s.parent)
	found, err := s.opts.properties(ctx, parent, "used,available")
	if err != nil {
		return u, "", s.parentError(ctx, err)
	}
	used, err1 := strconv.ParseInt(found["used"].value, 10, 64)
	free, err2 := strconv.ParseInt(found["available"].value, 10, 64)
	if err1 != nil || err2 != nil {
		return u, "", fmt.Errorf("%s: %w its space", s.parent, errNoSuchProperty)
	}
	u.Size, u.Used = used+free, used
	reserve := backend.InnerReserve(u.Size)
	u.Available = free - reserve
	pool, _, _ := strings.Cut(s.parent, "/")
	limit = fmt.Sprintf("the store is full: %s of %s are used and %s stay free; destroy what is not needed (sidus gc), raise the quota of %s, or add a disk (zpool add %s …)", backend.Human(u.Used), backend.Human(u.Size), backend.Human(reserve), s.parent, pool)
	if s.opts.File != "" {
		disk, err := backend.FreeOn(filepath.Dir(s.opts.File))
		if err != nil {
			return u, "", err
		}
		if under := disk - s.opts.DiskReserve; under < u.Available {
			u.Available = under
			limit = fmt.Sprintf("the disk beneath %s is full: it has %s free and %s of it stay free; free some space there", s.opts.File, backend.Human(disk), backend.Human(s.opts.DiskReserve))
		}
	}
	u.Available = max(0, u.Available)
	return u, limit, nil
}

// refuseFull returns ErrNoSpace if there is no space to begin work.
func (s *Store) refuseFull(ctx context.Context, d dataset) error {
	u, limit, err := s.usage(ctx)
	if err != nil {
		return err
	}
	if u.Available <= 0 {
		return fmt.Errorf("%v: %w: %s", d, store.ErrNoSpace, limit)
	}
	return nil
}

// freeingPoll is how often the space that is still being freed is looked at.
const freeingPoll = 500 * time.Millisecond

// Wait implements store.Waiter: ZFS frees in the background. However much there
// is to free, only where it gets no less for Options.Timeout something is wrong.
func (s *Store) Wait(ctx context.Context) error {
	pool, _, _ := cutPool(s.parent)
	if err := s.opts.run(ctx, "zpool", "sync", pool); err != nil {
		return classify(s.opts.place(), dataset(pool), err)
	}
	last, since := int64(-1), time.Now()
	for {
		out, err := s.opts.output(ctx, "zpool", "get", "-Hp", "-o", "value", "freeing", pool)
		if err != nil {
			return classify(s.opts.place(), dataset(pool), err)
		}
		text := strings.TrimSpace(string(out))
		if text == "0" || text == "-" { // "-": a pool that frees at once
			return nil
		}
		left, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return fmt.Errorf("%s: %w what it frees: %w", pool, errNoSuchProperty, err)
		}
		if last < 0 || left < last {
			last, since = left, time.Now()
		} else if time.Since(since) > s.opts.Timeout {
			return s.opts.hangs(pool + ": freeing")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(freeingPoll):
		}
	}
}
