package nfs

import (
	"context"
	"errors"

	"sidus/image/index"
	"sidus/image/store"
)

// ErrDeleted is wrapped by Source.Open's error for a snapshot whose deletion
// is on record. Its handles are stale for ever.
var ErrDeleted = errors.New("snapshot was deleted")

// Source gives the server what it serves. Its methods may be called from
// several goroutines, and may take their time: other calls go on meanwhile.
type Source interface {
	// Open makes a snapshot ready to be served. The error wraps ErrDeleted if
	// its deletion is on record, store.ErrNotFound if it is not known,
	// anything else (store.ErrUnavailable) if it cannot be read for now. Only
	// the first is final: handles of a snapshot that is not known, but that
	// this site has made, may be of one that has yet to be replicated.
	Open(ctx context.Context, id store.SnapshotID) (*Snapshot, error)
	// Channel returns the snapshot to which a channel points now. The error
	// wraps store.ErrNotFound or store.ErrBadName if there is none.
	Channel(ctx context.Context, name string) (store.SnapshotID, error)
	// Exports lists what EXPORT (showmount -e) tells.
	Exports(ctx context.Context) ([]Export, error)
}

// Snapshot is a snapshot that a Source has opened.
type Snapshot struct {
	// Index is the snapshot's index. The server closes it.
	Index *index.Index
	// Root is the directory at which the snapshot is mounted.
	Root string
	// Close is called when the server needs the snapshot no more, after it has
	// closed Index and all that it opened below Root. It may be nil.
	Close func() error
}

// Export is a line of the answer to EXPORT.
type Export struct {
	Path   string   // such as "/channel/default"
	Groups []string // who may mount it; nothing means everyone
}
