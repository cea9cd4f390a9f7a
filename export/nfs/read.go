package nfs

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sidus/export/internal/xdr"
	"sidus/image/index"
)

// largeRead is the size in bytes from which on a READ is answered with
// sendfile. Below it, copying costs less than another system call.
const largeRead = 32 << 10

// read answers READ (RFC 1813, section 3.3.6).
func (k *call) read() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	offset, count := k.in.Uint64(), k.in.Uint32()
	if k.in.Bad {
		return answered
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	if !o.attr.IsRegular() {
		return k.failWith(nfsErrInval, &o)
	}
	if !k.cred.mayReadFile(o.snap.index, &o.attr) {
		return k.failWith(nfsErrAcces, &o)
	}
	length := 0
	if offset < o.attr.Size {
		length = int(min(uint64(count), maxReadSize, o.attr.Size-offset))
	}
	if length == 0 {
		k.readHead(&o, 0, offset >= o.attr.Size)
		return answered
	}
	if o.attr.Size <= smallFile && k.readSmall(&o, int64(offset), length) {
		return answered
	}
	if k.wait {
		// The disks are shared: no more than so many calls may wait for them.
		k.s.disk <- struct{}{}
		defer func() { <-k.s.disk }()
	}
	file, err := k.open(&o)
	if err == nil {
		result, err = k.readFile(&o, file, int64(offset), length)
		if result != streamed || err != nil {
			k.s.files.release(file)
		}
	}
	switch {
	case errors.Is(err, unix.EAGAIN) && !k.wait:
		return deferred
	case err != nil:
		k.s.logReadError(&o, err)
		k.out = k.out[:k.start+28]
		return k.failWith(nfsErrIO, &o)
	}
	return result
}

// readSmall answers from the memory for small files, if the file is there.
func (k *call) readSmall(o *object, offset int64, length int) bool {
	before := len(k.out)
	k.readHead(o, length, uint64(offset)+uint64(length) == o.attr.Size)
	var b []byte
	k.out, b = xdr.Extend(k.out, (length+3)&^3)
	if !k.s.small.read(smallKey{o.snap.serial, o.id}, b[:length], offset) {
		k.out = k.out[:before]
		return false
	}
	clear(b[length:])
	return true
}

// keepSmall reads the whole of a small file into the memory for them. It fails
// with EAGAIN if that is not in the page cache and the call may not wait.
func (k *call) keepSmall(o *object, f *openFile) error {
	scratch := k.s.scratch.Get().(*[]byte)
	defer k.s.scratch.Put(scratch)
	data := (*scratch)[:o.attr.Size]
	if err := k.fill(o, f.fd, data, 0); err != nil {
		return err
	}
	k.s.small.put(smallKey{o.snap.serial, o.id}, data)
	return nil
}

// readHead appends a READ3resok up to the data.
func (k *call) readHead(o *object, length int, eof bool) {
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(o)
	end := uint32(0)
	if eof {
		end = 1
	}
	k.out = xdr.AppendUint32(k.out, uint32(length), end, uint32(length))
}

// open returns the open file of an inode, from the cache if it is there. It
// fails with EAGAIN where it would have to wait and may not.
func (k *call) open(o *object) (*openFile, error) {
	key := fileKey{o.snap, o.id}
	if f := k.s.files.get(key); f != nil {
		return f, nil
	}
	var err error
	if k.path, err = o.snap.index.AppendPath(k.path[:0], o.id); err != nil {
		return nil, err
	}
	fd, err := index.OpenAt(o.snap.root, k.path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, !k.wait)
	if err != nil {
		return nil, err
	}
	return k.s.files.put(key, fd), nil
}

var errShort = errors.New("file is shorter than its index says")

// readFile answers with length bytes of a file. It fails with EAGAIN if they
// are not in memory and the call may not wait.
func (k *call) readFile(o *object, f *openFile, offset int64, length int) (outcome, error) {
	if !k.wait && !o.snap.memory && o.snap.noWait.Load() {
		return 0, unix.EAGAIN
	}
	if o.attr.Size <= smallFile {
		if err := k.keepSmall(o, f); err != nil {
			return 0, err
		}
		if k.readSmall(o, offset, length) {
			return answered, nil
		}
	}
	eof := uint64(offset)+uint64(length) == o.attr.Size
	if length < largeRead {
		k.readHead(o, length, eof)
		padded := (length + 3) &^ 3
		var b []byte
		k.out, b = xdr.Extend(k.out, padded)
		if err := k.fill(o, f.fd, b[:length], offset); err != nil {
			return 0, err
		}
		clear(b[length:])
		return answered, nil
	}
	if err := k.warm(o, f, offset, length); err != nil {
		return 0, err
	}
	k.readHead(o, length, eof)
	k.file, k.offset, k.length = f, offset, length
	k.end((length + 3) &^ 3)
	return streamed, nil
}

// fill reads into the whole of b.
func (k *call) fill(o *object, fd int, b []byte, offset int64) error {
	flags := unix.RWF_NOWAIT
	if k.wait || o.snap.memory {
		flags = 0
	}
	for {
		n, err := k.io.pread(fd, b, offset, flags)
		switch {
		case err == nil && n == len(b):
			return nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP) && flags != 0:
			o.snap.noWait.Store(true)
			return unix.EAGAIN
		case err != nil:
			return err
		case n == 0 && k.wait:
			return errShort
		case n == 0:
			return unix.EAGAIN // the end of a short file: the call that may wait says so
		}
		b, offset = b[max(n, 0):], offset+int64(max(n, 0))
	}
}

// warm makes sure that a part of a file is in the page cache, from where
// sendfile takes it. A call that may not wait only looks.
func (k *call) warm(o *object, f *openFile, offset int64, length int) error {
	if o.snap.memory || k.wholeCached(o, f) {
		return nil
	}
	fd := f.fd
	if k.wait {
		scratch := k.s.scratch.Get().(*[]byte)
		defer k.s.scratch.Put(scratch)
		for length > 0 {
			b := (*scratch)[:min(length, len(*scratch))]
			if err := k.fill(o, fd, b, offset); err != nil {
				return err
			}
			length -= len(b)
			offset += int64(len(b))
		}
		return nil
	}
	if cached, err := k.io.cached(fd, offset, length); err == nil && !cached {
		return unix.EAGAIN
	}
	// Pages that are being read count as cached, and Linux before 6.5 does not
	// tell: look at the first page and the last, which is read after the rest.
	if err := k.fill(o, fd, k.io.probe[:], offset); err != nil {
		return err
	}
	return k.fill(o, fd, k.io.probe[:], offset+int64(length)-1)
}

const (
	// cachedTime is how long a file that was found in the page cache, all of
	// it, is taken to stay there: what is in use is not evicted that fast.
	cachedTime = int64(200 * time.Millisecond)
	// cachedSize is the size up to which it is worth looking.
	cachedSize = 64 << 20
	// inCoreSize is the size from which on that is worth mincore, which costs
	// as much as the system calls of some reads.
	inCoreSize = 1 << 20
)

var ownUID = uint32(os.Geteuid())

// wholeCached tells whether the whole of a file is in the page cache, as far
// as is known: three system calls less for each of its large reads.
func (k *call) wholeCached(o *object, f *openFile) bool {
	now := k.s.stats.now()
	if now < f.cachedUntil.Load() {
		return true
	}
	if o.attr.Size > cachedSize || now < f.lookAt.Load() {
		return false
	}
	f.lookAt.Store(now + cachedTime)
	cached, err := k.io.cached(f.fd, 0, int(o.attr.Size))
	if errors.Is(err, unix.ENOSYS) && o.attr.UID == ownUID && o.attr.Size >= inCoreSize {
		scratch := k.s.scratch.Get().(*[]byte)
		cached, err = inCore(f.fd, int64(o.attr.Size), *scratch)
		k.s.scratch.Put(scratch)
	}
	if err != nil || !cached {
		return false
	}
	// The last page is read after the rest: see warm.
	n, err := k.io.pread(f.fd, k.io.probe[:], int64(o.attr.Size)-1, unix.RWF_NOWAIT)
	if err != nil || n != 1 {
		return false
	}
	f.cachedUntil.Store(now + cachedTime)
	return true
}
