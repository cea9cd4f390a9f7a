package nfs

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioArgs holds the arguments of system calls that take pointers, so that they
// are not allocated for each.
type ioArgs struct {
	iov   unix.Iovec
	probe [1]byte
	span  cachestatRange
	stat  cachestat
}

// pread is preadv2(2) with one buffer.
func (a *ioArgs) pread(fd int, b []byte, offset int64, flags int) (int, error) {
	a.iov.Base = &b[0]
	a.iov.SetLen(len(b))
	n, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(fd), uintptr(unsafe.Pointer(&a.iov)), 1,
		uintptr(offset), 0, uintptr(flags))
	a.iov.Base = nil
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

// struct cachestat_range and struct cachestat of linux/mman.h.
type cachestatRange struct{ offset, length uint64 }

type cachestat struct{ cache, dirty, writeback, evicted, recentlyEvicted uint64 }

// sysCachestat is cachestat(2), the same number on all architectures.
const sysCachestat = 451

var noCachestat atomic.Bool

var pageSize = int64(os.Getpagesize())

// cached reports whether all pages of a part of a file are in the page cache.
// The error is ENOSYS before Linux 6.5.
func (a *ioArgs) cached(fd int, offset int64, length int) (bool, error) {
	if noCachestat.Load() {
		return false, unix.ENOSYS
	}
	first, last := offset/pageSize, (offset+int64(length)-1)/pageSize
	a.span = cachestatRange{uint64(first * pageSize), uint64((last - first + 1) * pageSize)}
	_, _, errno := unix.Syscall6(sysCachestat, uintptr(fd), uintptr(unsafe.Pointer(&a.span)),
		uintptr(unsafe.Pointer(&a.stat)), 0, 0, 0)
	if errno != 0 {
		if errno == unix.ENOSYS {
			noCachestat.Store(true)
		}
		return false, errno
	}
	return a.stat.cache >= uint64(last-first+1), nil
}

// inCore reports by mincore(2) whether all of a file is in the page cache, for
// kernels without cachestat. Only of files that the process owns the kernel
// tells the truth: it calls all pages of others cached. vec has room for a byte
// for each page.
func inCore(fd int, size int64, vec []byte) (bool, error) {
	addr, _, errno := unix.Syscall6(unix.SYS_MMAP, 0, uintptr(size), unix.PROT_READ, unix.MAP_SHARED, uintptr(fd), 0)
	if errno != 0 {
		return false, errno
	}
	vec = vec[:(size+pageSize-1)/pageSize]
	_, _, errno = unix.Syscall(unix.SYS_MINCORE, addr, uintptr(size), uintptr(unsafe.Pointer(&vec[0])))
	if _, _, unmap := unix.Syscall(unix.SYS_MUNMAP, addr, uintptr(size), 0); errno == 0 {
		errno = unmap
	}
	if errno != 0 {
		return false, errno
	}
	for _, page := range vec {
		if page&1 == 0 {
			return false, nil
		}
	}
	return true, nil
}
