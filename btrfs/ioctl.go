package btrfs

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of linux/btrfs.h that are used here. The numbers are those of the
// generic encoding (x86, arm, riscv, s390).
const (
	iocMagic = 0x94
	iocWrite = 1
	iocRead  = 2

	superMagic = 0x9123683e // f_type of statfs(2)
	rootInode  = 256        // the inode number of every subvolume's root directory

	subvolReadOnly = 1 << 1 // BTRFS_SUBVOL_RDONLY
)

func ioc(direction, nr, size uintptr) uintptr {
	return direction<<30 | size<<16 | iocMagic<<8 | nr
}

// volArgs is struct btrfs_ioctl_vol_args.
type volArgs struct {
	fd   int64
	name [4088]byte
}

// volArgsV2 is struct btrfs_ioctl_vol_args_v2.
type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	unused  [4]uint64
	name    [4040]byte
}

// timespec is struct btrfs_ioctl_timespec.
type timespec struct {
	sec  uint64
	nsec uint32
	_    uint32
}

// subvolInfo is struct btrfs_ioctl_get_subvol_info_args.
type subvolInfo struct {
	treeID       uint64
	name         [256]byte
	parentID     uint64
	dirID        uint64
	generation   uint64
	flags        uint64
	uuid         [16]byte
	parentUUID   [16]byte
	receivedUUID [16]byte
	transids     [4]uint64 // changed, made, sent, received
	changed      timespec
	made         timespec
	sent         timespec
	received     timespec
	_            [8]uint64
}

// rootRefs is struct btrfs_ioctl_get_subvol_rootref_args.
type rootRefs struct {
	minTreeID uint64
	refs      [255]struct{ treeID, dirID uint64 }
	num       uint8
	_         [7]byte
}

// inoLookup is struct btrfs_ioctl_ino_lookup_user_args.
type inoLookup struct {
	dirID  uint64
	treeID uint64
	name   [256]byte
	path   [3824]byte
}

// fsInfo is the beginning of struct btrfs_ioctl_fs_info_args.
type fsInfo struct {
	maxID      uint64
	numDevices uint64
	fsid       [16]byte
	_          [992]byte
}

func ioctl(fd *os.File, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd.Fd(), request, uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
		default:
			return errno
		}
	}
}

// subvolCreate makes an empty subvolume called name in dir.
func subvolCreate(dir *os.File, name string) error {
	var args volArgs
	if copy(args.name[:len(args.name)-1], name) != len(name) {
		return unix.ENAMETOOLONG
	}
	return ioctl(dir, ioc(iocWrite, 14, unsafe.Sizeof(args)), unsafe.Pointer(&args))
}

// subvolSnapshot makes a snapshot of the subvolume source, called name, in dir.
// The kernel writes the source's dirty data first and commits the transaction
// (create_snapshot in fs/btrfs/ioctl.c), so that the snapshot is durable when
// this returns.
func subvolSnapshot(source, dir *os.File, name string, readOnly bool) error {
	args := volArgsV2{fd: int64(source.Fd())}
	if readOnly {
		args.flags = subvolReadOnly
	}
	if copy(args.name[:len(args.name)-1], name) != len(name) {
		return unix.ENAMETOOLONG
	}
	return ioctl(dir, ioc(iocWrite, 23, unsafe.Sizeof(args)), unsafe.Pointer(&args))
}

// subvolDestroy unlinks the subvolume called name in dir. Its space is given
// back in the background.
func subvolDestroy(dir *os.File, name string) error {
	var args volArgs
	if copy(args.name[:len(args.name)-1], name) != len(name) {
		return unix.ENAMETOOLONG
	}
	return ioctl(dir, ioc(iocWrite, 15, unsafe.Sizeof(args)), unsafe.Pointer(&args))
}

// subvolMade tells when the subvolume that dir is in was made, and whether it
// is read-only.
func subvolMade(dir *os.File) (made time.Time, readOnly bool, err error) {
	var info subvolInfo
	if err := ioctl(dir, ioc(iocRead, 60, unsafe.Sizeof(info)), unsafe.Pointer(&info)); err != nil {
		return time.Time{}, false, err
	}
	return time.Unix(int64(info.made.sec), int64(info.made.nsec)), info.flags&1 != 0, nil
}

// subvolChildren returns the paths, relative to root, of the subvolumes that
// lie directly in the subvolume whose root directory is root, without those
// that lie in them. It looks into the file system's list of references, not
// into folders.
func subvolChildren(root *os.File) ([]string, error) {
	var children []string
	args := rootRefs{}
	for {
		err := ioctl(root, ioc(iocRead|iocWrite, 61, unsafe.Sizeof(args)), unsafe.Pointer(&args))
		if err != nil && err != unix.EOVERFLOW { // EOVERFLOW: there are more
			return nil, err
		}
		for _, ref := range args.refs[:args.num] {
			look := inoLookup{dirID: ref.dirID, treeID: ref.treeID}
			if err := ioctl(root, ioc(iocRead|iocWrite, 62, unsafe.Sizeof(look)), unsafe.Pointer(&look)); err != nil {
				if err == unix.ENOENT { // removed just now
					continue
				}
				return nil, err
			}
			children = append(children, filepath.Join(unix.ByteSliceToString(look.path[:]), unix.ByteSliceToString(look.name[:])))
		}
		if err == nil {
			return children, nil
		}
		args.num = 0
	}
}

// commit waits until what was done in the file system so far is on disk. It
// writes metadata only: dirty data of running work is not waited for.
func commit(dir *os.File) error {
	var transid uint64
	if err := ioctl(dir, ioc(iocRead, 24, unsafe.Sizeof(transid)), unsafe.Pointer(&transid)); err != nil {
		return err
	}
	return ioctl(dir, ioc(iocWrite, 22, unsafe.Sizeof(transid)), unsafe.Pointer(&transid))
}

// syncAll writes everything, and wakes the kernel's thread that removes
// destroyed subvolumes.
func syncAll(dir *os.File) error {
	return ioctl(dir, ioc(0, 8, 0), nil)
}

// trim tells the device of dir's file system which parts are free: in a loop
// file they become holes. See ioctl_fitrim in linux/fs.h.
func trim(dir *os.File) error {
	const fitrim = (iocRead|iocWrite)<<30 | 24<<16 | 'X'<<8 | 121
	args := struct{ start, length, minimum uint64 }{length: ^uint64(0)}
	return ioctl(dir, fitrim, unsafe.Pointer(&args))
}

// uuidOf returns the UUID of the file system that dir is on.
func uuidOf(dir *os.File) (string, error) {
	var info fsInfo
	if err := ioctl(dir, ioc(iocRead, 31, unsafe.Sizeof(info)), unsafe.Pointer(&info)); err != nil {
		return "", err
	}
	return formatUUID(info.fsid), nil
}

func formatUUID(raw [16]byte) string {
	h := hex.EncodeToString(raw[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}
