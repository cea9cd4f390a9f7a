package store

import (
	"context"
	"time"
)

// Store keeps volumes and snapshots. Its methods may be called from several
// goroutines, and several processes may have the same store open.
type Store interface {
	// CreateVolume makes an empty volume: a root directory owned by 0:0 with
	// mode 0755 and nothing in it. ErrExists if v is there already,
	// ErrNoSpace if the store is too full to begin work.
	CreateVolume(ctx context.Context, v VolumeID) error

	// Snapshot makes s, a read-only image of v at this moment. Constant time.
	// Data that was written to v before the call is in s and durable when
	// Snapshot returns. ErrNotFound if v is missing, ErrExists if s is there
	// already, ErrNestedVolume if v holds a nested subvolume or another mount,
	// which the snapshot would silently lack.
	Snapshot(ctx context.Context, v VolumeID, s SnapshotID) error

	// Clone makes v, a writable copy of s. Constant time, nothing is copied.
	// ErrNotFound if s is missing, ErrExists if v is there already.
	Clone(ctx context.Context, s SnapshotID, v VolumeID) error

	// MountVolume makes v reachable for reading and writing.
	// ErrNotFound if v is missing.
	MountVolume(ctx context.Context, v VolumeID) (Mount, error)

	// MountSnapshot makes s reachable for reading; whatever tries to write
	// gets EROFS. ErrNotFound if s is missing, ErrUnavailable if it is there
	// and cannot be read for now.
	MountSnapshot(ctx context.Context, s SnapshotID) (Mount, error)

	// DestroyVolume removes v and gives its space back, now or soon.
	// ErrNotFound if it is missing, ErrInUse if a mount of it is held.
	DestroyVolume(ctx context.Context, v VolumeID) error

	// DestroySnapshot removes s and gives its space back, now or soon.
	// ErrNotFound if it is missing, ErrInUse if a mount of it is held or the
	// backend needs it for a clone.
	DestroySnapshot(ctx context.Context, s SnapshotID) error

	// List names every volume and snapshot that the store holds, in no
	// particular order, half-made ones included.
	List(ctx context.Context) ([]Item, error)

	// Usage tells how full the store is.
	Usage(ctx context.Context) (Usage, error)

	// Close ends the use of the store by this process. Mounts must have been
	// given back before.
	Close() error
}

// Mount is a directory at which a volume or a snapshot can be reached until
// Unmount is called.
type Mount interface {
	// Path is the absolute path of the root directory.
	Path() string
	// Unmount gives the mount back. A second call does nothing.
	Unmount(ctx context.Context) error
}

// Kind says what an Item is.
type Kind string

// The kinds of items.
const (
	KindVolume   Kind = "volume"
	KindSnapshot Kind = "snapshot"
)

// Item is one thing that a store holds. One of Volume and Snapshot is set,
// as Kind says.
type Item struct {
	Kind     Kind
	Volume   VolumeID
	Snapshot SnapshotID
	Created  time.Time
	// Partial is set if the item was begun and never finished, for example by
	// an operation that was cut. Mounting it fails with ErrNotFound;
	// destroying it works.
	Partial bool
}

// Usage is the state of a store's space, in bytes.
type Usage struct {
	Size      int64 // what the store can hold
	Used      int64 // what is taken
	Available int64 // what can still be written; less than Size-Used if a reserve is kept
	// Full says to people, if Available is 0, what is full and what helps; it may
	// be empty.
	Full string `json:",omitempty"`
}
