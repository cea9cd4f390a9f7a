package lvm

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// What stays free when work is begun.
const (
	// Of the pool's metadata, in hundredths. A pool whose metadata is full goes
	// read-only and must be repaired.
	maxMetadata         = 90
	maxMetadataSnapshot = 97
	metadataBlock       = 4 << 10 // bytes
	// Of the volume group's metadata, in bytes. A volume takes about 509.
	groupReserve         = 32 << 10
	groupReserveSnapshot = 8 << 10
	// What was free a moment ago tells enough if it is this much more than the
	// reserve, room for some hundred volumes: LVM need not be asked again.
	groupPlenty = 128 << 10
	groupMoment = 30 * time.Second
)

// Usage implements store.Store. It is the thin pool's: if others use it too,
// theirs counts.
func (s *Store) Usage(ctx context.Context) (store.Usage, error) {
	status, err := s.poolStatus(ctx)
	if err != nil {
		return store.Usage{}, err
	}
	return s.usageOf(status)
}

func (s *Store) usageOf(status poolStatus) (u store.Usage, err error) {
	pool := s.group + "/" + s.pool
	u.Size, u.Used = status.dataSize*s.chunk, status.dataUsed*s.chunk
	reserve := backend.InnerReserve(u.Size)
	u.Available = u.Size - u.Used - reserve
	limit := fmt.Sprintf("the thin pool is full: %s of %s are used and %s stay free; destroy what is not needed (sidus gc), or extend it: lvextend -L +10G %s", backend.Human(u.Used), backend.Human(u.Size), backend.Human(reserve), pool)
	if s.opts.File != "" {
		disk, err := backend.FreeOn(filepath.Dir(s.opts.File))
		if err != nil {
			return u, err
		}
		if under := disk - s.opts.DiskReserve; under < u.Available {
			u.Available = under
			limit = fmt.Sprintf("the disk beneath %s is full: it has %s free and %s of it stay free; free some space there", s.opts.File, backend.Human(disk), backend.Human(s.opts.DiskReserve))
		}
	}
	if status.metadataUsed >= metadataLimit(status.metadataSize, maxMetadata) {
		u.Available = 0
		limit = metadataFull(pool, status)
	}
	if u.Available <= 0 {
		u.Available, u.Full = 0, limit
	}
	return u, nil
}

// metadataLimit is how many of size blocks of the pool's metadata may be used when
// work begins, for a limit in hundredths. LVM itself makes no volume when fewer
// than a quarter, or 4 MiB, are free: what keeps the end of work comes before that,
// and what begins it leaves a sixteenth for it.
func metadataLimit(size, limit int64) int64 {
	most := size - min(size/4, 4<<20/metadataBlock)
	if limit <= maxMetadata {
		most -= size / 16
	}
	return min(size*limit/100, most)
}

func metadataFull(pool string, status poolStatus) string {
	return fmt.Sprintf("the metadata of the thin pool is full: %d of %d blocks are used; destroy what is not needed (sidus gc), or extend it: lvextend --poolmetadatasize +256M %s", status.metadataUsed, status.metadataSize, pool)
}

// poolStatus asks the device mapper: it knows each block, where LVM knows
// hundredths of a per cent. ErrUnavailable if the pool has failed.
func (s *Store) poolStatus(ctx context.Context) (poolStatus, error) {
	text, err := s.askPool(ctx, "status")
	if err != nil {
		return poolStatus{}, err
	}
	status, err := parsePoolStatus(text)
	if err != nil {
		return poolStatus{}, err
	}
	if status.mode == "failed" || status.needsCheck {
		return poolStatus{}, fmt.Errorf("%s: %w: the thin pool has failed (lvconvert --repair %s/%s, see lvmthin(7))", s.opts.place(), store.ErrUnavailable, s.group, s.pool)
	}
	return status, nil
}

// refuseFull returns ErrNoSpace if the thin pool has no space for work. What
// begins work leaves a reserve, what keeps the end of it may use that: the limit
// of the metadata, in hundredths, is maxMetadata or maxMetadataSnapshot.
func (s *Store) refuseFull(ctx context.Context, name lv, limit int64) error {
	status, err := s.poolStatus(ctx)
	if err != nil {
		return err
	}
	if status.mode == "ro" {
		return fmt.Errorf("%v: %w: the thin pool is read-only: its metadata is full or damaged (lvs -a %s; lvmthin(7))", name, store.ErrUnavailable, s.group)
	}
	if status.metadataUsed >= metadataLimit(status.metadataSize, limit) {
		return fmt.Errorf("%v: %w: %s", name, store.ErrNoSpace, metadataFull(s.group+"/"+s.pool, status))
	}
	if limit > maxMetadata {
		return nil
	}
	u, err := s.usageOf(status)
	if err == nil && u.Available <= 0 {
		err = fmt.Errorf("%v: %w: %s", name, store.ErrNoSpace, u.Full)
	}
	return err
}

// refuseFullGroup returns ErrNoSpace if the volume group's metadata has less
// than limit bytes free.
func (s *Store) refuseFullGroup(ctx context.Context, name lv, limit int64) error {
	s.mu.Lock()
	plenty := time.Since(s.groupSeen) < groupMoment
	s.mu.Unlock()
	if plenty {
		return nil
	}
	rows, err := s.report(ctx, "vgs", "vg_mda_free,vg_mda_size", s.group)
	if err != nil {
		return classify(s.opts.place(), "", err)
	}
	for _, r := range rows {
		if err := s.checkGroup(name, r, limit); err != nil {
			return err
		}
	}
	return nil
}

// checkGroup is refuseFullGroup with what LVM has said already.
func (s *Store) checkGroup(name lv, r row, limit int64) error {
	free, err := r.number("vg_mda_free")
	if err != nil {
		return err
	}
	if free < limit {
		return fmt.Errorf("%v: %w: the metadata of the volume group %s is full: %s of %s are free; destroy snapshots that are not needed (sidus gc), or move it to disks with more: pvcreate --metadatasize 64m DISK, vgextend, pvmove, vgreduce", name, store.ErrNoSpace, s.group, backend.Human(free), sizeOf(r))
	}
	if free >= limit+groupPlenty {
		s.mu.Lock()
		s.groupSeen = time.Now()
		s.mu.Unlock()
	}
	return nil
}

func sizeOf(r row) string {
	size, err := r.number("vg_mda_size")
	if err != nil {
		return "?"
	}
	return backend.Human(size)
}

// Wait implements store.Waiter. What is removed is free in the pool at once.
func (s *Store) Wait(ctx context.Context) error { return ctx.Err() }
