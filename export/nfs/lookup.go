package nfs

import (
	"bytes"

	"sidus/export/internal/xdr"
	"sidus/image/index"
)

// lookup answers LOOKUP (RFC 1813, section 3.3.3).
func (k *call) lookup() outcome {
	var dir, found object
	status, result := k.object(&dir)
	if result != answered {
		return result
	}
	name := k.in.Opaque(maxXDRString)
	if status != nfsOK {
		return k.fail(status, 0)
	}
	if found.id, status = k.find(&dir, name); status != nfsOK {
		return k.failWith(status, &dir)
	}
	found.snap = dir.snap
	if !dir.snap.index.Attr(found.id, &found.attr) {
		return k.failWith(nfsErrIO, &dir)
	}
	var b []byte
	k.out, b = xdr.Extend(k.out, 8+handleSize)
	be.PutUint32(b, nfsOK)
	be.PutUint32(b[4:], handleSize)
	k.s.key.put(b[8:], &dir.snap.id, found.id)
	k.postOp(&found)
	k.postOp(&dir)
	return answered
}

// find looks up a name, "." and ".." included, for the caller.
func (k *call) find(dir *object, name []byte) (index.ID, uint32) {
	switch {
	case !dir.attr.IsDir():
		return 0, nfsErrNotDir
	case len(name) > maxNameLen:
		return 0, nfsErrNameTooLong
	case !k.cred.may(dir.snap.index, &dir.attr, permExec):
		return 0, nfsErrAcces
	case len(name) == 0 || bytes.IndexByte(name, '/') >= 0 || bytes.IndexByte(name, 0) >= 0:
		return 0, nfsErrAcces // section 3.2: names that the server does not accept
	case name[0] == '.' && len(name) == 1:
		return dir.id, nfsOK
	case name[0] == '.' && name[1] == '.' && len(name) == 2:
		if parent := dir.snap.index.Parent(dir.id); parent != 0 {
			return parent, nfsOK
		}
		return 0, nfsErrIO
	}
	entries := dir.snap.index.Entries(&dir.attr)
	if id := entries.Find(name); id != 0 {
		return id, nfsOK
	}
	return 0, nfsErrNoEnt
}
