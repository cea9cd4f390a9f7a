package nfs

import (
	"sidus/image/index"

	"sidus/export/internal/xdr"
)

// The cookies of a directory's entries: they follow from an entry's place in
// the index, and so are good for ever; the verifier is zero. A cookie names
// the entry after which to go on.
const (
	cookieStart  = 0
	cookieDot    = 1
	cookieDotDot = 2
	cookieFirst  = 3 // of entry 0
)

// readdir answers READDIR and READDIRPLUS (RFC 1813, sections 3.3.16 and
// 3.3.17).
func (k *call) readdir(plus bool) outcome {
	var dir object
	status, result := k.object(&dir)
	if result != answered {
		return result
	}
	cookie, verifier := k.in.Uint64(), k.in.Uint64()
	dirCount := k.in.Uint32()
	count := dirCount
	if plus {
		count = k.in.Uint32()
	}
	if k.in.Bad {
		return answered
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	if !dir.attr.IsDir() {
		return k.failWith(nfsErrNotDir, &dir)
	}
	if !k.cred.may(dir.snap.index, &dir.attr, permRead) {
		return k.failWith(nfsErrAcces, &dir)
	}
	entries := dir.snap.index.Entries(&dir.attr)
	total := uint64(entries.Len()) + cookieFirst - 1 // cookie of the last entry
	if cookie > total || cookie != cookieStart && verifier != 0 {
		return k.failWith(nfsErrBadCookie, &dir)
	}
	count = min(count, maxDirectoryReply)
	if count < readdirOverhead {
		return k.failWith(nfsErrTooSmall, &dir)
	}
	// Attributes and handles of entries are for those who may look them up.
	attrs := plus && k.cred.may(dir.snap.index, &dir.attr, permExec)

	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&dir)
	k.out = be.AppendUint64(k.out, 0)
	left, names := int(count)-readdirOverhead, 0
	first := cookie
	for cookie < total {
		name, id := dir.entry(entries, cookie+1)
		if id == 0 {
			k.out = k.out[:k.start+28]
			return k.failWith(nfsErrIO, &dir)
		}
		padded := (len(name) + 3) &^ 3
		size := 4 + 8 + 4 + padded + 8
		if plus {
			size += 4 + 4
			if attrs {
				size += fattrSize + 4 + handleSize
			}
			names += 8 + 4 + padded + 8
		}
		if size > left || plus && names > int(dirCount) && cookie > first {
			break
		}
		left -= size
		cookie++
		k.entry(&dir, name, id, cookie, size, plus, attrs)
	}
	if cookie == first && cookie < total {
		k.out = k.out[:k.start+28]
		return k.failWith(nfsErrTooSmall, &dir)
	}
	end := uint32(0)
	if cookie == total {
		end = 1
	}
	k.out = xdr.AppendUint32(k.out, 0, end)
	return answered
}

// entry returns the name and inode of the entry with a cookie.
func (dir *object) entry(entries index.Entries, cookie uint64) ([]byte, index.ID) {
	switch cookie {
	case cookieDot:
		return dotDot[:1], dir.id
	case cookieDotDot:
		return dotDot, dir.snap.index.Parent(dir.id)
	}
	return entries.At(int(cookie - cookieFirst))
}

var dotDot = []byte("..")

// entry appends an entry3 or entryplus3 of the size given.
func (k *call) entry(dir *object, name []byte, id index.ID, cookie uint64, size int, plus, attrs bool) {
	var b []byte
	k.out, b = xdr.Extend(k.out, size)
	be.PutUint32(b, 1)
	be.PutUint64(b[4:], uint64(id))
	be.PutUint32(b[12:], uint32(len(name)))
	b = b[16:]
	n := (len(name) + 3) &^ 3
	if n > 0 {
		be.PutUint32(b[n-4:], 0)
	}
	copy(b, name)
	b = b[n:]
	be.PutUint64(b, cookie)
	if !plus {
		return
	}
	b = b[8:]
	if !attrs {
		be.PutUint64(b, 0)
		return
	}
	var a index.Attr
	dir.snap.index.Attr(id, &a)
	be.PutUint32(b, 1)
	putAttr(b[4:], dir.snap, id, &a)
	b = b[4+fattrSize:]
	be.PutUint32(b, 1)
	be.PutUint32(b[4:], handleSize)
	k.s.key.put(b[8:], &dir.snap.id, id)
}
