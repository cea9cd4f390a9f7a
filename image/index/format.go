package index

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
)

// ErrCorrupt is wrapped by the errors that say that a file is no index, not a
// whole one, or one of another version of the format.
var ErrCorrupt = errors.New("not a valid index")

// Version is the version of the file format that this package writes and
// reads. An index of another version is built again, not converted.
const Version = 1

// The layout of the file, see docs/index-format.md. All numbers are
// little-endian. The sections follow the header in the order of the table,
// each at a multiple of sectionAlign.
const (
	magic        = "SIDUSIDX"
	headerSize   = 192
	sectionAlign = 64

	offMagic      = 0
	offVersion    = 8
	offHeaderSize = 12
	offFileSize   = 16
	offDataBytes  = 24 // sum of the sizes of regular files
	offUsedBytes  = 32 // sum of the space used by all inodes
	offSections   = 40 // sectionCount pairs of offset and length
	offDigest     = 136

	inodeSize  = 64
	direntSize = 8
	aclSize    = 8
	maxName    = 255
)

// The sections of the file.
const (
	secInodes = iota
	secDirents
	secNames
	secTargets
	secACLs
	sectionCount
)

// The fields of an inode record.
const (
	inoMode   = 0
	inoNlink  = 4
	inoUID    = 8
	inoGID    = 12
	inoSize   = 16
	inoMtime  = 24
	inoNsec   = 32
	inoMajor  = 36
	inoMinor  = 40
	inoParent = 44
	inoName   = 48
	inoACL    = 52 // offset in the ACL section plus 1, or 0
	inoFirst  = 56 // directory: first entry; symbolic link: offset of target
	inoCount  = 60 // directory: entries; symbolic link: length of target
)

var le = binary.LittleEndian

// Digest is the SHA-256 of an index file, its own field taken as zero.
type Digest [32]byte

// String returns the digest as 64 hexadecimal digits.
func (d Digest) String() string { return hex.EncodeToString(d[:]) }

// ID is a file ID: the number of an inode in its snapshot, from 1.
type ID uint32

// Root is the ID of the root directory.
const Root ID = 1

// The type bits of Attr.Mode, as in inode(7).
const (
	ModeType    = 0o170000
	ModeSocket  = 0o140000
	ModeSymlink = 0o120000
	ModeRegular = 0o100000
	ModeBlock   = 0o060000
	ModeDir     = 0o040000
	ModeChar    = 0o020000
	ModeFIFO    = 0o010000
)

// Attr holds the attributes of an inode.
type Attr struct {
	Mode       uint32 // type and permission bits as in inode(7)
	Nlink      uint32
	UID, GID   uint32
	Size       uint64 // bytes
	Mtime      int64  // seconds since 1970
	MtimeNsec  uint32
	Major      uint32 // of a device
	Minor      uint32
	HasACL     bool // an access ACL takes part in permission checks
	aclOffset  uint32
	first, num uint32
}

// IsDir reports whether the inode is a directory.
func (a *Attr) IsDir() bool { return a.Mode&ModeType == ModeDir }

// IsRegular reports whether the inode is a regular file.
func (a *Attr) IsRegular() bool { return a.Mode&ModeType == ModeRegular }

// IsSymlink reports whether the inode is a symbolic link.
func (a *Attr) IsSymlink() bool { return a.Mode&ModeType == ModeSymlink }

// Used is the space that the inode takes, in bytes: a canonical figure that
// follows from the size, since the real one differs between backends.
func (a *Attr) Used() uint64 {
	switch a.Mode & ModeType {
	case ModeRegular, ModeDir:
		return (a.Size + 4095) &^ 4095
	}
	return 0
}

// ACLEntry is one entry of a POSIX access control list, see acl(5).
type ACLEntry struct {
	Tag  uint16
	Perm uint16 // 4 read, 2 write, 1 execute
	ID   uint32 // of ACLUser and ACLGroup
}

// The tags of ACL entries, as in linux/posix_acl.h.
const (
	ACLUserObj  = 0x01
	ACLUser     = 0x02
	ACLGroupObj = 0x04
	ACLGroup    = 0x08
	ACLMask     = 0x10
	ACLOther    = 0x20
)

func align(n uint64) uint64 { return (n + sectionAlign - 1) &^ (sectionAlign - 1) }
