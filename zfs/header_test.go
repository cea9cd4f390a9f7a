package zfs

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// begin makes the record that a stream begins with.
func begin(order binary.ByteOrder, version uint64, kind uint32, to, from uint64) []byte {
	record := make([]byte, headerLen)
	order.PutUint64(record[offMagic:], drrMagic)
	order.PutUint64(record[offVersion:], version)
	order.PutUint32(record[offObjsetType:], kind)
	order.PutUint64(record[offToGUID:], to)
	order.PutUint64(record[offFromGUID:], from)
	return record
}

func TestHeader(t *testing.T) {
	little := binary.LittleEndian
	for name, c := range map[string]struct {
		record []byte
		want   header
	}{
		"whole":      {begin(little, 1, 2, 7, 0), header{to: 7}},
		"difference": {begin(little, 1|1<<24, 2, 1<<63, 9), header{to: 1 << 63, from: 9}},
		"the rest":   {begin(little, 1|1<<22, 2, 7, 9), header{to: 7, from: 9, resuming: true}},
		"big endian": {begin(binary.BigEndian, 1, 2, 7, 9), header{to: 7, from: 9}},
	} {
		got, taken, err := readHeader(io.MultiReader(bytes.NewReader(c.record), strings.NewReader("more")))
		if got != c.want || !bytes.Equal(taken, c.record) || err != nil {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	other := begin(little, 1, 2, 7, 0)
	other[0] = 1 // not the first record
	for name, record := range map[string][]byte{
		"empty": nil, "short": begin(little, 1, 2, 7, 0)[:headerLen-1], "zeros": make([]byte, headerLen), "another record": other,
		"several": begin(little, 2, 2, 7, 0), "a block device": begin(little, 1, 3, 7, 0), "no kind": begin(little, 0, 2, 7, 0),
	} {
		if _, _, err := readHeader(bytes.NewReader(record)); !errors.Is(err, errNoStream) {
			t.Errorf("%s: %v", name, err)
		}
	}
	broken := errors.New("broken")
	if _, _, err := readHeader(iotest.ErrReader(broken)); !errors.Is(err, broken) || errors.Is(err, errNoStream) {
		t.Errorf("a reader that fails: %v", err)
	}
}

func FuzzHeader(f *testing.F) {
	f.Add(begin(binary.LittleEndian, 1, 2, 7, 9))
	f.Fuzz(func(t *testing.T, record []byte) {
		if h, err := parseHeader(record); err == nil && len(record) < headerLen {
			t.Errorf("%+v of %d bytes", h, len(record))
		}
	})
}

// TestTokenGUIDs reads what "zfs send -nvt" of OpenZFS 2.1 says.
func TestTokenGUIDs(t *testing.T) {
	const said = "resume token contents:\nnvlist version: 0\n\tfromguid = 0x10\n\tobject = 0x2\n\toffset = 0x460000\n\tbytes = 0x468e10\n\ttoguid = 0xff\n\ttoname = tank/sidus/x@y\n\tembedok = 1\n"
	if got := tokenGUIDs([]byte(said)); got != [2]string{"255", "16"} {
		t.Errorf("%q", got)
	}
	if got := tokenGUIDs([]byte("toname = x\n toguid = 0xzz\n")); got != [2]string{"", "0"} {
		t.Errorf("%q", got)
	}
}

func TestTokenForm(t *testing.T) {
	for token, want := range map[string]bool{
		"1-f8a1d0ed5-e8-789c636064000310a500c4ec50360710e72765a52697303068": true,
		"":                          false,
		"-":                         false,
		"1-a-b-":                    false,
		"2-f8a1d0ed5-e8-789c":       false,
		"1-f8a1-e8-789c\n":          false,
		"1-f8a1-e8-789c; rm -rf /":  false,
		"1-f8a1d0ed5-e8-789C636064": false,
	} {
		if tokenForm.MatchString(token) != want {
			t.Errorf("%q", token)
		}
	}
}
