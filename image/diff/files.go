package diff

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Options say how trees are compared. The zero value is good for any two.
type Options struct {
	// Times also tells changes of modification times.
	Times bool
	// Common is a moment at which both trees were the same on one file system:
	// when the newest snapshot that both descend from there was taken. What
	// has the same inode number on both sides and the same change time, before
	// that moment, is not read: nobody has touched it since. A copy (received,
	// imported) of a snapshot shares no history with the original. Zero means
	// that nothing is taken for granted.
	Common time.Time
	// Workers is the number of directories and files that are compared at the
	// same time; 0 means two for each processor.
	Workers int
}

// Files tells what differs between the trees at two directories, sorted bytewise
// by path. A directory that was added or removed comes with all in it. Neither
// tree may change meanwhile.
func Files(ctx context.Context, oldRoot, newRoot string, o Options) ([]Change, error) {
	if o.Workers <= 0 {
		o.Workers = 2 * runtime.GOMAXPROCS(0)
	}
	c := &comparison{options: o, before: tree{names: map[uint64][]string{}}, after: tree{names: map[uint64][]string{}}}
	c.group, c.ctx = errgroup.WithContext(ctx)
	c.group.SetLimit(o.Workers)
	var sides [2]*os.File
	for i, root := range []string{oldRoot, newRoot} {
		dir, err := os.OpenFile(root, os.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		sides[i] = dir
	}
	err := c.pair("", int(sides[0].Fd()), int(sides[1].Fd()), ".")
	if err := errors.Join(c.group.Wait(), err); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	c.links()
	slices.SortFunc(c.changes, func(a, b *Change) int { return strings.Compare(a.Path, b.Path) })
	changes := make([]Change, len(c.changes))
	for i, change := range c.changes {
		changes[i] = *change
	}
	return changes, nil
}

// tree is what is remembered of one side.
type tree struct {
	names map[uint64][]string // inode → names, of files with several
}

type comparison struct {
	ctx     context.Context
	options Options
	group   *errgroup.Group

	mu            sync.Mutex
	changes       []*Change
	before, after tree
	both          []linked // names of files with several, which both sides have
}

// linked is a name that stands for a file with several names on a side.
type linked struct {
	path          string
	before, after uint64 // inode, or 0 where the file has one name
	files         [2]*File
}

// entry is a name and what it stands for.
type entry struct {
	st     unix.Statx_t
	target string
}

func (e *entry) kind() uint16 { return e.st.Mode & unix.S_IFMT }

func (e *entry) file() *File {
	return &File{Mode: uint32(e.st.Mode), UID: e.st.Uid, GID: e.st.Gid, Size: int64(e.st.Size), Target: e.target}
}

func full(path string) string { return "/" + path }

// stat reads what a name in a directory stands for.
func stat(dir int, name, path string) (*entry, error) {
	var e entry
	mask := unix.STATX_BASIC_STATS | unix.STATX_BTIME
	if err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, mask, &e.st); err != nil {
		return nil, fmt.Errorf("stat %q: %w", full(path), err)
	}
	if e.kind() == unix.S_IFLNK {
		buffer := make([]byte, 4096)
		n, err := unix.Readlinkat(dir, name, buffer)
		if err != nil {
			return nil, fmt.Errorf("readlink %q: %w", full(path), err)
		}
		e.target = string(buffer[:n])
	}
	return &e, nil
}

func (c *comparison) add(change *Change) {
	c.mu.Lock()
	c.changes = append(c.changes, change)
	c.mu.Unlock()
}

// run does work beside the caller if a worker is free, else at once.
func (c *comparison) run(work func() error) error {
	if c.group.TryGo(work) {
		return nil
	}
	return work()
}

// pair compares what a name stands for in two directories.
func (c *comparison) pair(path string, oldDir, newDir int, name string) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	a, err := stat(oldDir, name, path)
	if err != nil {
		return err
	}
	b, err := stat(newDir, name, path)
	if err != nil {
		return err
	}
	if a.kind() != b.kind() {
		c.remember(path, a, nil)
		c.remember(path, nil, b)
		c.add(&Change{Path: full(path), Kind: Changed, Aspects: []Aspect{Type}, Old: a.file(), New: b.file()})
		return errors.Join(c.inside(path, oldDir, name, a, Removed), c.inside(path, newDir, name, b, Added))
	}
	c.remember(path, a, b)
	if c.untouched(a, b) {
		if a.kind() == unix.S_IFDIR {
			return c.directories(path, oldDir, newDir, name)
		}
		return nil
	}
	aspects, err := c.metadata(path, oldDir, newDir, name, a, b)
	if err != nil {
		return err
	}
	if a.kind() == unix.S_IFREG && a.st.Size == b.st.Size && a.st.Size > 0 {
		return c.contents(path, oldDir, newDir, name, a, b, aspects)
	}
	if a.kind() == unix.S_IFREG && a.st.Size != b.st.Size {
		aspects = append(aspects, Content)
	}
	c.changed(path, a, b, aspects)
	if a.kind() == unix.S_IFDIR {
		return c.directories(path, oldDir, newDir, name)
	}
	return nil
}

func (c *comparison) changed(path string, a, b *entry, aspects []Aspect) {
	if len(aspects) > 0 {
		sortAspects(aspects)
		c.add(&Change{Path: full(path), Kind: Changed, Aspects: aspects, Old: a.file(), New: b.file()})
	}
}

var order = []Aspect{Type, Content, Target, Device, Mode, Owner, ACL, Capability, Xattr, Links, Time}

func sortAspects(aspects []Aspect) {
	slices.SortFunc(aspects, func(a, b Aspect) int { return slices.Index(order, a) - slices.Index(order, b) })
}

// untouched tells whether it is certain that nobody has changed a file since
// both trees were one.
func (c *comparison) untouched(a, b *entry) bool {
	if c.options.Common.IsZero() || a.st.Ino != b.st.Ino || a.st.Ctime != b.st.Ctime || a.st.Mtime != b.st.Mtime ||
		a.st.Btime != b.st.Btime || a.st.Size != b.st.Size || a.st.Mode != b.st.Mode {
		return false
	}
	return time.Unix(a.st.Ctime.Sec, int64(a.st.Ctime.Nsec)).Before(c.options.Common)
}

// metadata compares all but content.
func (c *comparison) metadata(path string, oldDir, newDir int, name string, a, b *entry) (aspects []Aspect, err error) {
	x, y := &a.st, &b.st
	if a.target != b.target {
		aspects = append(aspects, Target)
	}
	if kind := a.kind(); (kind == unix.S_IFCHR || kind == unix.S_IFBLK) && (x.Rdev_major != y.Rdev_major || x.Rdev_minor != y.Rdev_minor) {
		aspects = append(aspects, Device)
	}
	if x.Mode != y.Mode && a.kind() != unix.S_IFLNK { // the mode of a link means nothing
		aspects = append(aspects, Mode)
	}
	if x.Uid != y.Uid || x.Gid != y.Gid {
		aspects = append(aspects, Owner)
	}
	if c.options.Times && x.Mtime != y.Mtime {
		aspects = append(aspects, Time)
	}
	old, err := xattrs(oldDir, name)
	if err == nil {
		var now map[string]string
		if now, err = xattrs(newDir, name); err == nil && !maps.Equal(old, now) {
			aspects = append(aspects, attributeAspects(old, now)...)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("attributes of %q: %w", full(path), err)
	}
	return aspects, nil
}

func attributeAspects(old, now map[string]string) (aspects []Aspect) {
	for _, side := range [][2]map[string]string{{old, now}, {now, old}} {
		for name, value := range side[0] {
			if other, ok := side[1][name]; ok && other == value {
				continue
			}
			aspect := Xattr
			if strings.HasPrefix(name, "system.posix_acl_") {
				aspect = ACL
			} else if name == "security.capability" {
				aspect = Capability
			}
			if !slices.Contains(aspects, aspect) {
				aspects = append(aspects, aspect)
			}
		}
	}
	return aspects
}

// xattrs reads the extended attributes of a name. There is no getxattrat before
// Linux 6.13.
func xattrs(dir int, name string) (map[string]string, error) {
	path := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	names, err := grow(func(b []byte) (int, error) { return unix.Llistxattr(path, b) })
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	if err != nil || len(names) == 0 {
		return nil, err
	}
	found := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names), "\x00"), "\x00") {
		value, err := grow(func(b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found[name] = string(value)
	}
	return found, nil
}

// grow calls a system call with a buffer that is large enough.
func grow(call func([]byte) (int, error)) ([]byte, error) {
	var small [512]byte
	for buffer := small[:]; ; {
		n, err := call(buffer)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(buffer) < 1<<20:
			buffer = make([]byte, 4*len(buffer))
		case err != nil:
			return nil, err
		default:
			return buffer[:n], nil
		}
	}
}

// openIn opens a name without following a link.
func openIn(dir int, name, path string, flags int) (int, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("open %q: %w", full(path), err)
	}
	return fd, nil
}

// contents compares two files of the same size, beside the caller if a worker
// is free, and tells what changed.
func (c *comparison) contents(path string, oldDir, newDir int, name string, a, b *entry, aspects []Aspect) error {
	oldFile, err := openIn(oldDir, name, path, 0)
	if err != nil {
		return err
	}
	newFile, err := openIn(newDir, name, path, 0)
	if err != nil {
		_ = unix.Close(oldFile)
		return err
	}
	return c.run(func() error {
		defer func() { _, _ = unix.Close(oldFile), unix.Close(newFile) }()
		same, err := c.sameContent(oldFile, newFile, int64(a.st.Size))
		if err != nil {
			return fmt.Errorf("read %q: %w", full(path), err)
		}
		if !same {
			aspects = append(aspects, Content)
		}
		c.changed(path, a, b, aspects)
		return nil
	})
}

const bufferSize = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, 2*bufferSize); return &b }}

func (c *comparison) sameContent(x, y int, size int64) (bool, error) {
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	for at := int64(0); at < size; {
		if c.ctx.Err() != nil {
			return false, context.Cause(c.ctx)
		}
		n := min(size-at, bufferSize)
		a, b := (*pooled)[:n], (*pooled)[bufferSize:bufferSize+n]
		if err := errors.Join(readAt(x, a, at), readAt(y, b, at)); err != nil {
			return false, err
		}
		if !bytes.Equal(a, b) {
			return false, nil
		}
		at += n
	}
	return true, nil
}

func readAt(fd int, p []byte, at int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(fd, p, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return errors.New("it became shorter")
		}
		p, at = p[n:], at+int64(n)
	}
	return nil
}

// directories compares two directories, beside the caller if a worker is free.
func (c *comparison) directories(path string, oldDir, newDir int, name string) error {
	oldFD, err := openIn(oldDir, name, path, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	newFD, err := openIn(newDir, name, path, unix.O_DIRECTORY)
	if err != nil {
		_ = unix.Close(oldFD)
		return err
	}
	return c.run(func() error {
		defer func() { _, _ = unix.Close(oldFD), unix.Close(newFD) }()
		old, err := list(oldFD)
		if err != nil {
			return fmt.Errorf("read %q: %w", full(path), err)
		}
		now, err := list(newFD)
		if err != nil {
			return fmt.Errorf("read %q: %w", full(path), err)
		}
		for len(old) > 0 || len(now) > 0 {
			var err error
			switch {
			case len(now) == 0 || len(old) > 0 && old[0] < now[0]:
				err = c.single(join(path, old[0]), oldFD, old[0], Removed)
				old = old[1:]
			case len(old) == 0 || now[0] < old[0]:
				err = c.single(join(path, now[0]), newFD, now[0], Added)
				now = now[1:]
			default:
				err = c.pair(join(path, now[0]), oldFD, newFD, now[0])
				old, now = old[1:], now[1:]
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func join(dir, name string) string {
	if dir == "" {
		return name
	}
	return dir + "/" + name
}

// list returns the names in a directory, sorted bytewise.
func list(fd int) ([]string, error) {
	var names []string
	buffer := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(fd, buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			slices.Sort(names)
			return names, nil
		}
		// struct linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name.
		for b := buffer[:n]; len(b) > 0; {
			length := int(binary.NativeEndian.Uint16(b[16:]))
			if name := unix.ByteSliceToString(b[19:length]); name != "." && name != ".." {
				names = append(names, name)
			}
			b = b[length:]
		}
	}
}

// single tells of a name that one side has, with all in it.
func (c *comparison) single(path string, dir int, name string, kind Kind) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	e, err := stat(dir, name, path)
	if err != nil {
		return err
	}
	change := &Change{Path: full(path), Kind: kind}
	if kind == Added {
		change.New = e.file()
		c.remember(path, nil, e)
	} else {
		change.Old = e.file()
		c.remember(path, e, nil)
	}
	c.add(change)
	return c.inside(path, dir, name, e, kind)
}

// inside tells of all that is in a directory that one side has.
func (c *comparison) inside(path string, dir int, name string, e *entry, kind Kind) error {
	if e.kind() != unix.S_IFDIR {
		return nil
	}
	fd, err := openIn(dir, name, path, unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	names, err := list(fd)
	if err != nil {
		return fmt.Errorf("read %q: %w", full(path), err)
	}
	for _, name := range names {
		if err := c.single(join(path, name), fd, name, kind); err != nil {
			return err
		}
	}
	return nil
}

// remember notes the names of files that have several.
func (c *comparison) remember(path string, a, b *entry) {
	several := func(e *entry) bool { return e != nil && e.st.Nlink > 1 && e.kind() != unix.S_IFDIR }
	if !several(a) && !several(b) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	name := linked{path: path}
	if several(a) {
		name.before = a.st.Ino
		c.before.names[a.st.Ino] = append(c.before.names[a.st.Ino], path)
	}
	if several(b) {
		name.after = b.st.Ino
		c.after.names[b.st.Ino] = append(c.after.names[b.st.Ino], path)
	}
	if a != nil && b != nil {
		name.files = [2]*File{a.file(), b.file()}
		c.both = append(c.both, name)
	}
}

// links finds names that share their file with other names than before.
func (c *comparison) links() {
	changes := map[string]*Change{}
	for _, change := range c.changes {
		changes[change.Path] = change
	}
	for _, side := range []tree{c.before, c.after} {
		for _, names := range side.names {
			slices.Sort(names)
		}
	}
	of := func(t tree, inode uint64) []string {
		if names := t.names[inode]; inode != 0 && len(names) > 1 {
			return names
		}
		return nil
	}
	for _, name := range c.both {
		if slices.Equal(of(c.before, name.before), of(c.after, name.after)) {
			continue
		}
		change := changes[full(name.path)]
		if change == nil {
			change = &Change{Path: full(name.path), Kind: Changed, Old: name.files[0], New: name.files[1]}
			c.changes = append(c.changes, change)
		}
		change.Aspects = append(change.Aspects, Links)
		sortAspects(change.Aspects)
	}
}
