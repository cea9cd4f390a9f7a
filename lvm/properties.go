package lvm

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/dustin/go-humanize"

	"sidus/image/store"
)

var (
	_ store.PropertySetter = (*Store)(nil)
	_ store.VolumeMaker    = (*Store)(nil)
)

// The properties of a volume. They count for what is made in its place from
// nothing; a volume that is there keeps its file system, and grows to the size.
const (
	propertyFileSystem = "file-system" // ext4 or xfs
	propertySize       = "size"        // in bytes
	inherit            = "inherit"     // takes one back
)

// tagSet begins the tag of a property that was set: its name, "=" and its value
// follow. Snapshots have those of their volume, and clones those of their
// snapshot.
const tagSet = "sidus.set."

// properties are those that were set on a logical volume.
func (r row) properties() map[string]string {
	values := map[string]string{}
	for tag := range strings.SplitSeq(r["lv_tags"], ",") {
		if setting, ok := strings.CutPrefix(tag, tagSet); ok {
			name, value, _ := strings.Cut(setting, "=")
			values[name] = value
		}
	}
	return values
}

// tagsOf are the options that give a new logical volume properties.
func tagsOf(values map[string]string) (options []string) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		options = append(options, "--addtag", tagSet+name+"="+values[name])
	}
	return options
}

// normalProperties checks properties and writes sizes in bytes. The error wraps
// store.ErrBadName.
func normalProperties(values map[string]string) (map[string]string, error) {
	normal := make(map[string]string, len(values))
	for name, value := range values {
		if name != propertyFileSystem && name != propertySize {
			return nil, fmt.Errorf("property %q: %w: it is %s or %s", name, store.ErrBadName, propertyFileSystem, propertySize)
		}
		fs, size := Ext4, int64(DefaultVolumeSize)
		switch {
		case value == inherit:
		case name == propertyFileSystem:
			fs = FileSystem(value)
		default:
			n, err := humanize.ParseBytes(value + "iB")
			if err != nil {
				n, err = humanize.ParseBytes(value)
			}
			if err != nil || n > maxVolumeSize {
				return nil, fmt.Errorf("property %s: value %q: %w: it is a number of bytes, with K, M, G or T", name, value, store.ErrBadName)
			}
			size, value = int64(n), strconv.FormatUint(n, 10)
		}
		if err := CheckVolume(fs, size); err != nil {
			return nil, fmt.Errorf("property %s: value %q: %w: %w", name, value, store.ErrBadName, err)
		}
		normal[name] = value
	}
	return normal, nil
}

// CreateVolumeWith implements store.VolumeMaker.
func (s *Store) CreateVolumeWith(ctx context.Context, v store.VolumeID, values map[string]string) error {
	values, err := normalProperties(values)
	if err != nil {
		return err
	}
	maps.DeleteFunc(values, func(_, value string) bool { return value == inherit })
	fs, size := s.opts.FileSystem, s.opts.VolumeSize
	if value, ok := values[propertyFileSystem]; ok {
		fs = FileSystem(value)
	}
	if value, ok := values[propertySize]; ok {
		size, _ = strconv.ParseInt(value, 10, 64) // checked
	}
	return s.createVolume(ctx, v, fs, size, tagsOf(values)...)
}

// SetProperties implements store.PropertySetter for the size and the file system.
// A volume never shrinks, and its file system stays: then they only count for what
// is made in its place.
func (s *Store) SetProperties(ctx context.Context, v store.VolumeID, values map[string]string) error {
	name, err := lvOfVolume(v)
	if err != nil {
		return err
	}
	if values, err = normalProperties(values); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	found, err := s.finished(ctx, name)
	if err != nil {
		return err
	}
	if size, err := strconv.ParseInt(values[propertySize], 10, 64); err == nil {
		now, err := found.number("lv_size")
		if err != nil {
			return err
		}
		if size > now {
			if err := s.Resize(ctx, v, size); err != nil {
				return err
			}
		}
	}
	var change []string
	old := found.properties()
	for _, property := range slices.Sorted(maps.Keys(values)) {
		value := values[property]
		if before, was := old[property]; was && before != value {
			change = append(change, "--deltag", tagSet+property+"="+before)
		}
		if value != inherit && old[property] != value {
			change = append(change, "--addtag", tagSet+property+"="+value)
		}
	}
	if len(change) == 0 {
		return nil
	}
	if err := s.opts.step("set properties"); err != nil {
		return err
	}
	_, err = s.lvm(context.WithoutCancel(ctx), "lvchange", append(change, s.full(name))...)
	return classify(name, name, err)
}

// Properties implements store.PropertySetter.
func (s *Store) Properties(ctx context.Context, v store.VolumeID) (map[string]string, error) {
	name, err := lvOfVolume(v)
	if err != nil {
		return nil, err
	}
	found, err := s.finished(ctx, name)
	if err != nil {
		return nil, err
	}
	return found.properties(), nil
}
