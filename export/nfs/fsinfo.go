package nfs

import (
	"math"

	"sidus/export/internal/xdr"
)

// fsstat answers FSSTAT (RFC 1813, section 3.3.18): the file system is full,
// and never changes.
func (k *call) fsstat() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	for _, v := range []uint64{o.snap.index.Used(), 0, 0, uint64(o.snap.index.Len()), 0, 0} {
		k.out = be.AppendUint64(k.out, v)
	}
	k.out = be.AppendUint32(k.out, math.MaxUint32) // invarsec
	return answered
}

// fsinfo answers FSINFO (section 3.3.19).
func (k *call) fsinfo() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	k.out = xdr.AppendUint32(k.out,
		maxReadSize, maxReadSize, 4096, // rtmax, rtpref, rtmult
		preferredWriteSize, preferredWriteSize, 4096, // wtmax, wtpref, wtmult
		maxDirectoryReply)
	k.out = be.AppendUint64(k.out, math.MaxInt64) // maxfilesize
	k.out = xdr.AppendUint32(k.out, 0, 1)         // time_delta: 1 ns
	k.out = be.AppendUint32(k.out, fsLink|fsSymlink|fsHomogeneous)
	return answered
}

// pathconf answers PATHCONF (section 3.3.20).
func (k *call) pathconf() outcome {
	var o object
	status, result := k.object(&o)
	if result != answered {
		return result
	}
	if status != nfsOK {
		return k.fail(status, 0)
	}
	k.out = be.AppendUint32(k.out, nfsOK)
	k.postOp(&o)
	k.out = xdr.AppendUint32(k.out, math.MaxInt32, maxNameLen,
		1, // no_trunc
		1, // chown_restricted
		0, // case_insensitive
		1) // case_preserving
	return answered
}
