package nfs

import (
	"errors"

	"sidus/export/internal/xdr"
	"sidus/image/index"
)

// call is a call that is being answered. A connection has one for the calls
// that it answers itself; a deferred call has one of its own.
type call struct {
	s       *Server
	conn    *conn
	wait    bool // may wait for disks and for snapshots to be opened
	refused bool // the client may not use this server

	xid, prog, vers, proc uint32
	cred                  credentials
	in                    xdr.Decoder
	out                   []byte
	start                 int // of the current reply in out
	stat                  statKey

	// The snapshots used last, with a reference each. Two, since RENAME and
	// LINK take two handles.
	cur, prev *snapshot

	// What a streamed reply sends after the buffer.
	file   *openFile
	offset int64
	length int

	path []byte // scratch
	io   ioArgs
}

// object is an inode that a handle in the call names.
type object struct {
	snap *snapshot
	id   index.ID
	attr index.Attr
}

// release gives back the snapshots.
func (k *call) release() {
	if k.cur != nil {
		k.cur.release()
		k.cur = nil
	}
	if k.prev != nil {
		k.prev.release()
		k.prev = nil
	}
}

// object takes a handle from the arguments and finds what it names. The
// status is nfsOK, or the error to answer with; the outcome is deferred if
// that takes waiting.
func (k *call) object(o *object) (uint32, outcome) {
	handle := k.in.Opaque(maxHandle)
	if k.in.Bad {
		return nfsErrBadHandle, answered
	}
	snapshot, id, ok := k.s.key.check(handle)
	if !ok {
		return nfsErrBadHandle, answered
	}
	if err := k.use(snapshot); err != nil {
		switch {
		case errors.Is(err, errNotOpen):
			return 0, deferred
		case errors.Is(err, ErrDeleted):
			return nfsErrStale, answered
		default:
			return nfsErrJukebox, answered
		}
	}
	o.snap, o.id = k.cur, id
	if !k.cur.index.Attr(id, &o.attr) {
		return nfsErrBadHandle, answered
	}
	return nfsOK, answered
}

// use makes a snapshot the current one.
func (k *call) use(id *[16]byte) error {
	if k.cur != nil && k.cur.id == *id {
		return nil
	}
	snap, err := k.s.snapshots.get(id, k.wait)
	if err != nil {
		return err
	}
	if k.prev != nil {
		k.prev.release()
	}
	k.cur, k.prev = snap, k.cur
	return nil
}

// nfs answers a call of the NFS program.
func (k *call) nfs() outcome {
	if k.vers != nfsVersion {
		k.restart(acceptProgMismatch, nfsVersion, nfsVersion)
		return answered
	}
	if k.proc < procCount {
		k.stat.proc = k.proc + 1
	}
	switch k.proc {
	case procNull:
		return answered
	case procGetattr:
		return k.getattr()
	case procLookup:
		return k.lookup()
	case procAccess:
		return k.access()
	case procReadlink:
		return k.readlink()
	case procRead:
		return k.read()
	case procReaddir:
		return k.readdir(false)
	case procReaddirplus:
		return k.readdir(true)
	case procFsstat:
		return k.fsstat()
	case procFsinfo:
		return k.fsinfo()
	case procPathconf:
		return k.pathconf()
	case procCommit:
		return k.commit()
	case procSetattr, procWrite, procCreate, procMkdir, procSymlink, procMknod, procRemove, procRmdir, procRename,
		procLink:
		return k.refuseWrite()
	}
	k.restart(acceptProcUnavail)
	return answered
}

// fail answers with an error and then words, mostly the zeros that say that
// there are no attributes.
func (k *call) fail(status uint32, words ...uint32) outcome {
	k.stat.failed = true
	k.out = be.AppendUint32(k.out, status)
	k.out = xdr.AppendUint32(k.out, words...)
	return answered
}

// failWith answers with an error and the attributes of an object.
func (k *call) failWith(status uint32, o *object) outcome {
	k.stat.failed = true
	k.out = be.AppendUint32(k.out, status)
	k.postOp(o)
	return answered
}

// postOp appends the attributes of an object as a post_op_attr.
func (k *call) postOp(o *object) {
	var b []byte
	k.out, b = xdr.Extend(k.out, postOpAttrSize)
	be.PutUint32(b, 1)
	putAttr(b[4:], o.snap, o.id, &o.attr)
}
