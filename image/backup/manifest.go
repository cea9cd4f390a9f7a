package backup

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"
)

// The classes of what can be wrong with a backup.
var (
	// ErrForeign: it is no backup of Sidus.
	ErrForeign = errors.New("not a backup of sidus")
	// ErrNewer: a newer Sidus has written it.
	ErrNewer = errors.New("written by a newer version of sidus")
	// ErrDamaged: it is cut off, or not what was written.
	ErrDamaged = errors.New("the backup is damaged")
)

// Format is the version of the format that this package writes. It reads this
// one and all before it.
const Format = 1

// kind is what a manifest says that it is of.
const kind = "sidus-backup"

const (
	manifestName = "manifest.json"
	catalogName  = "sidus.db"
	maxManifest  = 16 << 20 // bytes
)

// Manifest says what a backup holds.
type Manifest struct {
	Kind    string    `json:"kind"`
	Format  int       `json:"format"`
	Created time.Time `json:"created"`
	Program string    `json:"program"` // the writer: "sidus 1.2"
	Host    string    `json:"host"`
	State   string    `json:"state"` // the state folder
	Files   []File    `json:"files"` // in the order of the archive
}

// File is one file of a backup.
type File struct {
	Path   string `json:"path"` // relative to the state folder
	Size   int64  `json:"size"` // bytes
	SHA256 string `json:"sha256"`
}

// decodeManifest reads a manifest. Fields that are not known are passed over:
// what a reader must understand raises the format.
func decodeManifest(text []byte) (m Manifest, err error) {
	if err := json.Unmarshal(text, &m); err != nil || m.Kind != kind || m.Format < 1 {
		return m, ErrForeign
	}
	if m.Format > Format {
		return m, fmt.Errorf("%w: format %d; this one reads up to %d", ErrNewer, m.Format, Format)
	}
	names := map[string]bool{}
	for _, f := range m.Files {
		sum, err := hex.DecodeString(f.SHA256)
		if err != nil || len(sum) != 32 || f.Size < 0 || !filepath.IsLocal(f.Path) || filepath.Clean(f.Path) != f.Path ||
			excluded(f.Path) && f.Path != catalogName || f.Path == manifestName || names[f.Path] {
			return m, fmt.Errorf("%w: the manifest names %.80q", ErrDamaged, f.Path)
		}
		names[f.Path] = true
	}
	if !names[catalogName] {
		return m, fmt.Errorf("%w: there is no catalog in it", ErrDamaged)
	}
	return m, nil
}

// Secrets tells whether the backup holds the site's key.
func (m Manifest) Secrets() bool {
	for _, f := range m.Files {
		if f.Path == "secrets/site.key" {
			return true
		}
	}
	return false
}

// asidePrefix begins the name of the folder that keeps a state that was
// replaced.
const asidePrefix = "replaced-"

// excluded tells whether a path below the state folder is no part of a backup:
// the store, what can be made again, locks, logs, work that was cut, and the
// live catalog, of which a consistent copy is taken instead.
func excluded(path string) bool {
	top, _, _ := strings.Cut(path, string(filepath.Separator))
	switch top {
	case "store", "cache", "log", "locks":
		return true
	}
	return strings.HasPrefix(top, ".") || strings.HasPrefix(top, asidePrefix) || strings.HasPrefix(top, catalogName)
}
