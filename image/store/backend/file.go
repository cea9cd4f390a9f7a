package backend

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// newPrefix begins the name of a file that is begun and not finished.
const newPrefix = ".new-"

// NewFile is a file for a store that is being made: sparse, and under another
// name until Name gives it its own. The folder is locked until Close: one at a
// time makes a store in it.
type NewFile struct {
	file *os.File
	dir  *os.File
	path string
}

// FileOptions say what file a store gets.
type FileOptions struct {
	Path        string
	Size        int64                   // in bytes; it may be more than the disk has
	MinSize     int64                   // the least that the backend can work with
	DiskReserve int64                   // what stays free on the disk beneath
	Step        func(name string) error // see the backends' Options
}

// BeginFile makes the folder, checks the space on the disk, removes what a
// process that was killed had begun for the same file, and begins a new one.
// undo removes it. ErrExists if the file is there.
func BeginFile(o FileOptions, undo *Undo) (_ *NewFile, err error) {
	if o.Size < o.MinSize {
		return nil, fmt.Errorf("%s: %d bytes are too few for a store: it takes at least %d", o.Path, o.Size, o.MinSize)
	}
	folder := filepath.Dir(o.Path)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	f := &NewFile{path: o.Path}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if f.dir, err = os.Open(folder); err != nil {
		return nil, err
	}
	if err := Flock(f.dir, unix.LOCK_EX); err != nil {
		return nil, err
	}
	if _, err := os.Lstat(o.Path); err == nil {
		return nil, fmt.Errorf("%s: %w", o.Path, store.ErrExists)
	}
	if err := removeBegun(o.Path); err != nil {
		return nil, err
	}
	free, err := FreeOn(folder)
	if err != nil {
		return nil, err
	}
	if free < o.DiskReserve+o.MinSize/2 {
		return nil, fmt.Errorf("%s: %w: the disk has %s free and %s of it stay free; give a place on a larger disk", o.Path, store.ErrNoSpace, Human(free), Human(o.DiskReserve))
	}
	if err := o.Step("create file"); err != nil {
		return nil, err
	}
	if f.file, err = os.CreateTemp(folder, newPrefix+filepath.Base(o.Path)+"-"); err != nil {
		return nil, err
	}
	temp := f.file.Name()
	undo.Add(func() error {
		if err := os.Remove(temp); !errors.Is(err, os.ErrNotExist) {
			return err
		}
		return nil
	})
	keepInPlace(f.file)
	if err := f.file.Truncate(o.Size); err != nil {
		return nil, fmt.Errorf("%s: the disk beneath does not take a sparse file of %s: %w", o.Path, Human(o.Size), err)
	}
	return f, nil
}

// Path is what the file is called until Name.
func (f *NewFile) Path() string { return f.file.Name() }

// Name makes the file durable and gives it its name. ErrExists if it is taken.
func (f *NewFile) Name() error {
	if err := f.file.Sync(); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, f.file.Name(), unix.AT_FDCWD, f.path, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%s: %w", f.path, store.ErrExists)
	} else if err != nil {
		return fmt.Errorf("%s: name the new file: %w", f.path, err)
	}
	return f.dir.Sync()
}

// Close lets others make files in the folder.
func (f *NewFile) Close() {
	for _, file := range []*os.File{f.file, f.dir} {
		if file != nil {
			_ = file.Close()
		}
	}
}

// removeBegun removes what a process that was killed has left. The folder is
// locked. (A program that still runs writes into a file without a name.)
func removeBegun(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), newPrefix+filepath.Base(path)+"-") {
			if err := os.Remove(filepath.Join(filepath.Dir(path), entry.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	// btrfsMagic is BTRFS_SUPER_MAGIC of linux/magic.h.
	btrfsMagic = 0x9123683e
	// noCopyOnWrite is FS_NOCOW_FL of linux/fs.h: chattr +C.
	noCopyOnWrite = 0x00800000
)

// keepInPlace turns copy-on-write off for a file on a btrfs: in a file that
// holds a store it would scatter every block. Elsewhere it does nothing.
func keepInPlace(file *os.File) {
	var st unix.Statfs_t
	if unix.Fstatfs(int(file.Fd()), &st) == nil && int64(st.Type) == btrfsMagic {
		_ = unix.IoctlSetPointerInt(int(file.Fd()), unix.FS_IOC_SETFLAGS, noCopyOnWrite)
	}
}
