package index

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Index is an open index. Its methods may be called from several goroutines;
// none of them allocates. What they return of names and targets points into
// the mapped file and is valid until Close.
type Index struct {
	data     []byte // the mapped file
	inodes   []byte
	dirents  []byte
	names    []byte
	targets  []byte
	acls     []byte
	count    uint32
	dirCount uint32
	bytes    uint64
	used     uint64
	digest   Digest
}

// Open maps the index at path. It checks the header, not the digest: see
// Verify. The error wraps ErrCorrupt if the file is damaged or of another
// version, and fs.ErrNotExist if it is missing.
func Open(path string) (*Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() < headerSize {
		return nil, fmt.Errorf("index %s: %w: %d bytes", path, ErrCorrupt, info.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(info.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("index %s: mmap: %w", path, err)
	}
	x, err := parse(data)
	if err != nil {
		_ = unix.Munmap(data)
		return nil, fmt.Errorf("index %s: %w", path, err)
	}
	return x, nil
}

// parse checks the header of data and finds the sections.
func parse(data []byte) (*Index, error) {
	if len(data) < headerSize || string(data[offMagic:offMagic+len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no header", ErrCorrupt)
	}
	if v := le.Uint32(data[offVersion:]); v != Version {
		return nil, fmt.Errorf("%w: version %d of the format, not %d", ErrCorrupt, v, Version)
	}
	if le.Uint32(data[offHeaderSize:]) != headerSize {
		return nil, fmt.Errorf("%w: size of header", ErrCorrupt)
	}
	if size := le.Uint64(data[offFileSize:]); size != uint64(len(data)) {
		return nil, fmt.Errorf("%w: %d bytes of %d", ErrCorrupt, len(data), size)
	}
	var sections [sectionCount][]byte
	next := uint64(headerSize)
	for i := range sections {
		off := le.Uint64(data[offSections+16*i:])
		length := le.Uint64(data[offSections+16*i+8:])
		if off != next || length > uint64(len(data))-off {
			return nil, fmt.Errorf("%w: section %d", ErrCorrupt, i)
		}
		sections[i] = data[off : off+length : off+length]
		next = align(off + length)
		if next > uint64(len(data)) {
			return nil, fmt.Errorf("%w: section %d", ErrCorrupt, i)
		}
	}
	if next != uint64(len(data)) {
		return nil, fmt.Errorf("%w: bytes after the last section", ErrCorrupt)
	}
	x := &Index{
		data:    data,
		inodes:  sections[secInodes],
		dirents: sections[secDirents],
		names:   sections[secNames],
		targets: sections[secTargets],
		acls:    sections[secACLs],
		bytes:   le.Uint64(data[offDataBytes:]),
		used:    le.Uint64(data[offUsedBytes:]),
		digest:  Digest(data[offDigest : offDigest+32]),
	}
	if len(x.inodes)%inodeSize != 0 || len(x.dirents)%direntSize != 0 ||
		len(x.inodes)/inodeSize > 1<<32-2 || len(x.dirents)/direntSize > 1<<32-2 {
		return nil, fmt.Errorf("%w: length of tables", ErrCorrupt)
	}
	x.count = uint32(len(x.inodes) / inodeSize)
	x.dirCount = uint32(len(x.dirents) / direntSize)
	var root Attr
	if !x.Attr(Root, &root) || !root.IsDir() {
		return nil, fmt.Errorf("%w: no root directory", ErrCorrupt)
	}
	return x, nil
}

// Close unmaps the index. Nothing that it gave out may be used afterwards.
func (x *Index) Close() error {
	data := x.data
	*x = Index{}
	if data == nil {
		return nil
	}
	return unix.Munmap(data)
}

// Verify reads the whole file and compares its digest with the one in the
// header. The error wraps ErrCorrupt.
func (x *Index) Verify() error {
	if got := digestOf(x.data); got != x.digest {
		return fmt.Errorf("%w: digest is %s, not %s", ErrCorrupt, got, x.digest)
	}
	return nil
}

func digestOf(data []byte) Digest {
	h := sha256.New()
	h.Write(data[:offDigest])
	h.Write(make([]byte, len(Digest{})))
	h.Write(data[offDigest+len(Digest{}):])
	return Digest(h.Sum(nil))
}

// Digest returns the digest that the header states.
func (x *Index) Digest() Digest { return x.digest }

// Len returns the number of inodes; their IDs are 1 to Len.
func (x *Index) Len() int { return int(x.count) }

// Bytes returns the sum of the sizes of all regular files.
func (x *Index) Bytes() uint64 { return x.bytes }

// Used returns the sum of Attr.Used of all inodes.
func (x *Index) Used() uint64 { return x.used }

func (x *Index) record(id ID) []byte {
	if id == 0 || uint32(id) > x.count {
		return nil
	}
	off := (int(id) - 1) * inodeSize
	return x.inodes[off : off+inodeSize : off+inodeSize]
}

// Attr fills in the attributes of an inode. It returns false if there is no
// such inode.
func (x *Index) Attr(id ID, a *Attr) bool {
	r := x.record(id)
	if r == nil {
		return false
	}
	_ = r[inodeSize-1]
	a.Mode = le.Uint32(r[inoMode:])
	a.Nlink = le.Uint32(r[inoNlink:])
	a.UID = le.Uint32(r[inoUID:])
	a.GID = le.Uint32(r[inoGID:])
	a.Size = le.Uint64(r[inoSize:])
	a.Mtime = int64(le.Uint64(r[inoMtime:]))
	a.MtimeNsec = le.Uint32(r[inoNsec:])
	a.Major = le.Uint32(r[inoMajor:])
	a.Minor = le.Uint32(r[inoMinor:])
	a.aclOffset = le.Uint32(r[inoACL:])
	a.HasACL = a.aclOffset != 0
	a.first = le.Uint32(r[inoFirst:])
	a.num = le.Uint32(r[inoCount:])
	return true
}

// Parent returns the directory that holds the inode's smallest path; the
// root's parent is the root. It returns 0 if there is no such inode.
func (x *Index) Parent(id ID) ID {
	r := x.record(id)
	if r == nil {
		return 0
	}
	p := ID(le.Uint32(r[inoParent:]))
	if uint32(p) > x.count {
		return 0
	}
	return p
}

func (x *Index) name(off uint32) []byte {
	if uint64(off) >= uint64(len(x.names)) {
		return nil
	}
	start := uint64(off) + 1
	end := start + uint64(x.names[off])
	if end > uint64(len(x.names)) {
		return nil
	}
	return x.names[start:end:end]
}

// Entries are the entries of a directory, in ascending order of their names
// as bytes, without "." and "..".
type Entries struct {
	x     *Index
	first uint32
	num   uint32
}

// Entries returns the entries of a directory whose attributes Attr has given;
// for everything else there are none.
func (x *Index) Entries(dir *Attr) Entries {
	if !dir.IsDir() || uint64(dir.first)+uint64(dir.num) > uint64(x.dirCount) {
		return Entries{}
	}
	return Entries{x, dir.first, dir.num}
}

// Len returns the number of entries.
func (e Entries) Len() int { return int(e.num) }

// At returns the name and the inode of entry i, 0 ≤ i < Len. The ID is 0 if
// the index is damaged.
func (e Entries) At(i int) (name []byte, id ID) {
	if uint64(i) >= uint64(e.num) {
		return nil, 0
	}
	off := (int(e.first) + i) * direntSize
	d := e.x.dirents[off : off+direntSize]
	id = ID(le.Uint32(d))
	name = e.x.name(le.Uint32(d[4:]))
	if uint32(id) > e.x.count || len(name) == 0 {
		return nil, 0
	}
	return name, id
}

// Find returns the inode of a name, or 0 if the directory lacks it. The
// search is binary.
func (e Entries) Find(name []byte) ID {
	lo, hi := 0, int(e.num)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		off := (int(e.first) + mid) * direntSize
		d := e.x.dirents[off : off+direntSize]
		switch c := bytes.Compare(e.x.name(le.Uint32(d[4:])), name); {
		case c < 0:
			lo = mid + 1
		case c > 0:
			hi = mid
		default:
			if id := ID(le.Uint32(d)); uint32(id) <= e.x.count {
				return id
			}
			return 0
		}
	}
	return 0
}

// Target returns the target of a symbolic link whose attributes Attr has
// given.
func (x *Index) Target(link *Attr) []byte {
	end := uint64(link.first) + uint64(link.num)
	if !link.IsSymlink() || end > uint64(len(x.targets)) {
		return nil
	}
	return x.targets[link.first:end:end]
}

// ACL is an access control list.
type ACL struct{ raw []byte }

// ACL returns the access ACL of an inode whose attributes Attr has given. It
// is empty if HasACL is false or the index is damaged.
func (x *Index) ACL(a *Attr) ACL {
	if a.aclOffset == 0 {
		return ACL{}
	}
	start := uint64(a.aclOffset) - 1
	if start+aclSize > uint64(len(x.acls)) {
		return ACL{}
	}
	end := start + aclSize + uint64(le.Uint32(x.acls[start:]))*aclSize
	if end > uint64(len(x.acls)) {
		return ACL{}
	}
	return ACL{x.acls[start+aclSize : end : end]}
}

// Len returns the number of entries.
func (l ACL) Len() int { return len(l.raw) / aclSize }

// At returns entry i, 0 ≤ i < Len, in the order of acl(5).
func (l ACL) At(i int) ACLEntry {
	b := l.raw[i*aclSize : i*aclSize+aclSize]
	return ACLEntry{Tag: le.Uint16(b), Perm: le.Uint16(b[2:]), ID: le.Uint32(b[4:])}
}

// AppendPath appends to dst the inode's smallest path, relative to the root
// of the snapshot and without a leading slash; the root's path is empty. The
// error wraps ErrCorrupt.
func (x *Index) AppendPath(dst []byte, id ID) ([]byte, error) {
	start := len(dst)
	for id != Root {
		r := x.record(id)
		if r == nil {
			return dst[:start], fmt.Errorf("%w: no inode %d", ErrCorrupt, id)
		}
		name := x.name(le.Uint32(r[inoName:]))
		parent := ID(le.Uint32(r[inoParent:]))
		// A directory's path is smaller than those of what it holds: ranks
		// that do not fall towards the root would make this loop endless.
		if len(name) == 0 || parent >= id {
			return dst[:start], fmt.Errorf("%w: path of inode %d", ErrCorrupt, id)
		}
		if len(dst) > start {
			dst = append(dst, '/')
		}
		for i := len(name) - 1; i >= 0; i-- {
			dst = append(dst, name[i])
		}
		id = parent
	}
	for i, j := start, len(dst)-1; i < j; i, j = i+1, j-1 {
		dst[i], dst[j] = dst[j], dst[i]
	}
	return dst, nil
}
