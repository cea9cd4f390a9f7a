package image

import (
	"fmt"
	"regexp"

	"sidus/image/store"
)

// maxName is the longest name of a tree, channel or snapshot, in bytes.
const maxName = 64

var namePattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+-]*$`)

// ValidateName checks a name that a user gives to a tree, channel or snapshot
// (kind is the word for it in the message). The error wraps store.ErrBadName.
func ValidateName(kind, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s name: %w: it is empty", kind, store.ErrBadName)
	case len(name) > maxName:
		return fmt.Errorf("%s name %.40q…: %w: it has %d bytes, %d are allowed", kind, name, store.ErrBadName, len(name), maxName)
	case !namePattern.MatchString(name):
		return fmt.Errorf("%s name %q: %w: letters, digits and . _ + - are allowed, and it begins with a letter or digit", kind, name, store.ErrBadName)
	}
	return nil
}

var (
	numberPattern = regexp.MustCompile(`^[0-9]+$`)
	idPattern     = regexp.MustCompile(`^[0-9a-f]{6,32}$`)
)

// validateSnapshotName also refuses what would read as a number, an ID or one of
// the words `latest` and `base`.
func validateSnapshotName(name string) error {
	if err := ValidateName("snapshot", name); err != nil {
		return err
	}
	if name == latestWord || name == baseWord || numberPattern.MatchString(name) || idPattern.MatchString(name) {
		return fmt.Errorf("snapshot name %q: %w: it would be read as a number, an ID, the newest complete snapshot, or the head's base", name, store.ErrBadName)
	}
	return nil
}
