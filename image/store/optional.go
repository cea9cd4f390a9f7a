package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// What not every store can do. Found by type assertion.

// Keeper keeps small files beside the volumes, so that the store alone is
// enough to come back: a copy of the catalog, for example.
type Keeper interface {
	// Keep stores what r yields under name, in place of what was kept under it
	// before. It is atomic and durable: after a crash, Kept yields the old or
	// the new content. A name is 1 to 64 of a-z, 0-9, ".", "_" and "-", and
	// begins with a letter or digit; ErrBadName otherwise.
	Keep(ctx context.Context, name string, r io.Reader) error
	// Kept opens what was kept under name. ErrNotFound if there is nothing.
	Kept(ctx context.Context, name string) (io.ReadCloser, error)
}

// Waiter is a store that gives space back after a destroy has returned.
type Waiter interface {
	// Wait returns when the space of everything destroyed so far is free.
	Wait(ctx context.Context) error
}

// Collector is a store in which more may be left than List shows: of what was
// destroyed while something still depended on it, and of processes that were
// killed.
type Collector interface {
	// Remnants lists what is left.
	Remnants(ctx context.Context) ([]Remnant, error)
	// Collect removes all of it that nothing needs any more.
	Collect(ctx context.Context) error
}

// Remnant is something that is left in a Collector.
type Remnant struct {
	What   string `json:"what"`             // for people: "the destroyed volume …"
	Reason string `json:"reason,omitempty"` // why it stays, and what ends that; "" if Collect removes it
	Bytes  int64  `json:"bytes"`            // that are free when it is gone
}

// Encrypter is a store that may hold snapshots encrypted. What Send writes of one
// is encrypted, too; what a mount shows is not.
type Encrypter interface {
	// Encrypted tells whether s is encrypted. ErrNotFound if it is missing.
	Encrypted(ctx context.Context, s SnapshotID) (bool, error)
}

// ValidateKeptName checks a name for Keeper. The error wraps ErrBadName.
func ValidateKeptName(name string) error {
	ok := len(name) >= 1 && len(name) <= 64
	for i := 0; ok && i < len(name); i++ {
		c := name[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		ok = alnum || i > 0 && (c == '.' || c == '_' || c == '-')
	}
	if !ok {
		return fmt.Errorf("kept file %q: %w", name, ErrBadName)
	}
	return nil
}

// GuardSpace returns a context that is cancelled when s has nothing available
// any more, with a cause that wraps ErrNoSpace. Long work inside a volume (a
// phase of a build) runs under it: whoever writes into a mount is not asked by
// the store, and a loop file must not fill the disk that it lies on. The state
// of the store is read at the interval given, which must be positive. A
// failure to read it is taken for no news. stop must be called.
func GuardSpace(ctx context.Context, s Store, every time.Duration) (guarded context.Context, stop func()) {
	guarded, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			if u, err := s.Usage(guarded); err == nil && u.Available <= 0 {
				why := u.Full
				if why == "" {
					why = fmt.Sprintf("%d of %d bytes are used", u.Used, u.Size)
				}
				cancel(fmt.Errorf("the work was stopped before it filled the store: %w: %s", ErrNoSpace, why))
				return
			}
			select {
			case <-guarded.Done():
				return
			case <-tick.C:
			}
		}
	}()
	return guarded, func() {
		cancel(errWorkDone)
		<-done
	}
}

var errWorkDone = errors.New("the work has ended")

// NativeSender is a store that can write a snapshot in a form of its own,
// which keeps more and costs less than reading it file by file.
type NativeSender interface {
	// SendKind names the form: "btrfs", "zfs" or "lvm".
	SendKind() string
	// Send begins to write snap: all of it if base is empty, else what
	// differs from base. What it returns owns the work behind it: Read says
	// io.EOF only after that has ended well, any failure instead of it, and
	// Close ends the work and returns when nothing of it is left. ErrNotFound
	// if snap or base is missing. The store holds both until Close.
	Send(ctx context.Context, snap, base SnapshotID) (io.ReadCloser, error)
}

// NativeReceiver is a store that can take what a NativeSender wrote.
type NativeReceiver interface {
	// Receive makes snap from what r yields. base is the snapshot that the
	// sender was given, and must be here; empty for a whole one. The snapshot
	// shows when r has said io.EOF and all of it is durable, not earlier;
	// after any other error of r nothing of it shows, and what a crash leaves
	// is a partial item of List. ErrUnsupported if the store does not take
	// this kind, ErrNotFound if base is missing, ErrExists if snap is there.
	//
	// A kernel parses what r yields: it must come from a sender that is
	// trusted.
	Receive(ctx context.Context, kind string, r io.Reader, snap, base SnapshotID) error
}

// ErrBaseUnusable is what NativeReceiver.Receive says if it holds the base, but
// not in the form that the sender has it: it came here by a portable stream, or
// from somewhere else. A whole stream helps.
var ErrBaseUnusable = errors.New("the base cannot be used for a difference: send a whole snapshot")

// CompressedSender is a NativeSender that can also send data as it lies in the
// store, for a stream that nobody compresses afterwards. What it writes is taken
// by Receive like what Send writes.
type CompressedSender interface {
	SendCompressed(ctx context.Context, snap, base SnapshotID) (io.ReadCloser, error)
}

// Resumer is a NativeSender and NativeReceiver that can go on where a stream was
// cut. The rest of a stream is another stream: its bytes do not continue those
// of the first.
type Resumer interface {
	// ReceiveResumable is NativeReceiver.Receive, except that what came before r
	// failed is kept, as a partial item. It also takes what SendResumed writes;
	// ErrNotFound if there is nothing that it could continue. A stream from the
	// start takes the place of what was kept.
	ReceiveResumable(ctx context.Context, kind string, r io.Reader, snap, base SnapshotID) error
	// ResumeToken returns what SendResumed needs to write the rest of snap, at
	// most 8 KiB of printable text without blanks. ErrNotFound if nothing was
	// kept of it: it is sent from the start.
	ResumeToken(ctx context.Context, snap SnapshotID) (token string, err error)
	// SendResumed is NativeSender.Send of the rest of a stream. The token may
	// come from anyone: ErrBadName if it is none, ErrNotFound if it is not one
	// of snap and base, or cannot be gone on with.
	SendResumed(ctx context.Context, snap, base SnapshotID, token string) (io.ReadCloser, error)
}

// PropertySetter is a store whose volumes have settings of their own: a quota, a
// compression. A clone has those of the volume that its snapshot was taken of.
type PropertySetter interface {
	// SetProperties sets all of them, or none. "inherit" takes one back. ErrBadName
	// if a name or a value is none that the store knows; the message says which
	// there are. ErrNotFound if v is missing.
	SetProperties(ctx context.Context, v VolumeID, values map[string]string) error
	// Properties returns what was set; sizes in bytes.
	Properties(ctx context.Context, v VolumeID) (map[string]string, error)
}

// VolumeMaker is a PropertySetter some of whose properties count only for what is
// made with them: a file system.
type VolumeMaker interface {
	// CreateVolumeWith is CreateVolume of a volume that has properties from the
	// start. The errors are also those of SetProperties.
	CreateVolumeWith(ctx context.Context, v VolumeID, values map[string]string) error
}

// CreateVolumeWith makes a volume that has properties, in any store. The error
// wraps ErrUnsupported if there are some and the store has none.
func CreateVolumeWith(ctx context.Context, s Store, v VolumeID, values map[string]string) error {
	if len(values) == 0 {
		return s.CreateVolume(ctx, v)
	}
	if maker, ok := s.(VolumeMaker); ok {
		return maker.CreateVolumeWith(ctx, v, values)
	}
	setter, ok := s.(PropertySetter)
	if !ok {
		return ErrNoProperties
	}
	if err := s.CreateVolume(ctx, v); err != nil {
		return err
	}
	if err := setter.SetProperties(ctx, v, values); err != nil {
		return errors.Join(err, s.DestroyVolume(context.WithoutCancel(ctx), v))
	}
	return nil
}

// ErrNoProperties is the error of properties in a store that is no PropertySetter.
var ErrNoProperties = fmt.Errorf("trees have properties of their own in ZFS and LVM stores only: %w", ErrUnsupported)

// Resizer is a store whose volumes have a size of their own. In others each
// volume can fill the store. A volume that somebody has mounted grows by itself
// before it is full; whoever knows how much he will write says it before, with
// MakeRoom.
type Resizer interface {
	// Capacity tells how large v is. ErrNotFound if it is missing.
	Capacity(ctx context.Context, v VolumeID) (Capacity, error)
	// Resize makes v size bytes large, or a little more, also while it is
	// mounted. Snapshots keep the size that v had. ErrUnsupported if v is
	// larger already, ErrNotFound if it is missing. What a crash leaves is as
	// before or as after; Resize to the same size goes on.
	Resize(ctx context.Context, v VolumeID, size int64) error
}

// Capacity is the size of a volume and what can still be written to it as far
// as that goes, in bytes: the store may have less.
type Capacity struct {
	Size int64 `json:"size"`
	Free int64 `json:"free"`
}

// MakeRoom makes v so large that so many bytes of files more fit into it, as far
// as the store has them; in a store that is no Resizer it does nothing. It is for
// long work whose size is known, or guessed. It works best while v is mounted.
func MakeRoom(ctx context.Context, s Store, v VolumeID, bytes int64) error {
	resizer, ok := s.(Resizer)
	if !ok || bytes <= 0 {
		return nil
	}
	usage, err := s.Usage(ctx)
	if err != nil {
		return err
	}
	capacity, err := resizer.Capacity(ctx, v)
	if err != nil {
		return err
	}
	// The last block of a file is not full, and the file system needs some.
	missing := min(bytes+bytes/8, usage.Available) - capacity.Free
	if missing <= 0 {
		return nil
	}
	return resizer.Resize(ctx, v, capacity.Size+missing+missing/16)
}
