package nfs

// refuseWrite answers the calls that would change something with
// NFS3ERR_ROFS and the attributes of what they name. The arguments are read
// to the end, so that malformed ones are told from refused ones.
func (k *call) refuseWrite() outcome {
	var first, second object
	status, result := k.object(&first)
	if result != answered {
		return result
	}
	switch k.proc {
	case procSetattr:
		k.skipSattr()
		if k.in.Bool() { // guard
			k.in.Uint64()
		}
	case procWrite:
		k.in.Uint64()
		k.in.Uint32()
		if k.in.Uint32() > 2 { // stable_how
			k.in.Fail()
		}
		k.in.Opaque(maxXDRString)
	case procCreate:
		k.in.Opaque(maxXDRString)
		switch how := k.in.Uint32(); {
		case how < createExclusive:
			k.skipSattr()
		case how == createExclusive:
			k.in.Uint64()
		default:
			k.in.Fail()
		}
	case procMkdir:
		k.in.Opaque(maxXDRString)
		k.skipSattr()
	case procSymlink:
		k.in.Opaque(maxXDRString)
		k.skipSattr()
		k.in.Opaque(maxXDRString)
	case procMknod:
		k.in.Opaque(maxXDRString)
		switch kind := k.in.Uint32(); kind {
		case 3, 4: // block and character devices
			k.skipSattr()
			k.in.Uint64()
		case 6, 7: // sockets and FIFOs
			k.skipSattr()
		}
	case procRemove, procRmdir:
		k.in.Opaque(maxXDRString)
	case procRename, procLink:
		if k.proc == procRename {
			k.in.Opaque(maxXDRString)
		}
		var secondStatus uint32
		if secondStatus, result = k.object(&second); result != answered {
			return result
		}
		k.in.Opaque(maxXDRString)
		if status == nfsOK {
			status = secondStatus
		}
	}
	if k.in.Bad {
		return answered
	}
	if status == nfsOK {
		status = nfsErrROFS
	}
	k.stat.failed = true
	k.out = be.AppendUint32(k.out, status)
	switch k.proc {
	case procRename:
		k.wcc(&first)
		k.wcc(&second)
	case procLink:
		if first.attr.Mode == 0 {
			k.out = be.AppendUint32(k.out, 0)
		} else {
			k.postOp(&first)
		}
		k.wcc(&second)
	default:
		k.wcc(&first)
	}
	return answered
}

// skipSattr reads a sattr3.
func (k *call) skipSattr() {
	for range 3 { // mode, uid, gid
		if k.in.Bool() {
			k.in.Uint32()
		}
	}
	if k.in.Bool() { // size
		k.in.Uint64()
	}
	for range 2 { // atime, mtime
		switch k.in.Uint32() {
		case 0, 1: // unchanged, the server's time
		case 2:
			k.in.Uint64()
		default:
			k.in.Fail()
		}
	}
}

// wcc appends the wcc_data of an object that is as it was before: size, mtime
// and ctime, then all attributes. Of an object that was not found there is
// nothing.
func (k *call) wcc(o *object) {
	if o.attr.Mode == 0 {
		k.out = be.AppendUint64(k.out, 0)
		return
	}
	t := timeOf(&o.attr)
	k.out = be.AppendUint32(k.out, 1)
	k.out = be.AppendUint64(k.out, o.attr.Size)
	k.out = be.AppendUint64(k.out, t)
	k.out = be.AppendUint64(k.out, t)
	k.postOp(o)
}

// commit answers COMMIT (RFC 1813, section 3.3.21). Nothing is ever waiting
// to be written, so there is nothing to fail, and NFS3ERR_ROFS is not among
// its errors. The verifier is always the same.
func (k *call) commit() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	k.in.Uint64()
	k.in.Uint32()
	if status == nfsOK && !o.attr.IsRegular() {
		status = nfsErrInval
	}
	if status != nfsOK {
		k.stat.failed = true
	}
	k.out = be.AppendUint32(k.out, status)
	k.wcc(&o)
	if status == nfsOK {
		k.out = be.AppendUint64(k.out, 0)
	}
	return answered
}
