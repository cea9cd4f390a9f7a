package storetest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"sidus/image/tool"
)

// Applier changes the tree at root.
type Applier func(root string) error

// Apply runs appliers one after another.
func Apply(appliers ...Applier) Applier {
	return func(root string) error {
		for i, apply := range appliers {
			if err := apply(root); err != nil {
				return fmt.Errorf("step %d of the tree: %w", i+1, err)
			}
		}
		return nil
	}
}

// Dir makes a folder.
func Dir(name string, mode uint32) Applier {
	return func(root string) error {
		if err := os.MkdirAll(filepath.Join(root, name), 0o755); err != nil {
			return err
		}
		return unix.Chmod(filepath.Join(root, name), mode)
	}
}

// File writes a plain file.
func File(name, content string, mode uint32) Applier {
	return func(root string) error {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			return err
		}
		return unix.Chmod(filepath.Join(root, name), mode)
	}
}

// Sparse makes a file of size bytes with content at some offsets only.
func Sparse(name string, size int64, content map[int64]string) Applier {
	return func(root string) error {
		file, err := os.Create(filepath.Join(root, name))
		if err != nil {
			return err
		}
		defer file.Close()
		if err := file.Truncate(size); err != nil {
			return err
		}
		for offset, text := range content {
			if _, err := file.WriteAt([]byte(text), offset); err != nil {
				return err
			}
		}
		return nil
	}
}

// Chown sets the owner of a file or link.
func Chown(name string, uid, gid int) Applier {
	return func(root string) error { return os.Lchown(filepath.Join(root, name), uid, gid) }
}

// Chmod sets a mode, 07000 bits included.
func Chmod(name string, mode uint32) Applier {
	return func(root string) error { return unix.Chmod(filepath.Join(root, name), mode) }
}

// Chtime sets the modification time of a file or link.
func Chtime(name string, when time.Time) Applier {
	return func(root string) error {
		stamp := unix.NsecToTimespec(when.UnixNano())
		return unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, name), []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
	}
}

// Symlink makes a symbolic link.
func Symlink(target, name string) Applier {
	return func(root string) error { return os.Symlink(target, filepath.Join(root, name)) }
}

// Link makes a hard link.
func Link(old, name string) Applier {
	return func(root string) error { return os.Link(filepath.Join(root, old), filepath.Join(root, name)) }
}

// Node makes a device node or FIFO; mode holds its type (unix.S_IFCHR …).
func Node(name string, mode uint32, major, minor uint32) Applier {
	return func(root string) error {
		if err := unix.Mknod(filepath.Join(root, name), mode, int(unix.Mkdev(major, minor))); err != nil {
			return fmt.Errorf("mknod %s: %w", name, err)
		}
		return unix.Chmod(filepath.Join(root, name), mode&0o7777)
	}
}

// Socket makes a socket as a server leaves it behind.
func Socket(name string) Applier {
	return func(root string) error {
		// By way of a descriptor, since the path of a socket may have 107 bytes.
		dir, err := os.Open(filepath.Dir(filepath.Join(root, name)))
		if err != nil {
			return err
		}
		defer dir.Close()
		address := &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(name))}
		listener, err := net.ListenUnix("unix", address)
		if err != nil {
			return err
		}
		listener.SetUnlinkOnClose(false)
		return listener.Close()
	}
}

// Xattr sets an extended attribute of a file, not of what it links to.
func Xattr(name, attribute, value string) Applier {
	return func(root string) error {
		if err := unix.Lsetxattr(filepath.Join(root, name), attribute, []byte(value), 0); err != nil {
			return fmt.Errorf("setxattr %s %s: %w", name, attribute, err)
		}
		return nil
	}
}

// ACL runs setfacl with a list of rules ("u:33:r-x"); default rules have "d:"
// before them.
func ACL(name string, rules ...string) Applier {
	return func(root string) error {
		return tool.Run(context.Background(), tool.Options{}, "setfacl", "--modify", strings.Join(rules, ","), "--", filepath.Join(root, name))
	}
}

// Capability runs setcap.
func Capability(name, capability string) Applier {
	return func(root string) error {
		return tool.Run(context.Background(), tool.Options{}, "setcap", capability, filepath.Join(root, name))
	}
}

// Remove removes a file or a folder with all in it; it must be there.
func Remove(name string) Applier {
	return func(root string) error {
		if _, err := os.Lstat(filepath.Join(root, name)); err != nil {
			return err
		}
		return os.RemoveAll(filepath.Join(root, name))
	}
}

// Rename renames a file.
func Rename(from, to string) Applier {
	return func(root string) error {
		return os.Rename(filepath.Join(root, from), filepath.Join(root, to))
	}
}

// Noise makes a file of that many bytes which no compression makes smaller.
func Noise(name string, size int) Applier {
	return func(root string) error {
		text := make([]byte, size)
		_, _ = rand.NewChaCha8([32]byte{1}).Read(text)
		return os.WriteFile(filepath.Join(root, name), text, 0o644)
	}
}

// Many makes count small files, spread over folders of 1,000.
func Many(name string, count int) Applier {
	return func(root string) error {
		var group errgroup.Group
		group.SetLimit(runtime.NumCPU())
		for begin := 0; begin < count; begin += 1000 {
			group.Go(func() error {
				folder := filepath.Join(root, name, fmt.Sprintf("%04d", begin/1000))
				return manyIn(folder, begin, min(begin+1000, count))
			})
		}
		return group.Wait()
	}
}

// manyIn makes the files of one folder.
func manyIn(folder string, begin, end int) error {
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	dir, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer dir.Close()
	for n := begin; n < end; n++ {
		fd, err := unix.Openat(int(dir.Fd()), fmt.Sprintf("file-%06d", n), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, fmt.Appendf(nil, "content of %d\n", n))
		if err := errors.Join(err, unix.Close(fd)); err != nil {
			return err
		}
	}
	return nil
}

// AllMetadata writes a tree with one of everything that a system's tree can
// hold. It takes root, and a file system with extended attributes and ACLs.
func AllMetadata() Applier { return allMetadata(true) }

// PlainMetadata is AllMetadata without what takes root to make: owners, device
// nodes, capabilities, and attributes outside of "user.".
func PlainMetadata() Applier { return allMetadata(false) }

func allMetadata(root bool) Applier {
	moment := time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC)
	long := strings.Repeat("n", 255)
	longDir := strings.Repeat("d", 255)
	deep := strings.Repeat("deep/", 40)
	steps := []Applier{
		Dir("etc", 0o755), Dir("tmp", 0o1777), Dir("spool", 0o2775), Dir("private", 0o700), Dir("both", 0o7755),
		File("empty", "", 0o644), File("etc/passwd", "root:x:0:0::/root:/bin/sh\n", 0o644), File("etc/shadow", "root:*:::::::\n", 0o640),
		File("su", "set-uid", 0o4755), File("wall", "set-gid", 0o2755), File("sticky", "sticky", 0o1644),
		File("big", strings.Repeat("0123456789abcdef", 1<<16), 0o644),
		Sparse("sparse", 8<<20, map[int64]string{0: "begin", 4 << 20: "middle", 8<<20 - 3: "end"}),
		Sparse("hole", 4<<20, nil),
		Link("etc/passwd", "etc/passwd-"), Link("etc/passwd", "passwd"),
		Symlink("etc/passwd", "link"), Symlink("/nowhere/at/all", "dangling"), Symlink(strings.Repeat("x", 4000), "long-link"),
		Symlink(".", "self"), Symlink("loop-b", "loop-a"), Symlink("loop-a", "loop-b"), Link("link", "link-to-link"),
		Node("fifo", unix.S_IFIFO|0o620, 0, 0), Socket("socket"), Chmod("socket", 0o755),
		File("latin-\xe9\xff\xfe", "not UTF-8", 0o644), File("blank and\nnewline\\back\tslash\"quote'", "odd", 0o644),
		File("-rf", "dash", 0o644), File("*", "star", 0o644), File(".hidden", "dot", 0o644), File("\xf0\x9f\x90\xa7", "penguin", 0o644),
		File(long, "255 bytes", 0o644), Dir(longDir, 0o755), File(longDir+"/"+long, "510 bytes", 0o644),
		Dir(deep, 0o755), File(deep+"bottom", "deep", 0o600),
		Xattr("etc/passwd", "user.note", "a value"), Xattr("etc", "user.binary", "\x00\x01\xff"), Xattr("big", "user.empty", ""),
		Xattr("empty", "user.long", strings.Repeat("v", 2000)),
		ACL("etc/shadow", "u:33:r--", "g:44:rw-"), ACL("spool", "u:33:rwx", "d:u:33:rwx", "d:g:44:r-x"),
		File("spool/inherits", "ACL from above", 0o644),
	}
	if root {
		steps = append(steps,
			Chown("etc/shadow", 0, 42), Chown("private", 1000, 1000), Chown("private", 4294967294, 65534), Chown("link", 1, 2),
			Chown("su", 12, 34), Chmod("su", 0o4755), // chown takes the bit away
			Node("null", unix.S_IFCHR|0o666, 1, 3), Node("disk", unix.S_IFBLK|0o660, 259, 70000), Node("high", unix.S_IFCHR|0o600, 4000, 1000000),
			Node("whiteout", unix.S_IFCHR, 0, 0),
			File("none", "no rights", 0), Chtime("none", time.Date(1969, 7, 20, 20, 17, 40, 5, time.UTC)),
			File("ping", "a program", 0o755), Capability("ping", "cap_net_raw=ep"),
			Xattr("etc/passwd", "trusted.overlay.opaque", "y"), Xattr("link", "trusted.of.link", "l"),
			Xattr("empty", "security.selinux", "system_u:object_r:etc_t:s0\x00"),
			Xattr("fifo", "trusted.fifo", "f"),
		)
	}
	steps = append(steps,
		Chtime("etc/passwd", moment), Chtime("link", moment.Add(time.Nanosecond)), Chtime("fifo", moment.Add(time.Hour)),
		Chtime("empty", time.Unix(0, 1)), Chtime("wall", time.Date(1969, 7, 20, 20, 17, 40, 5, time.UTC)),
		Chtime("big", time.Date(2040, 1, 1, 0, 0, 0, 999999999, time.UTC)), Chtime("etc", moment), Chtime(".", moment.Add(time.Minute)),
	)
	return Apply(steps...)
}
