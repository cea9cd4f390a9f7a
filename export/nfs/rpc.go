package nfs

import "sidus/export/internal/xdr"

// The numbers of ONC RPC version 2 (RFC 5531).
const (
	rpcVersion = 2

	msgCall  = 0
	msgReply = 1

	replyAccepted = 0
	replyDenied   = 1

	acceptSuccess      = 0
	acceptProgUnavail  = 1
	acceptProgMismatch = 2
	acceptProcUnavail  = 3
	acceptGarbageArgs  = 4
	acceptSystemErr    = 5

	rejectRPCMismatch = 0
	rejectAuthError   = 1

	authBadCred = 1
	authTooWeak = 5

	flavorNone = 0
	flavorSys  = 1

	maxAuthBytes = 400
	maxGroups    = 16
	maxMachine   = 255

	// lastFragment marks the last fragment of a record (RFC 5531, section 11).
	lastFragment = 1 << 31
)

// nobody is the user and group of a caller without AUTH_SYS credentials.
const nobody = 65534

// credentials say who calls (RFC 5531, appendix A).
type credentials struct {
	uid, gid uint32
	groups   [maxGroups]uint32
	count    uint32
}

// decodeSys reads the body of AUTH_SYS credentials.
func (c *credentials) decodeSys(body []byte) bool {
	d := xdr.Decoder{Data: body}
	d.Uint32() // stamp
	d.Opaque(maxMachine)
	c.uid, c.gid = d.Uint32(), d.Uint32()
	n := d.Uint32()
	if n > maxGroups {
		return false
	}
	c.count = n
	for i := range n {
		c.groups[i] = d.Uint32()
	}
	return !d.Bad
}

// inGroup reports whether the caller is a member of a group.
func (c *credentials) inGroup(gid uint32) bool {
	if c.gid == gid {
		return true
	}
	for _, g := range c.groups[:c.count] {
		if g == gid {
			return true
		}
	}
	return false
}

// begin starts a reply: room for the record mark, the transaction's ID, and
// the header of an accepted call.
func (k *call) begin(status uint32) {
	var b []byte
	k.start = len(k.out)
	k.out, b = xdr.Extend(k.out, 28)
	be.PutUint32(b, 0)
	be.PutUint32(b[4:], k.xid)
	be.PutUint32(b[8:], msgReply)
	be.PutUint32(b[12:], replyAccepted)
	be.PutUint32(b[16:], flavorNone)
	be.PutUint32(b[20:], 0)
	be.PutUint32(b[24:], status)
}

// deny answers that the call is not accepted.
func (k *call) deny(words ...uint32) {
	k.start = len(k.out)
	k.out = xdr.AppendUint32(k.out, 0, k.xid, msgReply, replyDenied)
	k.out = xdr.AppendUint32(k.out, words...)
}

// restart drops what was answered of the current call and answers with an
// error of RPC instead.
func (k *call) restart(status uint32, words ...uint32) {
	k.out = k.out[:k.start]
	k.begin(status)
	k.out = xdr.AppendUint32(k.out, words...)
}

// end writes the record mark: the length of the reply, of which extra bytes
// are sent after the buffer.
func (k *call) end(extra int) {
	be.PutUint32(k.out[k.start:], lastFragment|uint32(len(k.out)-k.start-4+extra))
}

// outcome says what is to be done after a call was looked at.
type outcome int

const (
	answered outcome = iota // the reply is in the buffer
	deferred                // the call must wait for something: run it again where it may
	streamed                // the reply's head is in the buffer, file data follows
	ignored                 // there is no reply
	broken                  // the connection cannot go on
)

// run answers one RPC message. What it needs of the record it leaves in k, so
// that it may be called again with the same record after deferred.
func (k *call) run(record []byte) outcome {
	d := xdr.Decoder{Data: record}
	k.xid = d.Uint32()
	if kind := d.Uint32(); d.Bad {
		return broken
	} else if kind != msgCall {
		return ignored
	}
	version := d.Uint32()
	k.prog, k.vers, k.proc = d.Uint32(), d.Uint32(), d.Uint32()
	if d.Bad {
		return broken
	}
	k.stat = statKey{}
	if version != rpcVersion {
		k.deny(rejectRPCMismatch, rpcVersion, rpcVersion)
		k.end(0)
		return answered
	}
	flavor, body := d.Uint32(), d.Opaque(maxAuthBytes)
	d.Uint32()
	d.Opaque(maxAuthBytes)
	k.cred = credentials{uid: nobody, gid: nobody}
	if d.Bad || flavor == flavorSys && !k.cred.decodeSys(body) || flavor > flavorSys {
		k.deny(rejectAuthError, authBadCred)
		k.end(0)
		return answered
	}
	if k.refused && k.proc != 0 {
		k.deny(rejectAuthError, authTooWeak)
		k.end(0)
		return answered
	}
	k.in = d
	k.begin(acceptSuccess)
	var result outcome
	switch k.prog {
	case nfsProgram:
		result = k.nfs()
	case mountProgram:
		result = k.mount()
	case aclProgram:
		result = k.acl()
	default:
		k.restart(acceptProgUnavail)
	}
	switch result {
	case answered:
		if k.in.Bad {
			k.restart(acceptGarbageArgs)
		}
		k.end(0)
	case deferred:
		k.out = k.out[:k.start]
	}
	return result
}
