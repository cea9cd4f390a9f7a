package build

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// inTree writes into a tree from outside. Every path is resolved as a process
// whose root is the tree would resolve it: no symbolic link of the tree leads
// out of it, absolute ones included.
type inTree struct{ fd int }

func openTree(root string) (*inTree, error) {
	fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	return &inTree{fd}, nil
}

func (t *inTree) close() { unix.Close(t.fd) }

func (t *inTree) openat(name string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(t.fd, name, &how)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue // a rename elsewhere raced with a "..", openat2(2)
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
}

// open opens a file for reading.
func (t *inTree) open(name string) (*os.File, error) {
	fd, err := t.openat(name, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// isFolder says whether name is a folder, by whatever links.
func (t *inTree) isFolder(name string) bool {
	fd, err := t.openat(name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// exists says whether name leads to something.
func (t *inTree) exists(name string) bool {
	fd, err := t.openat(name, unix.O_PATH)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// folder opens a folder, and makes it and those above it if they are missing.
func (t *inTree) folder(name string) (int, error) {
	fd, err := t.openat(name, unix.O_PATH|unix.O_DIRECTORY)
	if !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	parent, err := t.folder(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	switch err := unix.Mkdirat(parent, path.Base(name), 0o755); {
	case errors.Is(err, unix.EEXIST):
		return -1, fmt.Errorf("%s is a link that leads nowhere", name)
	case err != nil:
		return -1, &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	if err := unix.Fchmodat(parent, path.Base(name), 0o755, 0); err != nil { // whatever the umask
		return -1, &fs.PathError{Op: "chmod", Path: name, Err: err}
	}
	return t.openat(name, unix.O_PATH|unix.O_DIRECTORY)
}

// ownership is who owns a file and what others may do with it.
type ownership struct {
	mode     uint32 // permissions with set-uid, set-gid and sticky bits
	uid, gid int
}

// put writes a file under its name in one step: the old one is there until
// the new one is whole. A symbolic link of that name is replaced, not
// followed.
func (t *inTree) put(name string, content io.Reader, o ownership) error {
	return t.replace(name, func(folder int, temporary string) error {
		fd, err := unix.Openat(folder, temporary, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		f := os.NewFile(uintptr(fd), name)
		_, err = io.Copy(f, content)
		if err == nil {
			err = unix.Fchown(fd, o.uid, o.gid)
		}
		if err == nil {
			err = unix.Fchmod(fd, o.mode)
		}
		return errors.Join(err, f.Close())
	})
}

// link makes a symbolic link in one step.
func (t *inTree) link(name, target string, o ownership) error {
	return t.replace(name, func(folder int, temporary string) error {
		if err := unix.Symlinkat(target, folder, temporary); err != nil {
			return err
		}
		return unix.Fchownat(folder, temporary, o.uid, o.gid, unix.AT_SYMLINK_NOFOLLOW)
	})
}

func (t *inTree) replace(name string, create func(folder int, temporary string) error) error {
	folder, err := t.folder(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(folder)
	temporary := ".sidus-" + rand.Text()
	err = create(folder, temporary)
	if err == nil {
		err = unix.Renameat(folder, temporary, folder, path.Base(name))
	}
	if err != nil {
		_ = unix.Unlinkat(folder, temporary, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOTEMPTY) {
			return fmt.Errorf("%s is a folder in the tree", name)
		}
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// remove removes a file, a link or an empty folder; a missing one is fine.
func (t *inTree) remove(name string) error {
	folder, err := t.openat(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(folder)
	err = unix.Unlinkat(folder, path.Base(name), 0)
	if errors.Is(err, unix.EISDIR) {
		err = unix.Unlinkat(folder, path.Base(name), unix.AT_REMOVEDIR)
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// id finds the number of a user (file etc/passwd) or group (etc/group) of the
// tree.
func (t *inTree) id(file, name string) (int, error) {
	if name == "" || name == "root" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(n), nil
	}
	f, err := t.open(file)
	if err != nil {
		return 0, fmt.Errorf("%s is not known in the tree: %w", name, err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) > 2 && fields[0] == name {
			n, err := strconv.ParseUint(fields[2], 10, 31)
			return int(n), err
		}
	}
	return 0, fmt.Errorf("%s is not known in the tree's /%s", name, file)
}
