package nfs

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"sidus/image/index"
)

// files keeps a bounded number of files open: the ones used last.
type files struct{ shards [16]fileShard }

type fileShard struct {
	mu    sync.Mutex
	files map[fileKey]*openFile
	limit int
	// The ring of all files, the one used last after head.
	head openFile
}

type fileKey struct {
	snap *snapshot
	id   index.ID
}

// openFile is an open file. Who uses it holds a reference; it is closed when
// it is dropped from the cache and nobody holds one.
type openFile struct {
	key        fileKey
	fd         int
	refs       int
	dropped    bool
	prev, next *openFile

	// Times by stats.now: up to when the whole file is taken to be in the page
	// cache, and when to look again whether it is.
	cachedUntil, lookAt atomic.Int64
}

func newFiles(limit int) *files {
	c := &files{}
	for i := range c.shards {
		s := &c.shards[i]
		s.files = map[fileKey]*openFile{}
		s.limit = max(1, limit/len(c.shards))
		s.head.prev, s.head.next = &s.head, &s.head
	}
	return c
}

func (c *files) shard(id index.ID) *fileShard {
	return &c.shards[uint32(id)%uint32(len(c.shards))]
}

func (f *openFile) unlink() { f.prev.next, f.next.prev = f.next, f.prev }

func (s *fileShard) linkFirst(f *openFile) {
	f.prev, f.next = &s.head, s.head.next
	f.prev.next, f.next.prev = f, f
}

// get returns an open file with a reference for the caller, or nil.
func (c *files) get(key fileKey) *openFile {
	s := c.shard(key.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[key]
	if f != nil {
		f.refs++
		if s.head.next != f {
			f.unlink()
			s.linkFirst(f)
		}
	}
	return f
}

// put adds an open file and returns it with a reference for the caller. If
// another goroutine was faster, fd is closed and the other's file returned.
func (c *files) put(key fileKey, fd int) *openFile {
	s := c.shard(key.id)
	var closed []int
	s.mu.Lock()
	f := s.files[key]
	if f == nil {
		f = &openFile{key: key, fd: fd}
		s.files[key] = f
		s.linkFirst(f)
	} else {
		closed = append(closed, fd)
	}
	f.refs++
	for len(s.files) > s.limit {
		if old := s.drop(s.head.prev); old >= 0 {
			closed = append(closed, old)
		}
	}
	s.mu.Unlock()
	for _, fd := range closed {
		_ = unix.Close(fd)
	}
	return f
}

// drop takes a file out of the cache. It returns the descriptor to close, or
// -1 if the file is in use.
func (s *fileShard) drop(f *openFile) int {
	delete(s.files, f.key)
	f.unlink()
	f.dropped = true
	if f.refs > 0 {
		return -1
	}
	return f.fd
}

// release gives a reference back.
func (c *files) release(f *openFile) {
	s := c.shard(f.key.id)
	s.mu.Lock()
	f.refs--
	last := f.dropped && f.refs == 0
	s.mu.Unlock()
	if last {
		_ = unix.Close(f.fd)
	}
}

// purge drops all files of a snapshot, or all files if it is nil.
func (c *files) purge(snap *snapshot) {
	for i := range c.shards {
		s := &c.shards[i]
		var closed []int
		s.mu.Lock()
		for key, f := range s.files {
			if snap != nil && key.snap != snap {
				continue
			}
			if fd := s.drop(f); fd >= 0 {
				closed = append(closed, fd)
			}
		}
		s.mu.Unlock()
		for _, fd := range closed {
			_ = unix.Close(fd)
		}
	}
}

// len returns the number of files in the cache.
func (c *files) len() int {
	n := 0
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += len(s.files)
		s.mu.Unlock()
	}
	return n
}
