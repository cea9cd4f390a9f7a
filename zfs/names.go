package zfs

import (
	"fmt"
	"strings"

	"sidus/image/store"
)

// User properties.
const (
	propStore    = "sidus:store"    // on the parent: the version of the layout
	propVolume   = "sidus:volume"   // on a file system: the volume's ID
	propSnapshot = "sidus:snapshot" // on a snapshot: its ID
	propOrigin   = "sidus:origin"   // on a file system: the snapshot it was cloned from
	propRetired  = "sidus:retired"  // on a file system: a destroyed volume with snapshots

	layoutVersion   = "1"
	keptName        = "kept"
	receivingPrefix = "receiving-" // then the ID of the snapshot that is being received
)

// maxDataset is the longest name of a parent: ZFS allows 255 bytes, and
// "/<32>.retired-<26>@<32>" follows it.
const maxDataset = 255 - 1 - 32 - len(".retired-") - 26 - 1 - 32

// ValidateDataset checks the name of a dataset, see "zfsconcepts" in section 7
// of the manual. The error wraps store.ErrBadName.
func ValidateDataset(name string) error {
	bad := func(why string) error { return fmt.Errorf("dataset %q: %w: %s", name, store.ErrBadName, why) }
	if len(name) > maxDataset {
		return bad(fmt.Sprintf("it is longer than %d bytes", maxDataset))
	}
	for n, part := range strings.Split(name, "/") {
		switch {
		case part == "" || part == "." || part == "..":
			return bad("it is POOL or POOL/NAME")
		case n == 0 && (part[0] < 'A' || part[0] > 'Z') && (part[0] < 'a' || part[0] > 'z'):
			return bad("a pool's name begins with a letter")
		case part[0] == '-':
			return bad("no part begins with \"-\"")
		}
		for i := range len(part) {
			c := part[i]
			if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && !strings.ContainsRune("-_.:", rune(c)) {
				return bad("it has letters, digits and -_.: only")
			}
		}
	}
	return nil
}

// dataset is the full name of a file system or snapshot of the store. Only the
// methods of Store make one, from IDs that were checked.
type dataset string

// fileSystem is the file system that a snapshot belongs to, or the dataset
// itself.
func (d dataset) fileSystem() dataset {
	name, _, _ := strings.Cut(string(d), "@")
	return dataset(name)
}

// volume names the file system of a volume.
func (s *Store) volume(v store.VolumeID) (dataset, error) {
	return dataset(s.parent + "/" + string(v)), v.Validate()
}

// snapshotIn names a snapshot in a file system.
func (d dataset) snapshot(id store.SnapshotID) (dataset, error) {
	return d + "@" + dataset(id), id.Validate()
}

// partial names the file system that a snapshot is received into.
func (s *Store) partial(id store.SnapshotID) (dataset, error) {
	return dataset(s.parent + "/" + receivingPrefix + string(id)), id.Validate()
}

// splitName takes apart the name of something beneath the parent. ok is false
// if it is not directly beneath.
func splitName(parent, name string) (fileSystem, snapshot string, ok bool) {
	rest, found := strings.CutPrefix(name, parent+"/")
	if !found || strings.Contains(rest, "/") {
		return "", "", false
	}
	fileSystem, snapshot, _ = strings.Cut(rest, "@")
	return fileSystem, snapshot, fileSystem != ""
}
