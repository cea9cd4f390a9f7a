package paxtar

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// Summary says what an archive holds.
type Summary struct {
	Entries int   // names that were written
	Data    int64 // bytes of content, without holes
	// Omitted are the paths of sockets, which are left out: the first
	// maxOmitted of OmittedCount.
	Omitted      []string
	OmittedCount int
}

const maxOmitted = 1000

// Destination is what an archive is written to. ReadFrom takes the content of
// files: it spares a copy.
type Destination interface {
	io.Writer
	io.ReaderFrom
}

// Write writes the tree at root, which must not change meanwhile. Errors name
// the path. ErrNestedVolume of sidus/image/store if another file system is
// mounted in it or it holds a subvolume.
func Write(ctx context.Context, dst Destination, root string) (Summary, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Summary{}, fmt.Errorf("open %s: %w", root, err)
	}
	defer func() { _ = unix.Close(fd) }()
	w := &writer{
		ctx: ctx, dst: dst,
		links: map[uint64]string{}, dents: make([]byte, 64<<10), names: make([]byte, 4096), value: make([]byte, 4096),
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return Summary{}, fmt.Errorf("statfs %s: %w", root, err)
	}
	w.btrfs = fs.Type == unix.BTRFS_SUPER_MAGIC
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return Summary{}, fmt.Errorf("stat %s: %w", root, err)
	}
	w.device = st.Dev
	if err := w.directory("", fd, &st); err != nil {
		return w.sum, err
	}
	// Two zero blocks end an archive; tar(1) expects records of 20 blocks.
	w.buffer = append(w.buffer, make([]byte, 2*blockSize)...)
	w.offset += 2 * blockSize
	w.buffer = append(w.buffer, make([]byte, (20*blockSize-w.offset%(20*blockSize))%(20*blockSize))...)
	return w.sum, w.flush()
}

type writer struct {
	ctx    context.Context
	dst    Destination
	device uint64
	btrfs  bool
	links  map[uint64]string // inode → first name, of files with several names
	buffer []byte            // headers to be written
	offset int64             // of the archive's end, buffer included
	sum    Summary
	dents  []byte
	names  []byte
	value  []byte
	target [4096]byte
}

// bufferLimit is when headers are handed on.
const bufferLimit = 64 << 10

func (w *writer) flush() error {
	if len(w.buffer) == 0 {
		return nil
	}
	_, err := w.dst.Write(w.buffer)
	w.buffer = w.buffer[:0]
	return err
}

func (w *writer) put(h *header) error {
	before := len(w.buffer)
	w.buffer = h.append(w.buffer)
	w.offset += int64(len(w.buffer) - before)
	w.sum.Entries++
	if len(w.buffer) < bufferLimit {
		return nil
	}
	return w.flush()
}

// failure names the path that an error belongs to.
func failure(path string, what string, err error) error {
	return fmt.Errorf("%s %q: %w", what, "/"+path, err)
}

// directory writes a directory that is open, and what is in it.
func (w *writer) directory(path string, fd int, st *unix.Stat_t) error {
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	h := head(path, st)
	h.kind = typeDirectory
	h.name += "/"
	var err error
	if h.records, err = w.xattrsOf(fd); err != nil {
		return failure(path, "read", err)
	}
	if err := w.put(&h); err != nil {
		return err
	}
	names, err := w.list(fd)
	if err != nil {
		return failure(path, "read", err)
	}
	for _, name := range names {
		if err := w.entry(path, fd, name); err != nil {
			return err
		}
	}
	return nil
}

// head makes what all headers have in common. Names begin with "./", so that
// none is taken for an option.
func head(path string, st *unix.Stat_t) header {
	name := "."
	if path != "" {
		name = "./" + path
	}
	return header{
		name: name, mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid, sec: st.Mtim.Sec, nsec: uint32(st.Mtim.Nsec),
	}
}

// list returns the names in a directory, sorted bytewise.
func (w *writer) list(fd int) ([]string, error) {
	var names []string
	for {
		n, err := unix.Getdents(fd, w.dents)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		// struct linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name.
		for b := w.dents[:n]; len(b) > 0; {
			length := int(binary.NativeEndian.Uint16(b[16:]))
			name := unix.ByteSliceToString(b[19:length])
			b = b[length:]
			if name != "." && name != ".." {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names, nil
}

func join(directory, name string) string {
	if directory == "" {
		return name
	}
	return directory + "/" + name
}

// entry writes one name of the directory that dir is.
func (w *writer) entry(directory string, dir int, name string) error {
	path := join(directory, name)
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT); err != nil {
		return failure(path, "stat", err)
	}
	// A subvolume nested in a btrfs snapshot shows as an empty directory with
	// the inode number 2 (BTRFS_EMPTY_SUBVOL_DIR_OBJECTID).
	if st.Dev != w.device || w.btrfs && st.Ino == 2 {
		return fmt.Errorf("%q: %w", "/"+path, store.ErrNestedVolume)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return w.subdirectory(path, dir, name)
	}
	if kind == unix.S_IFSOCK {
		if w.sum.OmittedCount++; len(w.sum.Omitted) < maxOmitted {
			w.sum.Omitted = append(w.sum.Omitted, "/"+path)
		}
		return nil
	}
	h := head(path, &st)
	if st.Nlink > 1 {
		if first, ok := w.links[st.Ino]; ok {
			h.kind, h.link = typeHardLink, first
			return w.put(&h)
		}
		w.links[st.Ino] = h.name
	}
	switch kind {
	case unix.S_IFREG:
		return w.regular(path, dir, name, &h)
	case unix.S_IFLNK:
		n, err := unix.Readlinkat(dir, name, w.target[:])
		if err != nil {
			return failure(path, "readlink", err)
		}
		h.kind, h.link = typeSymlink, string(w.target[:n])
	case unix.S_IFCHR, unix.S_IFBLK:
		h.kind = typeCharacter
		if kind == unix.S_IFBLK {
			h.kind = typeBlock
		}
		h.major, h.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	case unix.S_IFIFO:
		h.kind = typeFIFO
	default:
		return failure(path, "read", fmt.Errorf("it is of the unknown type %o", kind))
	}
	var err error
	if h.records, err = w.xattrsAt(dir, name); err != nil {
		return failure(path, "read", err)
	}
	return w.put(&h)
}

// subdirectory writes a directory and all in it. One descriptor is open for
// each level.
func (w *writer) subdirectory(path string, dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return failure(path, "open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failure(path, "stat", err)
	}
	if st.Dev != w.device {
		return fmt.Errorf("%q: %w", "/"+path, store.ErrNestedVolume)
	}
	return w.directory(path, fd, &st)
}

func (w *writer) xattrsOf(fd int) ([]record, error) {
	return w.xattrs(
		func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// xattrsAt reads the attributes of what is not to be opened. There is no
// getxattrat before Linux 6.13.
func (w *writer) xattrsAt(dir int, name string) ([]record, error) {
	path := "/proc/self/fd/" + strconv.Itoa(dir) + "/" + name
	return w.xattrs(
		func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(name string, b []byte) (int, error) { return unix.Lgetxattr(path, name, b) })
}

// regular writes a plain file.
func (w *writer) regular(path string, dir int, name string, h *header) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EPERM) { // neither owner nor root
		fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return failure(path, "open", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return failure(path, "stat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Dev != w.device {
		return failure(path, "read", errors.New("it changed meanwhile"))
	}
	h.kind, h.size = typeRegular, st.Size
	if h.records, err = w.xattrsOf(fd); err != nil {
		return failure(path, "read", err)
	}
	data := []extent{{0, st.Size}}
	var sparse []byte
	if st.Blocks*512 < st.Size {
		if data, err = extents(fd, st.Size); err != nil {
			return failure(path, "find the holes of", err)
		}
		if len(data) != 1 || data[0].length != st.Size {
			sparse = sparseMap(data, st.Size)
			h.makeSparse(st.Size, int64(len(sparse)), data)
		} else {
			data = []extent{{0, st.Size}}
		}
	}
	if err := w.put(h); err != nil {
		return err
	}
	if len(sparse) > 0 {
		w.buffer = append(w.buffer, sparse...)
		w.offset += int64(len(sparse))
	}
	length := int64(0)
	for _, e := range data {
		if e.length == 0 {
			continue
		}
		if err := w.copy(fd, e); err != nil {
			return failure(path, "read", err)
		}
		length += e.length
	}
	w.offset += length
	w.sum.Data += length
	w.buffer = append(w.buffer, make([]byte, padding(length))...)
	w.offset += padding(length)
	return nil
}

// smallFile is up to which length content goes through the buffer of headers,
// in bytes: one call for many files.
const smallFile = 32 << 10

// copy writes an extent of a file.
func (w *writer) copy(fd int, e extent) error {
	if e.length <= smallFile {
		begin := len(w.buffer)
		w.buffer = slices.Grow(w.buffer, int(e.length))[:begin+int(e.length)]
		for into := w.buffer[begin:]; len(into) > 0; {
			n, err := pread(fd, into, e.offset)
			if err != nil {
				return err
			}
			into, e.offset = into[n:], e.offset+int64(n)
		}
		if len(w.buffer) < bufferLimit {
			return nil
		}
		return w.flush()
	}
	if err := w.flush(); err != nil {
		return err
	}
	n, err := w.dst.ReadFrom(&extentReader{w.ctx, fd, e})
	if err == nil && n != e.length {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// pread reads at least one byte.
func pread(fd int, p []byte, offset int64) (int, error) {
	for {
		n, err := unix.Pread(fd, p, offset)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 0, err
		case n <= 0:
			return 0, fmt.Errorf("it became shorter: %w", io.ErrUnexpectedEOF)
		default:
			return n, nil
		}
	}
}

type extentReader struct {
	ctx  context.Context
	fd   int
	left extent
}

func (r *extentReader) Read(p []byte) (int, error) {
	if r.left.length == 0 {
		return 0, io.EOF
	}
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	n, err := pread(r.fd, p[:min(int64(len(p)), r.left.length)], r.left.offset)
	r.left.offset += int64(n)
	r.left.length -= int64(n)
	return n, err
}

// extent is a part of a file that is no hole.
type extent struct{ offset, length int64 }

// extents finds what of a file is no hole.
func extents(fd int, size int64) (data []extent, err error) {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // only a hole is left
			break
		} else if errors.Is(err, unix.EINVAL) { // the file system knows no holes
			return []extent{{0, size}}, nil
		} else if err != nil {
			return nil, err
		}
		end, err := unix.Seek(fd, begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, err
		}
		end = min(end, size)
		data = append(data, extent{begin, end - begin})
		at = end
	}
	return data, nil
}

// sparseMap is what precedes the content of a file with holes in GNU's format
// 1.0: the number of extents, then offset and length of each, one a line, filled
// up to whole blocks. An empty extent at the end tells the size where a hole is
// there.
func sparseMap(data []extent, size int64) []byte {
	if n := len(data); n == 0 || data[n-1].offset+data[n-1].length < size {
		data = append(slices.Clone(data), extent{size, 0})
	}
	var text []byte
	line := func(n int64) { text = append(strconv.AppendInt(text, n, 10), '\n') }
	line(int64(len(data)))
	for _, e := range data {
		line(e.offset)
		line(e.length)
	}
	return pad(text, len(text))
}

// makeSparse turns a plain file's header into that of one with holes.
func (h *header) makeSparse(size, mapped int64, data []extent) {
	h.size = mapped
	for _, e := range data {
		h.size += e.length
	}
	h.records = append([]record{
		{"GNU.sparse.major", "1"}, {"GNU.sparse.minor", "0"},
		{"GNU.sparse.name", h.name}, {"GNU.sparse.realsize", strconv.FormatInt(size, 10)},
	}, h.records...)
	// A tar that knows no holes unpacks the map and the data under this name.
	directory, file := "", h.name
	if i := strings.LastIndexByte(h.name, '/'); i >= 0 {
		directory, file = h.name[:i+1], h.name[i+1:]
	}
	if h.ustarName = directory + "GNUSparseFile.0/" + file; len(h.ustarName) > nameSize {
		h.ustarName = h.ustarName[:nameSize]
	}
}

var _ Destination = (*os.File)(nil)
