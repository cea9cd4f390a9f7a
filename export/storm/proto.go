package storm

import (
	"encoding/binary"
	"hash/crc32"
	"hash/fnv"

	"sidus/export/internal/xdr"
)

var be = binary.BigEndian

// The numbers of NFS version 3 and MOUNT version 3 (RFC 1813).
const (
	nfsProgram   = 100003
	mountProgram = 100005
	version      = 3
	mountProcMnt = 1

	procNull        = 0
	procGetattr     = 1
	procLookup      = 3
	procAccess      = 4
	procReadlink    = 5
	procRead        = 6
	procReaddir     = 16
	procReaddirplus = 17
	procFsstat      = 18
	procFsinfo      = 19
	procPathconf    = 20

	typeRegular   = 1
	typeDirectory = 2
	typeBlock     = 3
	typeChar      = 4
	typeSymlink   = 5
	typeSocket    = 6
	typeFIFO      = 7

	// accessReading are the bits of ACCESS about which read-only servers agree:
	// READ, LOOKUP and EXECUTE.
	accessReading = 0x01 | 0x02 | 0x20

	maxHandle = 64
	maxName   = 255
	maxPath   = 4096
	// maxRecord is the largest reply: READ of 1 MiB, which is what clients ask
	// for at most, and its head; four times that for foreign servers.
	maxRecord    = 4<<20 + 4096
	lastFragment = 1 << 31
)

// procByName are the calls that a recording can hold.
var procByName = map[string]uint32{
	"NULL": procNull, "GETATTR": procGetattr, "LOOKUP": procLookup, "ACCESS": procAccess, "READLINK": procReadlink,
	"READ": procRead, "READDIR": procReaddir, "READDIRPLUS": procReaddirplus, "FSSTAT": procFsstat,
	"FSINFO": procFsinfo, "PATHCONF": procPathconf,
}

var nameByProc = func() map[uint32]string {
	names := map[uint32]string{}
	for name, proc := range procByName {
		names[proc] = name
	}
	return names
}()

// setAttr takes an fattr3 (RFC 1813, section 2.5).
func (o *Object) setAttr(d *xdr.Decoder) {
	var a Object
	a.Type, a.Mode, a.Links, a.UID, a.GID = d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32(), d.Uint32()
	a.Size = d.Uint64()
	d.Uint64() // used
	a.Major, a.Minor = d.Uint32(), d.Uint32()
	d.Uint64() // fsid
	d.Uint64() // fileid
	d.Uint64() // atime
	a.Sec, a.Nsec = d.Uint32(), d.Uint32()
	d.Uint64() // ctime
	if d.Bad {
		return
	}
	if a.Type == typeDirectory {
		a.Size, a.Links = 0, 0 // of directories, these are the file system's own
	}
	if a.Type != typeBlock && a.Type != typeChar {
		a.Major, a.Minor = 0, 0
	}
	a.Parent, a.Name, a.Target, a.Listing = o.Parent, o.Name, o.Target, o.Listing
	*o = a
}

// setPostOp takes a post_op_attr.
func (o *Object) setPostOp(d *xdr.Decoder) {
	if d.Bool() {
		o.setAttr(d)
	}
}

// sameAttr compares attributes that were recorded with others.
func (o *Object) sameAttr(other *Object) bool {
	if o.Type == 0 || other.Type == 0 {
		return true
	}
	a, b := *o, *other
	b.Parent, b.Name, b.Target, b.Listing = a.Parent, a.Name, a.Target, a.Listing
	return a == b
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// listing is the digest of one name in a directory. That of a directory is the
// sum of those of its names but "." and "..", since servers differ in order.
func listing(name []byte) uint64 {
	if string(name) == "." || string(name) == ".." {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(name)
	return h.Sum64()
}

// entry is an entry of a directory in a reply.
type entry struct {
	name   []byte
	cookie uint64
	attr   Object
	handle []byte // nil if there is none
}

// entries takes the entries of READDIR3resok or READDIRPLUS3resok, after the
// directory's attributes and the verifier, and calls each.
func entries(d *xdr.Decoder, plus bool, each func(e *entry)) (eof bool) {
	for d.Bool() {
		var e entry
		d.Uint64() // fileid
		e.name = d.Opaque(maxName)
		e.cookie = d.Uint64()
		if plus {
			e.attr.setPostOp(d)
			if d.Bool() {
				e.handle = d.Opaque(maxHandle)
			}
		}
		if d.Bad {
			return false
		}
		each(&e)
	}
	return d.Bool()
}
