package zfs

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"sidus/image/store"
)

var _ store.PropertySetter = (*Store)(nil)

// Tunable are the ZFS properties that may be given to a volume, see zfsprops
// in section 7 of the manual. A clone gets those of the volume that its
// snapshot is of.
var Tunable = []string{
	"checksum", "compression", "copies", "dedup", "dnodesize", "logbias", "primarycache", "quota",
	"recordsize", "redundant_metadata", "refquota", "refreservation", "reservation", "secondarycache",
	"special_small_blocks", "sync",
}

// inherit is the value that takes a property back.
const inherit = "inherit"

// SetProperties implements store.PropertySetter for the properties of Tunable;
// values are written as for zfs(8).
func (s *Store) SetProperties(ctx context.Context, v store.VolumeID, values map[string]string) error {
	d, err := s.volume(v)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	args := []string{"set"}
	var back []string
	for _, name := range slices.Sorted(maps.Keys(values)) {
		value := values[name]
		if !slices.Contains(Tunable, name) {
			return fmt.Errorf("property %q: %w: it is one of %s", name, store.ErrBadName, strings.Join(Tunable, ", "))
		}
		if strings.ContainsAny(value, "=, \t\n\x00") || value == "" || value[0] == '-' {
			return fmt.Errorf("property %s: value %q: %w", name, value, store.ErrBadName)
		}
		if value == inherit {
			back = append(back, name)
		} else {
			args = append(args, name+"="+value)
		}
	}
	if _, err := s.own(ctx, v, d, ""); err != nil {
		return err
	}
	if err := s.opts.step("set properties"); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	if len(args) > 1 { // zfs looks at all of them before it sets one
		if err := propertyError(d, s.opts.run(ctx, "zfs", append(args, string(d))...)); err != nil {
			return err
		}
	}
	for _, name := range back {
		if err := classify(d, d, s.opts.run(ctx, "zfs", "inherit", name, string(d))); err != nil {
			return err
		}
	}
	return nil
}

// propertyError turns what "zfs set" says of a value into ErrBadName.
func propertyError(d dataset, err error) error {
	text := said(err)
	for _, words := range []string{"must be", "bad numeric value", "invalid", "is not a number", "too small", "too large"} {
		if strings.Contains(text, words) {
			return fmt.Errorf("%w: %s: %w", store.ErrBadName, text, err)
		}
	}
	return classify(d, d, err)
}

// Properties implements store.PropertySetter.
func (s *Store) Properties(ctx context.Context, v store.VolumeID) (map[string]string, error) {
	d, err := s.volume(v)
	if err != nil {
		return nil, err
	}
	found, err := s.own(ctx, v, d, strings.Join(Tunable, ","))
	if err != nil {
		return nil, err
	}
	return tuned(found), nil
}

// tuning returns the properties of Tunable that were set on a file system
// itself.
func (s *Store) tuning(ctx context.Context, d dataset) (map[string]string, error) {
	all, err := s.opts.properties(ctx, d, strings.Join(Tunable, ","))
	if err != nil {
		return nil, classify(d, d, err)
	}
	return tuned(all), nil
}

// tuned picks those properties of Tunable that were set, and not inherited.
func tuned(found map[string]property) map[string]string {
	values := make(map[string]string)
	for name, p := range found {
		if value := p.own(); value != "" && slices.Contains(Tunable, name) {
			values[name] = value
		}
	}
	return values
}
