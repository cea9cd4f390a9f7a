package storm

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// Skeleton makes a tree in the folder root, which must be empty: everything
// that the recording knows of, with its attributes, and with made-up data in
// the files. It returns the recording as it is for that tree. It needs root.
func Skeleton(r *Recording, root string) (*Recording, error) {
	if have, err := os.ReadDir(root); err != nil || len(have) > 0 {
		return nil, errors.Join(err, fmt.Errorf("%s is not an empty folder", root))
	}
	s := *r
	s.Objects, s.Calls = slices.Clone(r.Objects), slices.Clone(r.Calls)
	for i := range s.Objects {
		s.Objects[i].Listing = 0
	}
	for i := range s.Objects {
		if err := s.make(root, i); err != nil {
			return nil, fmt.Errorf("make %s: %w", s.path(i), err)
		}
		if o := &s.Objects[i]; i > 0 {
			s.Objects[o.Parent].Listing += listing([]byte(o.Name))
		}
	}
	if err := s.link(root); err != nil {
		return nil, err
	}
	s.readAgain()
	// Directories last: what is made in them changes their times.
	for i := len(s.Objects) - 1; i >= 0; i-- {
		if err := s.setAttributes(root, i); err != nil {
			return nil, fmt.Errorf("make %s: %w", s.path(i), err)
		}
	}
	return &s, nil
}

// make makes an object without its attributes.
func (r *Recording) make(root string, i int) error {
	o, path := &r.Objects[i], filepath.Join(root, r.path(i))
	if o.Type == 0 || i == 0 { // no attributes were seen: it is what it was used as
		if o.Type = typeRegular; i == 0 || slices.ContainsFunc(r.Objects, func(c Object) bool { return c.Parent == i }) {
			o.Type = typeDirectory
		}
		o.Mode = max(o.Mode, 0o755)
	}
	switch o.Type {
	case typeRegular:
		o.Links = 1
		return writeMadeUp(path, i, o.Size)
	case typeDirectory:
		if i == 0 {
			return nil
		}
		return os.Mkdir(path, 0o700)
	case typeSymlink:
		o.Links = 1
		if o.Target == "" || uint64(len(o.Target)) != o.Size { // not read in the boot
			o.Target = FileName(slices.Repeat([]byte("x"), int(max(1, min(o.Size, 4000)))))
			o.Size = uint64(len(o.Target))
		}
		return os.Symlink(string(o.Target), path)
	case typeBlock, typeChar, typeFIFO, typeSocket:
		o.Links = 1
		kind := map[uint32]uint32{typeBlock: unix.S_IFBLK, typeChar: unix.S_IFCHR, typeFIFO: unix.S_IFIFO, typeSocket: unix.S_IFSOCK}[o.Type]
		return unix.Mknod(path, kind, int(unix.Mkdev(o.Major, o.Minor)))
	}
	return fmt.Errorf("%w: type %d", ErrFormat, o.Type)
}

// link makes the other names of files that the boot found under several.
func (r *Recording) link(root string) error {
	for _, c := range r.Calls {
		o := r.Objects[c.Gives]
		if c.Gives == 0 || c.Name == "." || c.Name == ".." || c.Object == o.Parent && c.Name == o.Name {
			continue
		}
		name := filepath.Join(root, r.path(c.Object), string(c.Name))
		err := os.Link(filepath.Join(root, r.path(c.Gives)), name)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return err
		}
		r.Objects[c.Gives].Links++
		r.Objects[c.Object].Listing += listing([]byte(c.Name))
	}
	return nil
}

func (r *Recording) setAttributes(root string, i int) error {
	o, path := &r.Objects[i], filepath.Join(root, r.path(i))
	err := os.Lchown(path, int(o.UID), int(o.GID))
	if o.Type != typeSymlink {
		err = errors.Join(err, unix.Chmod(path, o.Mode&0o7777))
	}
	times := []unix.Timespec{{Sec: int64(o.Sec), Nsec: int64(o.Nsec)}, {Sec: int64(o.Sec), Nsec: int64(o.Nsec)}}
	return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
}

// madeUp fills b with the data of a file from an offset on, a multiple of 8:
// each eight bytes tell the file and where they are.
func madeUp(b []byte, file int, offset uint64) {
	var word [8]byte
	for at := 0; at < len(b); at += 8 {
		x := (uint64(file)<<40 ^ (offset + uint64(at))) * 0x9e3779b97f4a7c15
		be.PutUint64(word[:], x^x>>29)
		copy(b[at:], word[:])
	}
}

func writeMadeUp(path string, file int, size uint64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	b := make([]byte, 1<<20)
	for at := uint64(0); at < size && err == nil; at += uint64(len(b)) {
		b = b[:min(uint64(cap(b)), size-at)]
		madeUp(b, file, at)
		_, err = f.Write(b)
	}
	return errors.Join(err, f.Close())
}

// readAgain gives the calls of READ the digests of the made-up data.
func (r *Recording) readAgain() {
	b := make([]byte, 16)
	for i := range r.Calls {
		c := &r.Calls[i]
		if procByName[c.Proc] != procRead {
			continue
		}
		if size := int(c.Length) + 8; len(b) < size {
			b = make([]byte, size)
		}
		skip := c.Offset % 8
		madeUp(b[:uint64(c.Length)+skip], c.Object, c.Offset-skip)
		c.CRC = crc32.Checksum(b[skip:][:c.Length], castagnoli)
	}
}
