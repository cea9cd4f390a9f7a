package btrfs

import (
	"path/filepath"
	"strings"

	"sidus/image/store"
)

const (
	markerName  = "sidus-store"
	volumesDir  = "volumes"
	snapsDir    = "snapshots"
	keptDir     = "kept"
	newPrefix   = ".new-"  // begun and not finished
	gonePrefix  = ".gone-" // removal begun
	markerText  = "sidus store 1\n"
	markerStart = "sidus store "
)

// item names a subvolume of the store. Only itemOfVolume, itemOfSnapshot and
// parseItem make one, so that its ID is valid.
type item struct {
	kind store.Kind
	id   string
}

func itemOfVolume(v store.VolumeID) (item, error) {
	return item{store.KindVolume, string(v)}, v.Validate()
}

func itemOfSnapshot(s store.SnapshotID) (item, error) {
	return item{store.KindSnapshot, string(s)}, s.Validate()
}

// dir is the folder, relative to the store, that holds things of i's kind.
func (i item) dir() string {
	if i.kind == store.KindVolume {
		return volumesDir
	}
	return snapsDir
}

func (i item) path() string     { return filepath.Join(i.dir(), i.id) }
func (i item) newPath() string  { return filepath.Join(i.dir(), newPrefix+i.id) }
func (i item) gonePath() string { return filepath.Join(i.dir(), gonePrefix+i.id) }
func (i item) String() string   { return string(i.kind) + " " + i.id }

// parseItem reads the name of an entry of volumes or snapshots. ok is false if
// it is none that this package makes.
func parseItem(kind store.Kind, name string) (i item, partial, ok bool) {
	id := name
	for _, prefix := range []string{newPrefix, gonePrefix} {
		if rest, found := strings.CutPrefix(name, prefix); found {
			id, partial = rest, true
			break
		}
	}
	if store.VolumeID(id).Validate() != nil {
		return item{}, false, false
	}
	return item{kind, id}, partial, true
}
