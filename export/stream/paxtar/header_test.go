package paxtar

import (
	"archive/tar"
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Go's reader understands what is written.
func TestHeaders(t *testing.T) {
	for name, h := range map[string]header{
		"plain":       {name: "./a", kind: typeRegular, mode: 0o4755, uid: 1, gid: 2, sec: 1700000000},
		"long names":  {name: "./" + strings.Repeat("d/", 400) + "x", link: strings.Repeat("l", 4000), kind: typeSymlink, mode: 0o777},
		"100 bytes":   {name: strings.Repeat("n", 100), kind: typeRegular},
		"101 bytes":   {name: strings.Repeat("n", 101), kind: typeRegular},
		"large IDs":   {name: "./a", kind: typeFIFO, uid: 4294967294, gid: 2097152},
		"large size":  {name: "./a", kind: typeRegular, size: 1 << 40},
		"nanoseconds": {name: "./a", kind: typeRegular, sec: 2208988800, nsec: 999999999},
		"before 1970": {name: "./a", kind: typeRegular, sec: -14182940, nsec: 5},
		"just before": {name: "./a", kind: typeRegular, sec: -1, nsec: 999999999},
		"far future":  {name: "./a", kind: typeRegular, sec: 1 << 40},
		"device":      {name: "./a", kind: typeBlock, major: 4095, minor: 1048575},
		"not UTF-8":   {name: "./" + strings.Repeat("\xff\xfe", 60), kind: typeRegular},
		"attributes":  {name: "./a", kind: typeRegular, records: []record{{"SCHILY.xattr.user.a", "x\ny=\x01\xff"}}},
	} {
		got, err := tar.NewReader(bytes.NewReader(h.append(nil))).Next()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if got.Name != h.name || got.Linkname != h.link || got.Typeflag != h.kind || got.Mode != int64(h.mode) || got.Size != h.size ||
			got.Uid != int(h.uid) || got.Gid != int(h.gid) || got.Devmajor != int64(h.major) || got.Devminor != int64(h.minor) ||
			!got.ModTime.Equal(time.Unix(h.sec, int64(h.nsec))) {
			t.Errorf("%s: got %+v", name, got)
		}
		for _, r := range h.records {
			if got.PAXRecords[r.key] != r.value {
				t.Errorf("%s: %s is %q", name, r.key, got.PAXRecords[r.key])
			}
		}
	}
}

func TestRecordLengths(t *testing.T) {
	for n := range 1200 {
		text := string(record{"k", strings.Repeat("v", n)}.append(nil))
		length, rest, _ := strings.Cut(text, " ")
		if told, err := strconv.Atoi(length); err != nil || told != len(text) || rest != "k="+strings.Repeat("v", n)+"\n" {
			t.Fatalf("%d: %.20q… has %d bytes", n, text, len(text))
		}
	}
}

func TestFormatACL(t *testing.T) {
	raw := []byte{2, 0, 0, 0}
	for _, entry := range [][3]byte{{0x01, 7, 0}, {0x02, 5, 33}, {0x04, 4, 0}, {0x08, 6, 44}, {0x10, 7, 0}, {0x20, 0, 0}} {
		raw = append(raw, entry[0], 0, entry[1], 0, entry[2], 0, 0, 0)
	}
	want := "user::rwx\nuser:33:r-x\ngroup::r--\ngroup:44:rw-\nmask::rwx\nother::---\n"
	if text, ok := formatACL(raw); !ok || text != want {
		t.Errorf("got %q", text)
	}
	for _, bad := range [][]byte{nil, raw[:3], raw[:len(raw)-1], {3, 0, 0, 0}, append(bytes.Clone(raw), 9, 9, 9, 9, 9, 9, 9, 9)} {
		if text, ok := formatACL(bad); ok {
			t.Errorf("%x was taken for %q", bad, text)
		}
	}
}

func FuzzACL(f *testing.F) {
	f.Add([]byte{2, 0, 0, 0, 1, 0, 7, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if r := attributeRecord(accessACL, raw); r.key == "" {
			t.Error("no key")
		}
	})
}
