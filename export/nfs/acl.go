package nfs

import (
	"sidus/export/internal/xdr"
	"sidus/image/index"
)

// NFSACL, version 3, is a protocol beside NFS by which clients ask for POSIX
// access control lists. It is Solaris' and has no RFC; what Linux speaks is in
// its include/linux/nfsacl.h and fs/nfs_common/nfsacl.c.
//
// Linux clients need it: where it is missing, each access check of an overlay
// on an NFS mount by somebody who is neither owner nor superuser ends with
// EOPNOTSUPP, also for files without an ACL.
const (
	aclProgram = 100227
	aclVersion = 3

	aclProcNull   = 0
	aclProcGetacl = 1
	aclProcSetacl = 2

	// What is asked for and answered.
	aclAccess       = 0x1
	aclAccessCount  = 0x2
	aclDefault      = 0x4
	aclDefaultCount = 0x8
	aclAll          = aclAccess | aclAccessCount | aclDefault | aclDefaultCount
)

// acl answers a call of the NFSACL program.
func (k *call) acl() outcome {
	if k.vers != aclVersion {
		k.restart(acceptProgMismatch, aclVersion, aclVersion)
		return answered
	}
	switch k.proc {
	case aclProcNull:
		return answered
	case aclProcGetacl:
		return k.getacl()
	case aclProcSetacl:
		var o object
		status, result := k.object(&o)
		if result != answered {
			return result
		}
		if status != nfsOK {
			return k.fail(status, 0)
		}
		return k.failWith(nfsErrROFS, &o)
	}
	k.restart(acceptProcUnavail)
	return answered
}

// getacl answers GETACL: with the access ACL, or the one that the mode bits
// mean. Default ACLs, which only count where something is created, are not
// told.
func (k *call) getacl() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	mask := k.in.Uint32()
	switch {
	case k.in.Bad:
		return answered
	case status != nfsOK:
		return k.fail(status, 0)
	case mask&^aclAll != 0:
		return k.failWith(nfsErrInval, &o)
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	k.out = be.AppendUint32(k.out, mask)
	if mask&(aclAccess|aclAccessCount) == 0 {
		k.out = xdr.AppendUint32(k.out, 0, 0)
	} else {
		k.accessACL(&o, mask&aclAccess != 0)
	}
	k.out = xdr.AppendUint32(k.out, 0, 0) // no default ACL
	return answered
}

// accessACL appends the number of entries and, if they are wanted, the
// entries. A list without a mask gets one that takes nothing away, since
// Solaris knows no list without.
func (k *call) accessACL(o *object, entries bool) {
	a := &o.attr
	list := o.snap.index.ACL(a)
	masked := false
	for i := range list.Len() {
		masked = masked || list.At(i).Tag == index.ACLMask
	}
	count := uint32(list.Len())
	switch {
	case count == 0:
		count = 4
	case !masked:
		count++
	}
	k.out = be.AppendUint32(k.out, count)
	if !entries {
		k.out = be.AppendUint32(k.out, 0)
		return
	}
	k.out = be.AppendUint32(k.out, count)
	user, group, other := a.Mode>>6&7, a.Mode>>3&7, a.Mode&7
	if list.Len() == 0 {
		k.out = xdr.AppendUint32(k.out, index.ACLUserObj, a.UID, user, index.ACLGroupObj, a.GID, group,
			index.ACLMask, 0, group, index.ACLOther, 0, other)
		return
	}
	for i := range list.Len() {
		e := list.At(i)
		id := e.ID
		switch e.Tag {
		case index.ACLUserObj:
			id = a.UID
		case index.ACLGroupObj:
			id = a.GID
		case index.ACLMask:
			id = 0
		case index.ACLOther:
			if id = 0; !masked {
				k.out = xdr.AppendUint32(k.out, index.ACLMask, 0, group)
			}
		}
		k.out = xdr.AppendUint32(k.out, uint32(e.Tag), id, uint32(e.Perm))
	}
}
