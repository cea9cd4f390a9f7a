package zfs

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"sidus/image/store"
)

// Tunable are the ZFS properties that may be given to a volume, see zfsprops
// in section 7 of the manual. A clone gets those of the volume that its
// snapshot is of.
var Tunable = []string{
	"checksum", "compression", "copies", "dedup", "dnodesize", "logbias", "primarycache", "quota",
	"recordsize", "redundant_metadata", "refquota", "refreservation", "reservation", "secondarycache",
	"special_small_blocks", "sync",
}

// SetProperty gives a volume a property of Tunable; the value is written as for
// zfs(8), "inherit" takes it back. ErrBadName if it is none of them or the value
// is not one, ErrNotFound if the volume is missing.
func (s *Store) SetProperty(ctx context.Context, v store.VolumeID, name, value string) error {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if !slices.Contains(Tunable, name) {
		return fmt.Errorf("property %q: %w: it is one of %s", name, store.ErrBadName, strings.Join(Tunable, ", "))
	}
	if strings.ContainsAny(value, "=, \t\n\x00") || value == "" || value[0] == '-' {
		return fmt.Errorf("property %s: value %q: %w", name, value, store.ErrBadName)
	}
	if _, err := s.own(ctx, v, d, ""); err != nil {
		return err
	}
	if err := s.opts.step("set property"); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if value == "inherit" {
		return classify(d, d, s.opts.run(ctx, "zfs", "inherit", name, string(d)))
	}
	err = s.opts.set(ctx, d, name, value)
	if text := said(err); strings.Contains(text, "must be") || strings.Contains(text, "bad numeric value") || strings.Contains(text, "invalid") {
		return fmt.Errorf("property %s: value %q: %w: %w", name, value, store.ErrBadName, err)
	}
	return classify(d, d, err)
}

// Properties returns what SetProperty has set on a volume; sizes in bytes.
func (s *Store) Properties(ctx context.Context, v store.VolumeID) (map[string]string, error) {
	d, err := s.volume(v)
	if err != nil {
		return nil, err
	}
	if _, err := s.own(ctx, v, d, ""); err != nil {
		return nil, err
	}
	return s.tuning(ctx, d)
}

// tuning returns the properties of Tunable that were set on a file system
// itself.
func (s *Store) tuning(ctx context.Context, d dataset) (map[string]string, error) {
	all, err := s.opts.properties(ctx, d, strings.Join(Tunable, ","))
	if err != nil {
		return nil, classify(d, d, err)
	}
	tuned := make(map[string]string)
	for name, p := range all {
		if value := p.own(); value != "" {
			tuned[name] = value
		}
	}
	return tuned, nil
}
