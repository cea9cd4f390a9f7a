package nfs

import (
	"sync"

	"golang.org/x/sys/unix"

	"sidus/image/index"
)

// smallFile is the size in bytes up to which files are kept in memory. They
// are most of the files of a tree, and a boot reads the same ones on every
// machine: to copy one from here takes a quarter of what a system call takes
// that reads it from the page cache. Larger ones go out by sendfile.
const smallFile = largeRead - 1

// smallFiles keeps the contents of small files, a bounded number of bytes of
// them, outside the heap. What a snapshot holds never changes, so nothing is
// ever taken back; what is not asked for is overwritten in the end.
type smallFiles struct {
	shards [16]smallShard
	half   int // bytes of each half of a shard
}

// smallShard has two halves. One is being filled; when it is full, the other
// is emptied and filled. What is found in the other is copied into the one
// that is being filled, so that what is asked for stays.
type smallShard struct {
	mu     sync.Mutex
	young  int
	halves [2]struct {
		at   map[smallKey]span
		data []byte // nil until it is needed
		used int
	}
}

type smallKey struct {
	snap uint64 // snapshot.serial
	id   index.ID
}

type span struct{ from, to int32 }

func (c *smallFiles) init(limit int) {
	c.half = min(limit, 1<<34) / len(c.shards) / 2
}

func (c *smallFiles) shard(id index.ID) *smallShard {
	return &c.shards[uint32(id)%uint32(len(c.shards))]
}

// read copies to dst a part of a file that holds at least offset+len(dst)
// bytes. It returns false if the file is not here.
func (c *smallFiles) read(key smallKey, dst []byte, offset int64) bool {
	s := c.shard(key.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.halves[s.young]
	at, ok := h.at[key]
	old := !ok
	if old {
		h = &s.halves[1-s.young]
		if at, ok = h.at[key]; !ok {
			return false
		}
	}
	data := h.data[at.from:at.to]
	copy(dst, data[offset:])
	if old {
		c.add(s, key, data)
	}
	return true
}

// put keeps the contents of a file.
func (c *smallFiles) put(key smallKey, data []byte) {
	if len(data) > c.half {
		return
	}
	s := c.shard(key.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	c.add(s, key, data)
}

// add appends a file to the half that is being filled. data may lie in the
// other half, also if that is emptied and filled now: copy takes care of it.
func (c *smallFiles) add(s *smallShard, key smallKey, data []byte) {
	h := &s.halves[s.young]
	if h.data != nil && h.used+len(data) > c.half {
		s.young = 1 - s.young
		h = &s.halves[s.young]
		clear(h.at)
		h.used = 0
	}
	if h.data == nil {
		b, err := unix.Mmap(-1, 0, c.half, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
		if err != nil {
			return
		}
		h.data, h.at = b, map[smallKey]span{}
	}
	if _, ok := h.at[key]; ok {
		return
	}
	n := copy(h.data[h.used:], data)
	h.at[key] = span{int32(h.used), int32(h.used + n)}
	h.used += n
}

// free gives the memory back. Nobody may use it any more.
func (c *smallFiles) free() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for j := range s.halves {
			h := &s.halves[j]
			if h.data != nil {
				_ = unix.Munmap(h.data)
			}
			h.data, h.at, h.used = nil, nil, 0
		}
		s.mu.Unlock()
	}
}
