package index

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"

	"golang.org/x/sys/unix"
)

// Options of Build. The zero value is good for use.
type Options struct {
	// Workers is the number of directories that are read at the same time.
	// Zero means twice the number of processors, at least 4.
	Workers int
}

// ErrTooBig is wrapped by Build's error for a tree that does not fit into the
// format: more than 2³²−2 inodes or names, or 4 GiB of names.
var ErrTooBig = errors.New("tree is too big for an index")

// Build reads the tree under the directory root, which must not change
// meanwhile, and writes its index to the file dst: atomically, so that dst is
// as it was or complete and durable.
//
// The error wraps store.ErrNestedVolume if the tree holds another file
// system, a nested subvolume or a mount point, ErrTooBig, or what the system
// said, with the path inside the tree.
func Build(ctx context.Context, root, dst string, opts Options) (Digest, error) {
	digest, inodes, err := build(ctx, root, dst, opts)
	if inodes >= manyInodes {
		// Building takes some 300 bytes an inode. The process may be a server
		// that will not need them again: give them back now, not bit by bit.
		debug.FreeOSMemory()
	}
	return digest, err
}

// manyInodes is the size of a tree from which on Build gives memory back.
const manyInodes = 100_000

func build(ctx context.Context, root, dst string, opts Options) (digest Digest, inodes int, err error) {
	if opts.Workers <= 0 {
		opts.Workers = max(4, 2*runtime.GOMAXPROCS(0))
	}
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Digest{}, inodes, fmt.Errorf("index of %s: %w", root, err)
	}
	defer func() { _ = unix.Close(fd) }()
	top, err := walk(ctx, fd, opts.Workers)
	if err != nil {
		return Digest{}, inodes, fmt.Errorf("index of %s: %w", root, err)
	}
	b := newBuilder(&top)
	if err := b.build(); err != nil {
		return Digest{}, inodes, fmt.Errorf("index of %s: %w", root, err)
	}
	if err := ctx.Err(); err != nil {
		return Digest{}, inodes, fmt.Errorf("index of %s: %w", root, context.Cause(ctx))
	}
	inodes = len(b.inodes)
	if digest, err = b.write(dst); err != nil {
		return Digest{}, inodes, fmt.Errorf("index of %s: %w", root, err)
	}
	return digest, inodes, nil
}

// inode is an inode in the order of file IDs.
type inode struct {
	*entry        // the one with the smallest path
	parent ID     //
	nlink  uint32 // names found in the tree; for a directory 2 and its subdirectories
	name   uint32
}

// builder turns the entries of a tree into the sections of an index.
type builder struct {
	top      *entry
	inodes   []inode
	linked   map[uint64]ID // inodes with several links, by inode number
	sections [sectionCount][]byte
	acls     map[string]uint32
	bytes    uint64
	used     uint64
}

func newBuilder(top *entry) *builder {
	return &builder{top: top, linked: map[uint64]ID{}, acls: map[string]uint32{}}
}

func (b *builder) build() error {
	if err := b.number(); err != nil {
		return err
	}
	if err := b.writeDirents(); err != nil {
		return err
	}
	return b.writeInodes()
}

// number gives the inodes their IDs: their ranks by smallest path.
//
// The paths below a directory sort like these keys: the name of each entry,
// which stands for the entry itself, and name+"/" of each subdirectory, which
// stands for everything below it. So merging the two sorted lists, and going
// down where a key of the second comes first, meets all paths in order.
func (b *builder) number() error {
	b.top.id = Root
	b.inodes = append(b.inodes, inode{entry: b.top, parent: Root, nlink: 2})
	type frame struct {
		dir       *entry
		next, sub int
	}
	stack := []frame{{dir: b.top}}
	for len(stack) > 0 {
		f := &stack[len(stack)-1]
		d := f.dir.dir
		entryLeft, subLeft := f.next < len(d.entries), f.sub < len(d.subdirs)
		switch {
		case !entryLeft && !subLeft:
			stack = stack[:len(stack)-1]
		case entryLeft && (!subLeft || lessThanSlash(d.entries[f.next].name, d.entries[d.subdirs[f.sub]].name)):
			b.meet(&d.entries[f.next], f.dir.id)
			f.next++
		default:
			sub := &d.entries[d.subdirs[f.sub]]
			f.sub++
			stack = append(stack, frame{dir: sub})
		}
		if len(b.inodes) > 1<<32-2 {
			return fmt.Errorf("%w: inodes", ErrTooBig)
		}
	}
	return nil
}

// lessThanSlash reports whether name < dir+"/".
func lessThanSlash(name, dir string) bool {
	if n := len(dir); len(name) > n && name[:n] == dir {
		return name[n] < '/'
	}
	return name <= dir
}

// meet numbers the inode of e, unless a smaller path to it was met before.
func (b *builder) meet(e *entry, parent ID) {
	if e.links > 1 && e.dir == nil {
		if id, ok := b.linked[e.ino]; ok {
			e.id = id
			b.inodes[id-1].nlink++
			return
		}
		b.linked[e.ino] = ID(len(b.inodes) + 1)
	}
	e.id = ID(len(b.inodes) + 1)
	n := inode{entry: e, parent: parent, nlink: 1}
	if e.dir != nil {
		n.nlink = 2
		b.inodes[parent-1].nlink++
	}
	b.inodes = append(b.inodes, n)
}

// writeDirents writes the entries and names of all directories, in the order
// of the directories' IDs.
func (b *builder) writeDirents() error {
	entries, names := 0, 0
	for i := range b.inodes {
		if d := b.inodes[i].dir; d != nil {
			entries += len(d.entries)
			for k := range d.entries {
				names += 1 + len(d.entries[k].name)
			}
		}
	}
	if names > 1<<32-1 || entries > 1<<32-2 {
		return fmt.Errorf("%w: %d names of %d bytes", ErrTooBig, entries, names)
	}
	dirents, text := make([]byte, 0, entries*direntSize), make([]byte, 0, names)
	for i := range b.inodes {
		n := &b.inodes[i]
		if n.dir == nil {
			continue
		}
		n.attr.first, n.attr.num = uint32(len(dirents)/direntSize), uint32(len(n.dir.entries))
		n.attr.Size = directorySize(n.dir)
		for k := range n.dir.entries {
			e := &n.dir.entries[k]
			if len(e.name) == 0 || len(e.name) > maxName {
				return fmt.Errorf("%w: name of %d bytes", ErrTooBig, len(e.name))
			}
			off := uint32(len(text))
			dirents = le.AppendUint32(dirents, uint32(e.id))
			dirents = le.AppendUint32(dirents, off)
			text = append(text, byte(len(e.name)))
			text = append(text, e.name...)
			if b.inodes[e.id-1].entry == e {
				b.inodes[e.id-1].name = off
			}
		}
	}
	b.sections[secDirents], b.sections[secNames] = dirents, text
	return nil
}

// directorySize is the canonical size of a directory: what its entries would
// take in a file system with blocks of 4 KiB, a head of 12 bytes an entry,
// and entries at multiples of 4 bytes.
func directorySize(d *directory) uint64 {
	total := uint64(2 * 12)
	for i := range d.entries {
		total += 8 + (uint64(len(d.entries[i].name))+3)&^3
	}
	return (total + 4095) &^ 4095
}

func (b *builder) writeInodes() error {
	records := make([]byte, len(b.inodes)*inodeSize)
	for i := range b.inodes {
		n := &b.inodes[i]
		a := &n.attr
		switch a.Mode & ModeType {
		case ModeSymlink:
			targets := b.sections[secTargets]
			if len(targets)+len(n.text) > 1<<32-1 {
				return fmt.Errorf("%w: targets of symbolic links", ErrTooBig)
			}
			a.first, a.num, a.Size = uint32(len(targets)), uint32(len(n.text)), uint64(len(n.text))
			b.sections[secTargets] = append(targets, n.text...)
		case ModeRegular:
			b.bytes += a.Size
		case ModeDir:
		default:
			a.Size = 0
		}
		if t := a.Mode & ModeType; t != ModeBlock && t != ModeChar {
			a.Major, a.Minor = 0, 0
		}
		if !a.IsSymlink() && n.text != "" {
			off, err := b.addACL(n.text)
			if err != nil {
				return err
			}
			a.aclOffset = off
		}
		b.used += a.Used()

		r := records[i*inodeSize : (i+1)*inodeSize]
		le.PutUint32(r[inoMode:], a.Mode)
		le.PutUint32(r[inoNlink:], n.nlink)
		le.PutUint32(r[inoUID:], a.UID)
		le.PutUint32(r[inoGID:], a.GID)
		le.PutUint64(r[inoSize:], a.Size)
		le.PutUint64(r[inoMtime:], uint64(a.Mtime))
		le.PutUint32(r[inoNsec:], a.MtimeNsec)
		le.PutUint32(r[inoMajor:], a.Major)
		le.PutUint32(r[inoMinor:], a.Minor)
		le.PutUint32(r[inoParent:], uint32(n.parent))
		le.PutUint32(r[inoName:], n.name)
		le.PutUint32(r[inoACL:], a.aclOffset)
		le.PutUint32(r[inoFirst:], a.first)
		le.PutUint32(r[inoCount:], a.num)
	}
	b.sections[secInodes] = records
	return nil
}

// addACL stores an access ACL as the kernel gives it (a version, 2, then
// entries of tag, permissions and ID: linux/posix_acl_xattr.h), each
// different one once, and returns its offset plus one.
func (b *builder) addACL(raw string) (uint32, error) {
	if off, ok := b.acls[raw]; ok {
		return off, nil
	}
	if len(raw) < 4 || (len(raw)-4)%aclSize != 0 || le.Uint32([]byte(raw)) != 2 {
		return 0, fmt.Errorf("access ACL of %d bytes in an unknown format", len(raw))
	}
	entries := make([]ACLEntry, (len(raw)-4)/aclSize)
	for i := range entries {
		e := []byte(raw[4+i*aclSize : 4+(i+1)*aclSize])
		entries[i] = ACLEntry{Tag: le.Uint16(e), Perm: le.Uint16(e[2:]), ID: le.Uint32(e[4:])}
	}
	// The order of acl(5); the kernel keeps named entries as they were set.
	slices.SortFunc(entries, func(x, y ACLEntry) int {
		return cmp.Or(cmp.Compare(x.Tag, y.Tag), cmp.Compare(x.ID, y.ID))
	})
	acls := b.sections[secACLs]
	if len(acls)+aclSize*(1+len(entries)) > 1<<32-2 {
		return 0, fmt.Errorf("%w: ACLs", ErrTooBig)
	}
	off := uint32(len(acls)) + 1
	acls = le.AppendUint32(acls, uint32(len(entries)))
	acls = le.AppendUint32(acls, 0)
	for _, e := range entries {
		acls = le.AppendUint16(acls, e.Tag)
		acls = le.AppendUint16(acls, e.Perm)
		acls = le.AppendUint32(acls, e.ID)
	}
	b.sections[secACLs] = acls
	b.acls[raw] = off
	return off, nil
}

// encode puts header and sections together.
func (b *builder) encode() ([]byte, Digest) {
	size := uint64(headerSize)
	for _, s := range b.sections {
		size = align(size + uint64(len(s)))
	}
	data := make([]byte, headerSize, size)
	copy(data[offMagic:], magic)
	le.PutUint32(data[offVersion:], Version)
	le.PutUint32(data[offHeaderSize:], headerSize)
	le.PutUint64(data[offFileSize:], size)
	le.PutUint64(data[offDataBytes:], b.bytes)
	le.PutUint64(data[offUsedBytes:], b.used)
	for i, s := range b.sections {
		le.PutUint64(data[offSections+16*i:], uint64(len(data)))
		le.PutUint64(data[offSections+16*i+8:], uint64(len(s)))
		data = append(data, s...)
		data = data[:align(uint64(len(data)))]
		b.sections[i] = nil
	}
	digest := digestOf(data)
	copy(data[offDigest:], digest[:])
	return data, digest
}

// write puts the index at dst: a temporary file beside it, synced and renamed.
func (b *builder) write(dst string) (digest Digest, err error) {
	data, digest := b.encode()
	f, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+".*")
	if err != nil {
		return Digest{}, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	for part := range slices.Chunk(data, 8<<20) {
		if _, err = f.Write(part); err != nil {
			return Digest{}, err
		}
	}
	if err = f.Chmod(0o600); err != nil {
		return Digest{}, err
	}
	if err = f.Sync(); err != nil {
		return Digest{}, err
	}
	if err = f.Close(); err != nil {
		return Digest{}, err
	}
	if err = os.Rename(f.Name(), dst); err != nil {
		return Digest{}, err
	}
	return digest, syncDir(filepath.Dir(dst))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		_ = d.Close()
		return err
	}
	return d.Close()
}
