package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

const tmpfsFlags = unix.MS_NOSUID | unix.MS_NODEV

// enter makes the sandbox's view of files. It runs as the first process,
// whose mounts are private already.
func enter(c *config) error {
	if c.NoNetwork {
		if err := loopbackUp(); err != nil {
			return err
		}
	}
	if c.Root == "" {
		return enterHost(c)
	}
	// What comes from the host is picked up before its root goes, and put in
	// place after: no path of the tree is ever followed from outside.
	devices := make(map[string]int)
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		fd, err := cloneMount("/dev/"+name, 0)
		if err != nil {
			return err
		}
		devices[name] = fd
	}
	binds := make([]int, len(c.Binds))
	for i, b := range c.Binds {
		var err error
		if binds[i], err = cloneMount(b.Source, bindAttributes(b)|unix.MOUNT_ATTR_NODEV); err != nil {
			return err
		}
	}
	if err := pivot(c.Root); err != nil {
		return err
	}
	if err := mountKernel(); err != nil {
		return err
	}
	if err := mountDevices(devices); err != nil {
		return err
	}
	for _, m := range []struct{ target, options string }{{"/run", "mode=0755"}, {"/tmp", "mode=1777"}} {
		if err := unix.Mount("tmpfs", m.target, "tmpfs", tmpfsFlags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	if err := protectKernel(); err != nil {
		return err
	}
	if err := writeFiles(c); err != nil {
		return err
	}
	for i, b := range c.Binds {
		if err := attach(binds[i], b.Target); err != nil {
			return err
		}
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	return nil
}

// enterHost keeps the host's root: only /proc must be that of the new PID
// namespace.
func enterHost(c *config) error {
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	for _, b := range c.Binds {
		fd, err := cloneMount(b.Source, bindAttributes(b))
		if err != nil {
			return err
		}
		if err := attach(fd, b.Target); err != nil {
			return err
		}
	}
	return nil
}

func bindAttributes(b Bind) uint64 {
	if b.ReadOnly {
		return unix.MOUNT_ATTR_RDONLY
	}
	return 0
}

// pivot makes root the root of the mount namespace and drops the old one.
func pivot(root string) error {
	fd, err := cloneMount(root, unix.MOUNT_ATTR_NODEV)
	if err != nil {
		return err
	}
	if err := attach(fd, root); err != nil {
		return err
	}
	if err := unix.Chdir(root); err != nil {
		return fmt.Errorf("enter %s: %w", root, err)
	}
	// The old root is stacked under the new one and then detached,
	// pivot_root(2).
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root to %s: %w", root, err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("drop the host's root: %w", err)
	}
	return unix.Chdir("/")
}

func mountKernel() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := unix.Mount("proc", "/proc", "proc", flags, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("sysfs", "/sys", "sysfs", flags|unix.MS_RDONLY, ""); err != nil {
		return fmt.Errorf("mount /sys: %w", err)
	}
	return nil
}

// protectKernel makes the switches of the kernel in /proc read-only and its
// secrets empty.
func protectKernel() error {
	for _, name := range []string{"/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus", "/proc/fs", "/proc/acpi", "/proc/scsi"} {
		fd, err := cloneMount(name, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := attach(fd, name); err != nil {
			return err
		}
	}
	for _, name := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/proc/kmsg", "/proc/sysrq-trigger"} {
		fd, err := cloneMount("/dev/null", unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return err
		}
		if err := attach(fd, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func mountDevices(devices map[string]int) error {
	if err := unix.Mount("tmpfs", "/dev", "tmpfs", tmpfsFlags|unix.MS_NOEXEC, "mode=0755,size=64m"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for name, fd := range devices {
		target := "/dev/" + name
		if err := os.WriteFile(target, nil, 0o666); err != nil {
			return err
		}
		if err := attach(fd, target); err != nil {
			return err
		}
	}
	for _, name := range []string{"/dev/pts", "/dev/shm"} {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("devpts", "/dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"); err != nil {
		return fmt.Errorf("mount /dev/pts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/dev/shm", "tmpfs", tmpfsFlags|unix.MS_NOEXEC, "mode=1777"); err != nil {
		return fmt.Errorf("mount /dev/shm: %w", err)
	}
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd",
		"stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles fills /run, and lays the host's resolv.conf and a policy-rc.d
// that forbids every service over those of the tree.
func writeFiles(c *config) error {
	unix.Umask(0)
	defer unix.Umask(0o022)
	if err := os.Mkdir("/run/lock", 0o777|os.ModeSticky); err != nil {
		return err
	}
	if err := os.Mkdir("/run/sidus", 0o755); err != nil {
		return err
	}
	for name, text := range c.Files {
		if !strings.HasPrefix(path.Clean(name), "/run/") {
			return fmt.Errorf("file %s is not under /run", name)
		}
		if err := os.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return err
		}
	}
	over := func(name, text string, mode os.FileMode, target string) error {
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			return err
		}
		fd, err := cloneMount(name, unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return err
		}
		return attach(fd, target)
	}
	if c.HasResolv {
		if err := over("/run/sidus/resolv.conf", c.Resolv, 0o644, "/etc/resolv.conf"); err != nil {
			return err
		}
	}
	if c.HasPolicy {
		return over("/run/sidus/policy-rc.d", "#!/bin/sh\nexit 101\n", 0o755, "/usr/sbin/policy-rc.d")
	}
	return nil
}

// cloneMount returns a descriptor of a mount of source alone (not of what is
// mounted below it) that is attached nowhere yet.
func cloneMount(source string, attributes uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, &fs.PathError{Op: "open_tree", Path: source, Err: err}
	}
	if attributes != 0 {
		attr := unix.MountAttr{Attr_set: attributes}
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return -1, &fs.PathError{Op: "mount_setattr", Path: source, Err: err}
		}
	}
	return fd, nil
}

// attach puts a mount of cloneMount at target. A symbolic link as the last
// part of target is covered, not followed.
func attach(fd int, target string) error {
	defer unix.Close(fd)
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &fs.PathError{Op: "move_mount", Path: target, Err: err}
	}
	return nil
}

// loopbackUp switches lo on in a network namespace of one's own.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}
