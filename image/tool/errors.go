package tool

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// ErrNotInstalled is what Run returns if there is no such program. It wraps
// exec.ErrNotFound.
var ErrNotInstalled = fmt.Errorf("the program is not installed: %w", exec.ErrNotFound)

// errHangs is in the Error of a program that was killed and does not end.
var errHangs = errors.New("it was killed, and hangs in the kernel")

// Error is how a program failed.
type Error struct {
	Args     []string      // the program and its arguments
	ExitCode int           // -1 if it did not start or a signal ended it
	Stderr   string        // the end of what it wrote to standard error
	Duration time.Duration // how long it ran
	Err      error         // what os/exec said
	Cause    error         // why it was stopped: the context's; nil if it ended by itself
}

func (e *Error) Error() string {
	var text strings.Builder
	text.WriteString(CommandLine(e.Args) + ": ")
	if e.Cause != nil {
		text.WriteString("stopped: " + e.Cause.Error())
		if e.Err == errHangs {
			text.WriteString(" (" + e.Err.Error() + ")")
		}
	} else {
		text.WriteString(e.Err.Error())
	}
	if e.Stderr != "" {
		text.WriteString(": " + e.Stderr)
	}
	return text.String()
}

// Unwrap returns what os/exec said and why the context was done.
func (e *Error) Unwrap() []error {
	if e.Cause == nil {
		return []error{e.Err}
	}
	return []error{e.Cause, e.Err}
}

// StderrOf returns the end of a program's standard error if err is of a
// program, else nothing.
func StderrOf(err error) string {
	if failed := (*Error)(nil); errors.As(err, &failed) {
		return failed.Stderr
	}
	return ""
}

// CommandLine writes a command as a shell would read it.
func CommandLine(args []string) string {
	words := make([]string, len(args))
	for i, arg := range args {
		words[i] = arg
		plain := func(r rune) bool {
			return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./,:=+@%", r)
		}
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool { return !plain(r) }) {
			words[i] = "'" + strings.ReplaceAll(arg, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

// packages names the Debian package that a program comes from.
var packages = map[string]string{
	"btrfs": "btrfs-progs", "mkfs.btrfs": "btrfs-progs", "btrfstune": "btrfs-progs",
	"losetup": "mount", "mount": "mount", "umount": "mount",
	"unshare": "util-linux", "nsenter": "util-linux", "findmnt": "util-linux", "blkid": "util-linux",
	"getfattr": "attr", "setfattr": "attr", "getfacl": "acl", "setfacl": "acl",
	"getcap": "libcap2-bin", "setcap": "libcap2-bin",
	"mmdebstrap": "mmdebstrap", "debootstrap": "debootstrap", "dpkg": "dpkg", "apt-get": "apt",
	"zfs": "zfsutils-linux", "zpool": "zfsutils-linux",
	"lvs": "lvm2", "lvcreate": "lvm2", "lvremove": "lvm2", "vgs": "lvm2", "lvm": "lvm2", "dmsetup": "dmsetup",
	"thin_delta": "thin-provisioning-tools", "thin_dump": "thin-provisioning-tools",
	"resize2fs": "e2fsprogs", "xfs_growfs": "xfsprogs",
	"mkfs.ext4": "e2fsprogs", "mke2fs": "e2fsprogs", "chattr": "e2fsprogs", "mkfs.xfs": "xfsprogs",
	"ip": "iproute2", "nft": "nftables", "curl": "curl",
	"find": "findutils", "xargs": "findutils", "tar": "tar", "cpio": "cpio", "zstd": "zstd",
	"sha256sum": "coreutils", "stat": "coreutils", "cp": "coreutils",
	"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils",
	"xorriso": "xorriso", "mksquashfs": "squashfs-tools", "modprobe": "kmod",
	"git": "git", "ssh": "openssh-client", "rsync": "rsync",
}

// Look returns the path of a program. Where PATH is a plain user's, the folders
// of system programs are looked into as well. The error wraps ErrNotInstalled
// and names the Debian package, if it is known.
func Look(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	if !strings.Contains(name, "/") {
		for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
	}
	if pkg := packages[name]; pkg != "" {
		return "", fmt.Errorf("%s: %w (on Debian: apt install %s)", name, ErrNotInstalled, pkg)
	}
	return "", fmt.Errorf("%s: %w", name, ErrNotInstalled)
}
