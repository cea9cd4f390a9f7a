package btrfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"

	"sidus/image/store"
)

func TestParseItem(t *testing.T) {
	id := string(store.NewVolumeID())
	for _, c := range []struct {
		name        string
		partial, ok bool
	}{
		{id, false, true}, {".new-" + id, true, true}, {".gone-" + id, true, true},
		{"", false, false}, {".", false, false}, {"lost+found", false, false}, {".new-", false, false},
		{".new-.new-" + id, false, false}, {id + "0", false, false}, {strings.ToUpper(id[:31]) + "A", false, false}, {".old-" + id, false, false},
	} {
		i, partial, ok := parseItem(store.KindVolume, c.name)
		if ok != c.ok || ok && (partial != c.partial || i.id != id) {
			t.Errorf("%q: got %v, %v, %v", c.name, i, partial, ok)
		}
		if ok {
			if at := path.Base(i.path()); !partial && at != c.name {
				t.Errorf("%q becomes %q", c.name, at)
			}
		}
	}
}

const loopsText = `{
   "loopdevices": [
      {"name": "/dev/loop0", "back-file": "/var/lib/sidus/store/a b.btrfs", "back-ino": 9978484, "back-maj:min": "     254:0  ", "offset": 0},
      {"name": "/dev/loop1", "back-file": null, "back-ino": "12", "back-maj:min": "8:1", "offset": "4096"}
   ]
}`

func TestParseLoops(t *testing.T) {
	loops, err := parseLoops([]byte(loopsText))
	if err != nil || len(loops) != 2 {
		t.Fatal(loops, err)
	}
	if l := loops[0]; l.Name != "/dev/loop0" || l.File != "/var/lib/sidus/store/a b.btrfs" || l.Inode != "9978484" || l.Device != "254:0" {
		t.Errorf("got %+v", l)
	}
	if l := loops[1]; l.Inode != "12" || l.File != "" { // older versions quote numbers
		t.Errorf("got %+v", l)
	}
	if loops, err := parseLoops([]byte("\n")); err != nil || len(loops) != 0 {
		t.Errorf("nothing: got %v, %v", loops, err)
	}
	if _, err := parseLoops([]byte("losetup: error")); err == nil {
		t.Error("no JSON was taken")
	}
}

func FuzzParseLoops(f *testing.F) {
	f.Add([]byte(loopsText))
	f.Add([]byte(`{"loopdevices": null}`))
	f.Fuzz(func(t *testing.T, text []byte) { _, _ = parseLoops(text) })
}

// Lines 10 to 14 are on the btrfs 0:39, of which the folder /@/sidus is the
// store; 12 shows a volume through a bind mount.
const mountsText = `1 0 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
2 1 0:5 / /proc rw - proc proc rw
10 1 0:39 /@ /mnt/data\040disk rw,noatime shared:5 master:2 - btrfs /dev/loop0 rw,subvolid=5
11 10 0:5 / /mnt/data\040disk/sidus/volumes/aa/proc rw - proc proc rw
12 1 0:39 /@/sidus/volumes/bb /tmp/bind rw - btrfs /dev/loop0 rw
13 12 0:60 / /tmp/bind/dev rw - tmpfs tmpfs rw
14 10 0:39 /@/sidus/volumes/cc /mnt/data\040disk/sidus/volumes/cc rw - btrfs /dev/loop0 rw
15 10 0:61 / /mnt/data\040disk/sidus/volumes/aab/x rw - tmpfs tmpfs rw
16 10 0:39 /@/other /mnt/data\040disk/sidus/volumes/dd rw - btrfs /dev/loop0 rw
`

func TestMountsInside(t *testing.T) {
	mounts, err := mountinfo.GetMountsFromReader(strings.NewReader(mountsText), nil)
	if err != nil || len(mounts) != 9 {
		t.Fatal(mounts, err)
	}
	for volume, want := range map[string][]string{
		"aa": {"/mnt/data disk/sidus/volumes/aa/proc"},
		"bb": {"/tmp/bind/dev"}, // through the bind mount
		"cc": nil,               // bound onto itself
		"dd": {"/mnt/data disk/sidus/volumes/dd"},
		"a":  nil, // a name that begins the same
	} {
		if got := mountsInside(mounts, "0:39", "/@/sidus/volumes/"+volume); !slices.Equal(got, want) {
			t.Errorf("%s: got %q, want %q", volume, got, want)
		}
	}
	for file, want := range map[string]int{"/": 1, "/etc": 1, "/proc": 2, "/processes": 1, "/mnt/data disk/sidus": 10, "/tmp/bind/dev/null": 13} {
		if m, ok := mountOf(mounts, file); !ok || m.ID != want {
			t.Errorf("%s is on %d, want %d", file, m.ID, want)
		}
	}
}

// super makes a superblock whose checksum is right.
func super(change func(raw []byte)) []byte {
	raw := make([]byte, superSize)
	copy(raw[0x20:], []byte{0x5d, 0x09, 0xc2, 0x48, 0x0a, 0x3c, 0x40, 0x46, 0x84, 0xdd, 0xdf, 0x59, 0xd6, 0xbf, 0xb8, 0x5a})
	copy(raw[0x40:], "_BHRfS_M")
	binary.LittleEndian.PutUint64(raw[0x70:], 40<<30)
	if change != nil {
		change(raw)
	}
	binary.LittleEndian.PutUint32(raw, crc32.Checksum(raw[0x20:], crc32.MakeTable(crc32.Castagnoli)))
	return append(make([]byte, superOffset), raw...)
}

func TestReadSuperblock(t *testing.T) {
	got, err := readSuperblock(bytes.NewReader(super(nil)))
	if err != nil || got.uuid != "5d09c248-0a3c-4046-84dd-df59d6bfb85a" || got.size != 40<<30 {
		t.Errorf("got %+v, %v", got, err)
	}
	flipped := super(nil)
	flipped[superOffset+0x70] ^= 1
	for name, c := range map[string]struct {
		image []byte
		want  error
	}{
		"empty":     {nil, errNoSuperblock},
		"short":     {super(nil)[:superOffset+100], errNoSuperblock},
		"no magic":  {super(func(raw []byte) { raw[0x40] = 0 }), errNoSuperblock},
		"a bit off": {flipped, errBadSuperblock},
		"no size":   {super(func(raw []byte) { binary.LittleEndian.PutUint64(raw[0x70:], 0) }), errBadSuperblock},
		"negative":  {super(func(raw []byte) { binary.LittleEndian.PutUint64(raw[0x70:], 1<<63) }), errBadSuperblock},
	} {
		if _, err := readSuperblock(bytes.NewReader(c.image)); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	if _, err := readSuperblock(failingReader{}); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("got %v", err)
	}
}

type failingReader struct{}

func (failingReader) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

func FuzzReadSuperblock(f *testing.F) {
	f.Add(super(nil)[superOffset:])
	f.Fuzz(func(t *testing.T, raw []byte) {
		_, _ = readSuperblock(bytes.NewReader(append(make([]byte, superOffset), raw...)))
	})
}
