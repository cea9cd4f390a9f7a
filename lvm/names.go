package lvm

import (
	"fmt"
	"strings"

	"sidus/image/store"
)

const (
	volumePrefix   = "sidus.v."
	snapshotPrefix = "sidus.s."
	keptLV         = lv("sidus.kept")

	tagStore = "sidus.store." // and the version of the layout; on the pool
	tagNew   = "sidus.new"    // begun and not finished

	layoutVersion = "1"
)

// lv is the name of a logical volume of the store in its volume group. Only
// lvOfVolume, lvOfSnapshot and keptLV are such.
type lv string

func lvOfVolume(v store.VolumeID) (lv, error) { return lv(volumePrefix + v), v.Validate() }

func lvOfSnapshot(s store.SnapshotID) (lv, error) { return lv(snapshotPrefix + s), s.Validate() }

// parseLV tells what a logical volume of the volume group is.
func parseLV(name string) (item store.Item, ok bool) {
	if id, found := strings.CutPrefix(name, volumePrefix); found {
		v, err := store.ParseVolumeID(id)
		return store.Item{Kind: store.KindVolume, Volume: v}, err == nil
	}
	if id, found := strings.CutPrefix(name, snapshotPrefix); found {
		s, err := store.ParseSnapshotID(id)
		return store.Item{Kind: store.KindSnapshot, Snapshot: s}, err == nil
	}
	return store.Item{}, false
}

// Names of mount points.
const keptPoint = "kept"

func pointOfVolume(v store.VolumeID) string     { return "volume-" + string(v) }
func pointOfSnapshot(s store.SnapshotID) string { return "snapshot-" + string(s) }

// lvOfPoint is the logical volume that is mounted at a point.
func lvOfPoint(point string) (lv, bool) {
	if point == keptPoint {
		return keptLV, true
	}
	if id, found := strings.CutPrefix(point, "volume-"); found {
		name, err := lvOfVolume(store.VolumeID(id))
		return name, err == nil
	}
	id, found := strings.CutPrefix(point, "snapshot-")
	name, err := lvOfSnapshot(store.SnapshotID(id))
	return name, found && err == nil
}

// splitThinPool checks VG/POOL. The error wraps store.ErrBadName.
func splitThinPool(text string) (group, pool string, err error) {
	bad := func(why string) error { return fmt.Errorf("thin pool %q: %w: %s", text, store.ErrBadName, why) }
	group, pool, ok := strings.Cut(text, "/")
	if !ok {
		return "", "", bad("it is VG/POOL")
	}
	for _, name := range []string{group, pool} {
		// See "VALID NAMES" in lvm(8).
		if name == "" || name == "." || name == ".." || name[0] == '-' || len(name) > 64 {
			return "", "", bad("a name has 1 to 64 characters and does not begin with \"-\"")
		}
		for i := range len(name) {
			c := name[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("+_.-", rune(c)) {
				return "", "", bad("a name has letters, digits and +_.- only")
			}
		}
	}
	return group, pool, nil
}

// mapperName is the device mapper's name of a logical volume: hyphens are
// doubled, so that the one between group and volume is single.
func mapperName(group, name string) string {
	double := func(s string) string { return strings.ReplaceAll(s, "-", "--") }
	return double(group) + "-" + double(name)
}
