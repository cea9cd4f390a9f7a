package pxe

import (
	"context"
	"io"
	"io/fs"
	"os"
	"path"

	"sidus/boot/protocol"
	"sidus/image/store"
)

// BootFiles opens the kernel or the initrd of a snapshot. The error wraps
// fs.ErrNotExist if there is no such snapshot or it has no such file; other
// errors may pass. The caller closes what it gets. An *os.File is sent with
// the least copying.
type BootFiles interface {
	OpenBootFile(ctx context.Context, snapshot store.SnapshotID, file protocol.BootFile) (io.ReadSeekCloser, error)
}

// LoaderDirs is a file system of boot loaders: the regular files that lie
// directly in its directories, the first directory that has a name winning.
// Symbolic links that lead out of a directory are not followed.
type LoaderDirs []string

// DebianLoaders is where Debian's pxelinux, syslinux-common and ipxe packages
// keep their files.
var DebianLoaders = LoaderDirs{"/usr/lib/PXELINUX", "/usr/lib/syslinux/modules/bios", "/usr/lib/ipxe"}

// Open opens a boot loader. It implements fs.FS.
func (d LoaderDirs) Open(name string) (fs.File, error) {
	missing := &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	if !fs.ValidPath(name) || path.Base(name) != name || name == "." {
		return nil, missing
	}
	for _, dir := range d {
		if f := openRegular(dir, name); f != nil {
			return f, nil
		}
	}
	return nil, missing
}

func openRegular(dir, name string) fs.File {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil // the package is not installed
	}
	defer root.Close()
	// Looked at first: opening a FIFO would wait for ever.
	if info, err := root.Stat(name); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.Open(name)
	if err != nil {
		return nil
	}
	return f
}
