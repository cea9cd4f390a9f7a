package nfs

import (
	"math"

	"sidus/export/internal/xdr"
	"sidus/image/index"
)

// The file types of RFC 1813, ftype3, by the type bits of a mode.
var fileTypes = [16]uint32{
	index.ModeRegular >> 12: 1,
	index.ModeDir >> 12:     2,
	index.ModeBlock >> 12:   3,
	index.ModeChar >> 12:    4,
	index.ModeSymlink >> 12: 5,
	index.ModeSocket >> 12:  6,
	index.ModeFIFO >> 12:    7,
}

// putAttr writes a fattr3 of fattrSize bytes.
func putAttr(b []byte, snap *snapshot, id index.ID, a *index.Attr) {
	_ = b[fattrSize-1]
	be.PutUint32(b, fileTypes[a.Mode>>12&15])
	be.PutUint32(b[4:], a.Mode&0o7777)
	be.PutUint32(b[8:], a.Nlink)
	be.PutUint32(b[12:], a.UID)
	be.PutUint32(b[16:], a.GID)
	be.PutUint64(b[20:], a.Size)
	be.PutUint64(b[28:], a.Used())
	be.PutUint32(b[36:], a.Major)
	be.PutUint32(b[40:], a.Minor)
	be.PutUint64(b[44:], snap.fsid)
	be.PutUint64(b[52:], uint64(id))
	t := timeOf(a)
	be.PutUint64(b[60:], t) // atime
	be.PutUint64(b[68:], t) // mtime
	be.PutUint64(b[76:], t) // ctime
}

// timeOf returns an inode's time as an nfstime3. Its seconds are unsigned, of
// 32 bits: what lies outside becomes the nearest time that fits.
func timeOf(a *index.Attr) uint64 {
	switch {
	case a.Mtime < 0:
		return 0
	case a.Mtime > math.MaxUint32:
		return math.MaxUint32 << 32
	}
	return uint64(a.Mtime)<<32 | uint64(a.MtimeNsec)
}

// getattr answers GETATTR (RFC 1813, section 3.3.1).
func (k *call) getattr() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	if status != nfsOK {
		return k.fail(status)
	}
	var b []byte
	k.out, b = xdr.Extend(k.out, 4+fattrSize)
	be.PutUint32(b, nfsOK)
	putAttr(b[4:], o.snap, o.id, &o.attr)
	return answered
}

// access answers ACCESS (section 3.3.4). What would change the file system is
// never granted, EXECUTE means nothing for a directory, and LOOKUP nothing
// for anything else.
func (k *call) access() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	asked := k.in.Uint32()
	if status != nfsOK {
		return k.fail(status, 0)
	}
	var granted uint32
	if k.cred.may(o.snap.index, &o.attr, permRead) {
		granted |= accessRead
	}
	if k.cred.may(o.snap.index, &o.attr, permExec) {
		if o.attr.IsDir() {
			granted |= accessLookup
		} else {
			granted |= accessExecute
		}
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	k.out = be.AppendUint32(k.out, asked&granted)
	return answered
}

// readlink answers READLINK (section 3.3.5).
func (k *call) readlink() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	if !o.attr.IsSymlink() {
		return k.failWith(nfsErrInval, &o)
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	k.out = xdr.AppendOpaque(k.out, o.snap.index.Target(&o.attr))
	return answered
}
