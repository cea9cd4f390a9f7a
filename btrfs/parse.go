package btrfs

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"

	"github.com/moby/sys/mountinfo"
)

// loopDevice is a line of losetup's list.
type loopDevice struct {
	Name   string      `json:"name"`
	File   string      `json:"back-file"`
	Inode  json.Number `json:"back-ino"`
	Device string      `json:"back-maj:min"`
	Offset json.Number `json:"offset"`
}

// parseLoops reads what `losetup --list --json` says. Nothing at all means
// that there is no loop device.
func parseLoops(text []byte) ([]loopDevice, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	var list struct {
		Devices []loopDevice `json:"loopdevices"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("what losetup says cannot be read: %w", err)
	}
	for i := range list.Devices {
		list.Devices[i].Device = strings.TrimSpace(list.Devices[i].Device)
	}
	return list.Devices, nil
}

// superblock is what is needed of a btrfs superblock
// (https://btrfs.readthedocs.io/en/latest/dev/On-disk-format.html).
type superblock struct {
	uuid string
	size int64 // of the file system, in bytes
}

const (
	superOffset = 64 << 10
	superSize   = 4 << 10
)

var (
	errNoSuperblock  = errors.New("there is no btrfs file system in it")
	errBadSuperblock = errors.New("its superblock is damaged")
)

// readSuperblock reads the first superblock of a file system image.
func readSuperblock(r io.ReaderAt) (superblock, error) {
	raw := make([]byte, superSize)
	if n, err := r.ReadAt(raw, superOffset); err != nil {
		if errors.Is(err, io.EOF) {
			return superblock{}, fmt.Errorf("%w: it ends before the superblock (%d of %d bytes)", errNoSuperblock, n, superSize)
		}
		return superblock{}, err
	}
	if string(raw[0x40:0x48]) != "_BHRfS_M" {
		return superblock{}, errNoSuperblock
	}
	const crc32c = 0 // the checksum's type, at 0xc4
	if binary.LittleEndian.Uint16(raw[0xc4:]) == crc32c {
		sum := crc32.Checksum(raw[0x20:], crc32.MakeTable(crc32.Castagnoli))
		if sum != binary.LittleEndian.Uint32(raw) {
			return superblock{}, errBadSuperblock
		}
	}
	size := int64(binary.LittleEndian.Uint64(raw[0x70:]))
	if size <= 0 {
		return superblock{}, errBadSuperblock
	}
	return superblock{uuid: formatUUID([16]byte(raw[0x20:0x30])), size: size}, nil
}

// deviceOf is the device (major:minor) of what is mounted.
func deviceOf(m *mountinfo.Info) string { return fmt.Sprintf("%d:%d", m.Major, m.Minor) }

// mountOf returns the mount that a path is on: of those whose mount point is
// above it the deepest, and of several on one mount point the last.
func mountOf(mounts []*mountinfo.Info, file string) (best *mountinfo.Info, found bool) {
	for _, m := range mounts {
		if within(file, m.Mountpoint) && (!found || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best, found = m, true
		}
	}
	return best, found
}

// within tells whether file is dir or beneath it.
func within(file, dir string) bool {
	return file == dir || dir == "/" || strings.HasPrefix(file, dir+"/")
}

// mountsInside returns the mount points inside a folder, which is given by the
// device (major:minor) of its file system and its path in that. Mounts that are
// reached through another mount of the folder count too. Another mount of the
// folder itself is none.
func mountsInside(mounts []*mountinfo.Info, device, folder string) []string {
	byID := make(map[int]*mountinfo.Info, len(mounts))
	for _, m := range mounts {
		byID[m.ID] = m
	}
	var inside []string
	for _, m := range mounts {
		on, ok := byID[m.Parent]
		if !ok || deviceOf(on) != device || !within(m.Mountpoint, on.Mountpoint) {
			continue
		}
		place := path.Join(on.Root, strings.TrimPrefix(m.Mountpoint, on.Mountpoint))
		if !within(place, folder) || (place == folder && deviceOf(m) == device && m.Root == folder) {
			continue
		}
		inside = append(inside, m.Mountpoint)
	}
	return inside
}
