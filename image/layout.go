package image

import (
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"

	"sidus/image/scratch"
	"sidus/image/store"
)

// Layout names the files of a state folder.
type Layout struct {
	Dir string // the state folder, by default /var/lib/sidus
}

// Catalog is the SQLite database.
func (l Layout) Catalog() string { return filepath.Join(l.Dir, "sidus.db") }

// StoreFile is the loop file of the embedded store.
func (l Layout) StoreFile() string { return filepath.Join(l.Dir, "store", "store.img") }

// SiteKey is the key that authenticates file handles and derives machine IDs.
func (l Layout) SiteKey() string { return filepath.Join(l.Dir, "secrets", "site.key") }

// Cache holds what can be made again: packages and indexes.
func (l Layout) Cache() string { return filepath.Join(l.Dir, "cache") }

// Index is the cached index of a snapshot.
func (l Layout) Index(id store.SnapshotID) string {
	return filepath.Join(l.Cache(), "index", string(id)+".index")
}

// Logs holds the logs of builds.
func (l Layout) Logs() string { return filepath.Join(l.Dir, "log") }

// Incoming holds what another server is sending: streams until they are whole,
// so that one that was cut goes on where it was, and its catalog.
func (l Layout) Incoming() string { return filepath.Join(l.Cache(), "incoming") }

// IncomingState is the folder in which another server's catalog and secrets lie
// until they are taken over.
func (l Layout) IncomingState() string { return filepath.Join(l.Incoming(), "state") }

// IncomingLock is held by whoever takes what another server sends.
func (l Layout) IncomingLock() string { return filepath.Join(l.Dir, "locks", "incoming.lock") }

// Scratch is the folder of what processes need for as long as they run, see the
// package scratch.
func (l Layout) Scratch() string { return filepath.Join(l.Dir, ".scratch") }

// MakeScratch makes a folder for as long as it is needed, and removes those that
// processes which were cut have left. kind is a word for people.
func (l Layout) MakeScratch(kind string) (*scratch.Folder, error) {
	if err := scratch.Sweep(l.Scratch()); err != nil {
		logrus.WithError(err).Debug("what processes that were cut have left stays")
	}
	return scratch.Make(l.Scratch(), kind)
}

// BuildWork is the folder below a cache that builds work in, see the package
// scratch.
const BuildWork = "work"

// scratch are the folders of the package scratch.
func (l Layout) scratch() []string {
	return []string{l.Scratch(), filepath.Join(l.Cache(), BuildWork)}
}

// Secrets is the folder of all that must stay on this site's servers.
func (l Layout) Secrets() string { return filepath.Dir(l.SiteKey()) }

// TransferSecrets holds what this server shows to others that it sends to or
// receives from. It is of this server alone.
func (l Layout) TransferSecrets() string { return filepath.Join(l.Secrets(), "transfer") }

// headLock is the lock file of a tree's head.
func (l Layout) headLock(tree string) string {
	return filepath.Join(l.Dir, "locks", "head-"+tree+".lock")
}

// catalogCopyLock is held by whoever makes a copy of the catalog.
func (l Layout) catalogCopyLock() string { return filepath.Join(l.Dir, "locks", "catalog-copy.lock") }

// Make creates the folders that are missing: everything is root's alone.
func (l Layout) Make() error {
	for _, dir := range []string{
		l.Dir,
		filepath.Dir(l.StoreFile()),
		filepath.Dir(l.SiteKey()),
		filepath.Join(l.Cache(), "index"),
		filepath.Join(l.Cache(), "packages"),
		l.Incoming(),
		l.Recipes(),
		l.Logs(),
		filepath.Join(l.Dir, "locks"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}
