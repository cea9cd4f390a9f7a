package btrfs

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strconv"
	"strings"
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

// mountPoint is a line of /proc/self/mountinfo, see proc_pid_mountinfo(5).
type mountPoint struct {
	id, parent int
	device     string // major:minor
	root       string // the folder in its file system that is mounted
	path       string // where it is mounted
	fsType     string
	source     string
}

// parseMounts reads /proc/self/mountinfo.
func parseMounts(r io.Reader) ([]mountPoint, error) {
	var mounts []mountPoint
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		left, right, ok := strings.Cut(lines.Text(), " - ")
		fields, rest := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 6 || len(rest) < 2 {
			return nil, fmt.Errorf("mountinfo: a line that cannot be read: %q", lines.Text())
		}
		id, err1 := strconv.Atoi(fields[0])
		parent, err2 := strconv.Atoi(fields[1])
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("mountinfo: %w", err)
		}
		mounts = append(mounts, mountPoint{
			id: id, parent: parent, device: fields[2],
			root: unescape(fields[3]), path: unescape(fields[4]),
			fsType: rest[0], source: unescape(rest[1]),
		})
	}
	return mounts, lines.Err()
}

// unescape undoes the octal escapes (\040 for a blank) of mountinfo.
func unescape(s string) string {
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				out.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		out.WriteByte(s[i])
	}
	return out.String()
}

// mountOf returns the mount that a path is on: of those whose mount point is
// above it the deepest, and of several on one mount point the last.
func mountOf(mounts []mountPoint, file string) (mountPoint, bool) {
	var best mountPoint
	found := false
	for _, m := range mounts {
		if within(file, m.path) && (!found || len(m.path) >= len(best.path)) {
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
func mountsInside(mounts []mountPoint, device, folder string) []string {
	byID := make(map[int]mountPoint, len(mounts))
	for _, m := range mounts {
		byID[m.id] = m
	}
	var inside []string
	for _, m := range mounts {
		on, ok := byID[m.parent]
		if !ok || on.device != device || !within(m.path, on.path) {
			continue
		}
		place := path.Join(on.root, strings.TrimPrefix(m.path, on.path))
		if !within(place, folder) || (place == folder && m.device == device && m.root == folder) {
			continue
		}
		inside = append(inside, m.path)
	}
	return inside
}
