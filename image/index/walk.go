package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// entry is a name found in a directory, with the attributes of its inode.
type entry struct {
	name  string
	ino   uint64
	attr  Attr
	text  string // target of a symbolic link, or the raw access ACL of another
	links uint32 // st_nlink
	dir   *directory
	id    ID
}

// directory is a directory of the tree that is being read.
type directory struct {
	path    string // relative to the root, empty for the root
	entries []entry
	subdirs []int32 // the entries that are directories, by name with "/" appended
}

// walker reads a tree with several workers.
type walker struct {
	root   int // descriptor of the root directory
	dev    [2]uint32
	btrfs  bool
	noACL  bool
	mu     sync.Mutex
	wake   sync.Cond
	todo   []*directory
	busy   int
	failed error
}

// walk reads the whole tree under the open directory root.
func walk(ctx context.Context, root, workers int) (entry, error) {
	w := &walker{root: root}
	w.wake.L = &w.mu
	var fs unix.Statfs_t
	if err := unix.Fstatfs(root, &fs); err != nil {
		return entry{}, fmt.Errorf("statfs: %w", err)
	}
	w.btrfs = fs.Type == unix.BTRFS_SUPER_MAGIC
	var st unix.Statx_t
	if err := statx(root, &emptyName[0], unix.AT_EMPTY_PATH, &st); err != nil {
		return entry{}, fmt.Errorf("stat: %w", err)
	}
	w.dev = [2]uint32{st.Dev_major, st.Dev_minor}

	top := entry{ino: st.Ino, attr: attrOf(&st), dir: &directory{}}
	var err error
	if top.text, err = w.readACL(&worker{}, root, &dotName[0]); err != nil {
		return entry{}, fmt.Errorf("access ACL of the root: %w", err)
	}
	w.todo = []*directory{top.dir}

	stop := context.AfterFunc(ctx, func() { w.fail(context.Cause(ctx)) })
	defer stop()
	var wg sync.WaitGroup
	for range workers {
		wg.Go(w.work)
	}
	wg.Wait()
	return top, w.failed
}

var (
	emptyName = [1]byte{}
	dotName   = [2]byte{'.'}
)

func (w *walker) fail(err error) {
	w.mu.Lock()
	if w.failed == nil {
		w.failed = err
	}
	w.mu.Unlock()
	w.wake.Broadcast()
}

// worker holds what one goroutine reuses from directory to directory.
type worker struct {
	dents  []byte
	text   []byte
	path   []byte
	stats  unix.Statx_t
	found  []entry
	sorted []int32
}

func (w *walker) work() {
	k := &worker{dents: make([]byte, 64<<10), text: make([]byte, 64<<10)}
	for {
		w.mu.Lock()
		for len(w.todo) == 0 && w.busy > 0 && w.failed == nil {
			w.wake.Wait()
		}
		if w.failed != nil || len(w.todo) == 0 {
			w.mu.Unlock()
			w.wake.Broadcast()
			return
		}
		d := w.todo[len(w.todo)-1]
		w.todo = w.todo[:len(w.todo)-1]
		w.busy++
		w.mu.Unlock()

		err := w.read(k, d)

		w.mu.Lock()
		w.busy--
		if err != nil && w.failed == nil {
			w.failed = err
		}
		for _, i := range d.subdirs {
			w.todo = append(w.todo, d.entries[i].dir)
		}
		w.mu.Unlock()
		w.wake.Broadcast()
	}
}

// read fills in the entries of d.
func (w *walker) read(k *worker, d *directory) error {
	fd, err := OpenAt(w.root, []byte(d.path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, false)
	if err != nil {
		if errors.Is(err, unix.EXDEV) {
			return fmt.Errorf("%q: %w", "/"+d.path, store.ErrNestedVolume)
		}
		return fmt.Errorf("open %q: %w", "/"+d.path, err)
	}
	defer func() { _ = unix.Close(fd) }()

	k.found = k.found[:0]
	for {
		n, err := unix.Getdents(fd, k.dents)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read directory %q: %w", "/"+d.path, err)
		}
		if n <= 0 {
			break
		}
		// struct linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name.
		for buf := k.dents[:n]; len(buf) > 0; {
			length := int(binary.NativeEndian.Uint16(buf[16:]))
			name := buf[19:length]
			buf = buf[length:]
			if name[0] == '.' && (name[1] == 0 || name[1] == '.' && name[2] == 0) {
				continue
			}
			if err := w.readEntry(k, d, fd, name); err != nil {
				return err
			}
		}
	}
	d.entries = slices.Clone(k.found)
	slices.SortFunc(d.entries, func(a, b entry) int { return strings.Compare(a.name, b.name) })
	k.sorted = k.sorted[:0]
	for i := range d.entries {
		if d.entries[i].dir != nil {
			k.sorted = append(k.sorted, int32(i))
		}
	}
	slices.SortFunc(k.sorted, func(a, b int32) int {
		return compareWithSlash(d.entries[a].name, d.entries[b].name)
	})
	d.subdirs = slices.Clone(k.sorted)
	return nil
}

// readEntry reads the attributes of one name, which ends with a zero byte.
func (w *walker) readEntry(k *worker, d *directory, fd int, name []byte) error {
	st := &k.stats
	text := string(name[:slices.Index(name, 0)])
	fail := func(what string, err error) error {
		return fmt.Errorf("%s %q: %w", what, "/"+join(d.path, text), err)
	}
	if err := statx(fd, &name[0], unix.AT_SYMLINK_NOFOLLOW, st); err != nil {
		return fail("stat", err)
	}
	// A subvolume nested in a btrfs snapshot shows as an empty directory with
	// the inode number 2 (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
	if (st.Dev_major != w.dev[0] || st.Dev_minor != w.dev[1]) ||
		st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 || w.btrfs && st.Ino == 2 {
		return fmt.Errorf("%q: %w", "/"+join(d.path, text), store.ErrNestedVolume)
	}
	e := entry{name: text, ino: st.Ino, attr: attrOf(st), links: st.Nlink}
	var err error
	switch {
	case e.attr.IsSymlink():
		n, errRead := readlinkat(fd, &name[0], k.text)
		if errRead != nil {
			return fail("readlink", errRead)
		}
		e.text = string(k.text[:n])
	case e.attr.IsDir():
		e.dir = &directory{path: join(d.path, text)}
		fallthrough
	default:
		if e.text, err = w.readACL(k, fd, &name[0]); err != nil {
			return fail("access ACL of", err)
		}
	}
	k.found = append(k.found, e)
	return nil
}

// readACL returns the raw access ACL of a name in the directory fd, or
// nothing if it has none. There is no getxattrat before Linux 6.13; going
// through /proc keeps the path short.
func (w *walker) readACL(k *worker, fd int, name *byte) (string, error) {
	if w.noACL {
		return "", nil
	}
	if k.text == nil {
		k.text = make([]byte, 64<<10)
	}
	k.path = append(k.path[:0], "/proc/self/fd/"...)
	k.path = strconv.AppendInt(k.path, int64(fd), 10)
	k.path = append(k.path, '/')
	k.path = append(k.path, unsafe.Slice(name, cstringLen(name)+1)...)
	n, _, errno := unix.Syscall6(unix.SYS_LGETXATTR, uintptr(unsafe.Pointer(&k.path[0])),
		uintptr(unsafe.Pointer(&aclName[0])), uintptr(unsafe.Pointer(&k.text[0])), uintptr(len(k.text)), 0, 0)
	switch errno {
	case 0:
		return string(k.text[:n]), nil
	case unix.ENODATA, unix.EOPNOTSUPP:
		return "", nil
	}
	return "", errno
}

var aclName = []byte("system.posix_acl_access\x00")

func cstringLen(p *byte) int {
	n := 0
	for *(*byte)(unsafe.Add(unsafe.Pointer(p), n)) != 0 {
		n++
	}
	return n
}

// compareWithSlash compares a+"/" with b+"/".
func compareWithSlash(a, b string) int {
	n := min(len(a), len(b))
	if c := strings.Compare(a[:n], b[:n]); c != 0 || len(a) == len(b) {
		return c
	}
	if len(a) < len(b) {
		return int('/') - int(b[n])
	}
	return int(a[n]) - int('/')
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

func attrOf(st *unix.Statx_t) Attr {
	return Attr{
		Mode:      uint32(st.Mode),
		UID:       st.Uid,
		GID:       st.Gid,
		Size:      st.Size,
		Mtime:     st.Mtime.Sec,
		MtimeNsec: st.Mtime.Nsec,
		Major:     st.Rdev_major,
		Minor:     st.Rdev_minor,
	}
}

// statx and readlinkat take names that end with a zero byte, as getdents64
// gives them: the wrappers of x/sys copy each name.
func statx(fd int, name *byte, flags int, st *unix.Statx_t) error {
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(fd), uintptr(unsafe.Pointer(name)),
			uintptr(flags|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC), unix.STATX_BASIC_STATS,
			uintptr(unsafe.Pointer(st)), 0)
		if errno == 0 {
			return nil
		}
		if errno != unix.EINTR {
			return errno
		}
	}
}

func readlinkat(fd int, name *byte, buf []byte) (int, error) {
	n, _, errno := unix.Syscall6(unix.SYS_READLINKAT, uintptr(fd), uintptr(unsafe.Pointer(name)),
		uintptr(unsafe.Pointer(&buf[0])), uintptr(len(buf)), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
