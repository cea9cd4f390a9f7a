package nfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"sidus/image/index"
	"sidus/image/store"
)

// snapshot is an open snapshot. Who uses it holds a reference.
type snapshot struct {
	id     [16]byte
	serial uint64 // of the opening: no two snapshots of a server have the same
	name   store.SnapshotID
	fsid   uint64
	index  *index.Index
	root   int // descriptor of the root directory, O_PATH
	memory bool
	noWait atomic.Bool // the file system does not know RWF_NOWAIT
	close  func() error
	refs   atomic.Int64
	stats  snapshotStats
}

func (s *snapshot) release() {
	if s.refs.Add(-1) > 0 {
		return
	}
	_ = s.index.Close()
	_ = unix.Close(s.root)
	if s.close != nil {
		_ = s.close()
	}
}

// retryOpen is how long the failure to open a snapshot is remembered.
const retryOpen = time.Second

// slot is a place for a snapshot that is open, is being opened, or could not
// be opened a moment ago.
type slot struct {
	ready chan struct{} // closed when one of the following is set
	snap  *snapshot
	err   error
}

// snapshots are the open snapshots of a server.
type snapshots struct {
	server *Server
	mu     sync.RWMutex
	slots  map[[16]byte]*slot
	opened atomic.Uint64
}

var errNotOpen = errors.New("snapshot is not open yet")

// get returns a snapshot with a reference for the caller. Without wait it
// returns errNotOpen for one that has to be opened first.
func (t *snapshots) get(id *[16]byte, wait bool) (*snapshot, error) {
	t.mu.RLock()
	s := t.slots[*id]
	if s != nil && s.snap != nil {
		s.snap.refs.Add(1)
		t.mu.RUnlock()
		return s.snap, nil
	}
	var err error
	if s != nil {
		err = s.err
	}
	t.mu.RUnlock()
	if err != nil {
		return nil, err
	}
	if !wait {
		return nil, errNotOpen
	}
	return t.open(*id)
}

// open opens a snapshot, or waits for who is doing that already. It gives up
// after a while; the opening goes on.
func (t *snapshots) open(id [16]byte) (*snapshot, error) {
	t.mu.Lock()
	s := t.slots[id]
	if s == nil {
		s = &slot{ready: make(chan struct{})}
		t.slots[id] = s
		t.server.background.Go(func() { t.fill(id, s) })
	}
	t.mu.Unlock()

	timer := time.NewTimer(t.server.limits.OpenTimeout)
	defer timer.Stop()
	select {
	case <-s.ready:
	case <-timer.C:
		return nil, fmt.Errorf("opening takes long: %w", store.ErrUnavailable)
	case <-t.server.ctx.Done():
		return nil, t.server.ctx.Err()
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if s.err != nil {
		return nil, s.err
	}
	if t.slots[id] != s { // forgotten meanwhile
		return nil, store.ErrUnavailable
	}
	s.snap.refs.Add(1)
	return s.snap, nil
}

// fill opens the snapshot of a slot.
func (t *snapshots) fill(id [16]byte, s *slot) {
	snap, err := t.load(t.server.ctx, id)
	t.mu.Lock()
	s.snap, s.err = snap, err
	forgotten := t.slots[id] != s
	close(s.ready)
	t.mu.Unlock()
	switch {
	case err != nil:
		t.server.log.WithError(err).WithField("snapshot", store.SnapshotIDFromBytes(id)).Warn("snapshot cannot be served")
		time.AfterFunc(retryOpen, func() {
			t.mu.Lock()
			if t.slots[id] == s {
				delete(t.slots, id)
			}
			t.mu.Unlock()
		})
	case forgotten:
		snap.release()
	}
}

func (t *snapshots) load(ctx context.Context, id [16]byte) (*snapshot, error) {
	name := store.SnapshotIDFromBytes(id)
	opened, err := t.server.source.Open(ctx, name)
	if err != nil {
		return nil, err
	}
	s := &snapshot{id: id, name: name, index: opened.Index, close: opened.Close, serial: t.opened.Add(1)}
	s.fsid = binary.BigEndian.Uint64(id[:]) ^ binary.BigEndian.Uint64(id[8:])
	s.refs.Store(1)
	if s.root, err = unix.Open(opened.Root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		s.release()
		return nil, fmt.Errorf("%s: %w: %w", opened.Root, store.ErrUnavailable, err)
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(s.root, &fs); err == nil {
		s.memory = fs.Type == unix.TMPFS_MAGIC
	}
	return s, nil
}

// forget drops a snapshot, or all of them if id is nil.
func (t *snapshots) forget(id *[16]byte) {
	var dropped []*snapshot
	t.mu.Lock()
	for key, s := range t.slots {
		if id != nil && key != *id {
			continue
		}
		delete(t.slots, key)
		if s.snap != nil {
			dropped = append(dropped, s.snap)
		}
	}
	t.mu.Unlock()
	for _, s := range dropped {
		t.server.files.purge(s)
		s.release()
	}
}

// list returns the open snapshots, each with a reference.
func (t *snapshots) list() []*snapshot {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var all []*snapshot
	for _, s := range t.slots {
		if s.snap != nil {
			s.snap.refs.Add(1)
			all = append(all, s.snap)
		}
	}
	return all
}
