package lvm

import (
	"context"
	"errors"
	"maps"
	"testing"

	"sidus/image/store"
)

func TestNormalProperties(t *testing.T) {
	got, err := normalProperties(map[string]string{"size": "2G", "file-system": "xfs"})
	if want := map[string]string{"size": "2147483648", "file-system": "xfs"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	got, err = normalProperties(map[string]string{"size": "inherit", "file-system": "inherit"})
	if want := map[string]string{"size": "inherit", "file-system": "inherit"}; err != nil || !maps.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for name, value := range map[string]string{"quota": "1G", "size": "large", "file-system": "ntfs", "": "x"} {
		if got, err := normalProperties(map[string]string{name: value}); !errors.Is(err, store.ErrBadName) {
			t.Errorf("%s=%s: %v, %v", name, value, got, err)
		}
	}
	for _, size := range []string{"1M", "2P", "-1G", "99999999999999999999", ""} {
		if got, err := normalProperties(map[string]string{"size": size}); !errors.Is(err, store.ErrBadName) {
			t.Errorf("size=%s: %v, %v", size, got, err)
		}
	}
}

// TestProperties: each tree has the file system and the size that it was given.
func TestProperties(t *testing.T) {
	ctx := t.Context()
	s := open(t, sharedOptions(t))
	set := func(v store.VolumeID, values map[string]string) {
		t.Helper()
		if err := s.SetProperties(ctx, v, values); err != nil {
			t.Fatal(err)
		}
	}
	has := func(what string, v store.VolumeID, fs FileSystem, size int64, values map[string]string) {
		t.Helper()
		m, err := s.hold(ctx, lv(volumePrefix+v), pointOfVolume(v), false)
		if err != nil {
			t.Fatal(err)
		}
		is, err1 := fileSystemOn(s.node(lv(volumePrefix + v)))
		c, err2 := s.Capacity(ctx, v)
		got, err3 := s.Properties(ctx, v)
		if err := errors.Join(err1, err2, err3, m.Unmount(ctx)); err != nil || is != fs || c.Size != size || !maps.Equal(got, values) {
			t.Errorf("%s: %s, %d bytes, %v, %v", what, is, c.Size, got, err)
		}
	}
	v := store.NewVolumeID()
	if err := s.CreateVolumeWith(ctx, v, map[string]string{"file-system": "xfs", "size": "512M"}); err != nil {
		t.Fatal(err)
	}
	given := map[string]string{"file-system": "xfs", "size": "536870912"}
	has("made", v, XFS, 512<<20, given)
	id, w := taken(t, s, v), store.NewVolumeID()
	if err := s.Clone(ctx, id, w); err != nil {
		t.Fatal(err)
	}
	has("a clone", w, XFS, 512<<20, given)
	set(w, map[string]string{"size": "1G", "file-system": "ext4"})
	has("larger", w, XFS, 1<<30, map[string]string{"file-system": "ext4", "size": "1073741824"})
	set(w, map[string]string{"size": "600M", "file-system": "inherit"})
	has("smaller", w, XFS, 1<<30, map[string]string{"size": "629145600"})
	set(w, map[string]string{"size": "inherit"})
	has("taken back", w, XFS, 1<<30, map[string]string{})
	has("its origin", v, XFS, 512<<20, given)
	if err := s.SetProperties(ctx, w, map[string]string{"size": "2G", "color": "blue"}); !errors.Is(err, store.ErrBadName) {
		t.Errorf("an unknown property: %v", err)
	}
	has("after that", w, XFS, 1<<30, map[string]string{})
	if err := s.SetProperties(ctx, store.NewVolumeID(), given); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	if err := store.CreateVolumeWith(context.WithoutCancel(ctx), s, store.NewVolumeID(), map[string]string{"file-system": "ntfs"}); !errors.Is(err, store.ErrBadName) {
		t.Errorf("a file system that there is not: %v", err)
	}
}
