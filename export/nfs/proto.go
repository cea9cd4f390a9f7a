package nfs

import "encoding/binary"

// All numbers on the wire are big-endian.
var be = binary.BigEndian

// zeros pads data.
var zeros [4]byte

// The numbers of NFS version 3 (RFC 1813).
const (
	nfsProgram = 100003
	nfsVersion = 3

	procNull        = 0
	procGetattr     = 1
	procSetattr     = 2
	procLookup      = 3
	procAccess      = 4
	procReadlink    = 5
	procRead        = 6
	procWrite       = 7
	procCreate      = 8
	procMkdir       = 9
	procSymlink     = 10
	procMknod       = 11
	procRemove      = 12
	procRmdir       = 13
	procRename      = 14
	procLink        = 15
	procReaddir     = 16
	procReaddirplus = 17
	procFsstat      = 18
	procFsinfo      = 19
	procPathconf    = 20
	procCommit      = 21
	procCount       = 22

	nfsOK              = 0
	nfsErrIO           = 5
	nfsErrAcces        = 13
	nfsErrNotDir       = 20
	nfsErrInval        = 22
	nfsErrROFS         = 30
	nfsErrNameTooLong  = 63
	nfsErrNoEnt        = 2
	nfsErrStale        = 70
	nfsErrBadHandle    = 10001
	nfsErrBadCookie    = 10003
	nfsErrTooSmall     = 10005
	nfsErrServerFault  = 10006
	nfsErrJukebox      = 10008
	maxHandle          = 64
	maxNameLen         = 255
	cookieVerfSize     = 8
	accessRead         = 0x01
	accessLookup       = 0x02
	accessExecute      = 0x20
	fsLink             = 0x01
	fsSymlink          = 0x02
	fsHomogeneous      = 0x08
	maxXDRString       = 1 << 20 // strings of RFC 1813 have no limit of their own; the record has
	createExclusive    = 2
	fattrSize          = 84
	postOpAttrSize     = 4 + fattrSize
	postOpHandleSize   = 4 + 4 + handleSize
	readdirOverhead    = postOpAttrSize + cookieVerfSize + 4 + 4 // of READDIR3resok without entries
	maxDirectoryReply  = 64 << 10
	maxReadSize        = 1 << 20
	preferredWriteSize = 32 << 10
)

var procNames = [procCount]string{"NULL", "GETATTR", "SETATTR", "LOOKUP", "ACCESS", "READLINK", "READ", "WRITE",
	"CREATE", "MKDIR", "SYMLINK", "MKNOD", "REMOVE", "RMDIR", "RENAME", "LINK", "READDIR", "READDIRPLUS", "FSSTAT",
	"FSINFO", "PATHCONF", "COMMIT"}
