package btrfs

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"sidus/image/tool"
)

// mountOptions of a loop file's file system, beside noatime (a read must not
// write; in a snapshotted tree each access time would also unshare metadata).
//
//   - discard=async: what is freed becomes a hole in the loop file, so that the
//     disk gets it back. Kernels choose this by themselves since 6.2 only.
//   - compress=zstd:1: a /usr of 1.6 GB takes 0.8 GB instead of 1.7, here and on
//     the disk beneath. Reading it cold takes as long as without; writing costs
//     processor time, which shows on two busy cores. The kernel leaves alone
//     what does not shrink.
const mountOptions = "discard=async,compress=zstd:1"

// makeFileSystem makes a btrfs in a file. Metadata stays doubled (mkfs.btrfs'
// default), so that one bad block of the disk beneath loses no tree.
func (o Options) makeFileSystem(ctx context.Context, file string) error {
	return tool.Run(ctx, tool.Options{Log: o.Log}, "mkfs.btrfs", "--quiet", "--label", "sidus", file)
}

// loopsOf returns the loop devices of a file.
func (o Options) loopsOf(ctx context.Context, file string) ([]string, error) {
	out, err := tool.Output(ctx, tool.Options{Log: o.Log}, "losetup", "--list", "--json", "--output", "NAME,BACK-FILE,BACK-INO,BACK-MAJ:MIN,OFFSET")
	if err != nil {
		return nil, err
	}
	loops, err := parseLoops(out)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, loop := range loops {
		if loop.backedBy(info) {
			names = append(names, loop.Name)
		}
	}
	return names, nil
}

// backedBy tells whether a loop device lies on a file. Device and inode decide;
// the path counts too, because on a btrfs the device number that losetup knows
// is not the one that stat tells.
func (l loopDevice) backedBy(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	dev, ino := stat.Dev, stat.Ino
	if l.Inode.String() != fmt.Sprint(ino) {
		return false
	}
	if l.Device == fmt.Sprintf("%d:%d", unix.Major(uint64(dev)), unix.Minor(uint64(dev))) {
		return true
	}
	there, err := os.Stat(l.File)
	return err == nil && os.SameFile(there, info)
}

// attachLoop gives a file a loop device. Direct I/O keeps the data from being
// cached twice; where the disk beneath cannot do it, it is done without.
func (o Options) attachLoop(ctx context.Context, file string) (device string, err error) {
	for _, direct := range []string{"--direct-io=on", "--direct-io=off"} {
		var out []byte
		out, err = tool.Output(ctx, tool.Options{Log: o.Log}, "losetup", "--find", "--show", direct, file)
		if err == nil {
			return strings.TrimSpace(string(out)), nil
		}
		// losetup may have attached the file and failed after that.
		if devices, listErr := o.loopsOf(ctx, file); listErr == nil && len(devices) > 0 {
			return devices[0], nil
		}
	}
	if _, statErr := os.Stat("/dev/loop-control"); statErr != nil {
		return "", fmt.Errorf("%s: this kernel has no loop devices (modprobe loop): %w", file, err)
	}
	return "", fmt.Errorf("%s: %w", file, err)
}

// releaseLoop detaches a loop device; one that is mounted goes with its last
// mount.
func (o Options) releaseLoop(ctx context.Context, device string) error {
	return tool.Run(ctx, tool.Options{Log: o.Log}, "losetup", "--detach", device)
}

// mountedFrom returns the source of what is mounted on exactly a folder.
func mountedFrom(folder string) (source string, ok bool, err error) {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", false, err
	}
	if real, err := filepath.EvalSymlinks(folder); err == nil {
		folder = real
	}
	m, found := mountOf(mounts, folder)
	if !found || m.Mountpoint != folder {
		return "", false, nil
	}
	return m.Source, true, nil
}
