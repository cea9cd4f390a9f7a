package paxtar

import (
	"fmt"
	"strconv"
	"strings"
)

// The types of entries, as POSIX pax has them.
const (
	typeRegular   = '0'
	typeHardLink  = '1'
	typeSymlink   = '2'
	typeCharacter = '3'
	typeBlock     = '4'
	typeDirectory = '5'
	typeFIFO      = '6'
	typePax       = 'x'
)

const (
	blockSize = 512
	nameSize  = 100

	// What the octal fields of ustar can hold.
	maxOctal7  = 1<<21 - 1
	maxOctal11 = 1<<33 - 1
)

// header is one entry's.
type header struct {
	name         string
	link         string // target of a link
	kind         byte
	mode         uint32 // 07777
	uid, gid     uint32
	size         int64 // of the data that follows
	sec          int64 // modification time
	nsec         uint32
	major, minor uint32
	records      []record // further pax records
	ustarName    string   // stands in the plain header in place of name; "" means name
}

// record is a record of a pax header.
type record struct{ key, value string }

// append appends the header's blocks, that of pax records first if any are
// needed. Names that are not UTF-8 stand there as they are, without the record
// "hdrcharset" that POSIX asks for: GNU tar writes none either, and warns of it.
func (h *header) append(dst []byte) []byte {
	var records []record
	add := func(key, value string) { records = append(records, record{key, value}) }
	plain := h.ustarName
	if plain == "" {
		plain = h.name
		if len(plain) > nameSize {
			add("path", plain)
			plain = plain[:nameSize]
		}
	}
	link := h.link
	if len(link) > nameSize {
		add("linkpath", link)
		link = link[:nameSize]
	}
	limited := func(key string, value, most int64) int64 {
		if value >= 0 && value <= most {
			return value
		}
		add(key, strconv.FormatInt(value, 10))
		return 0
	}
	size := limited("size", h.size, maxOctal11)
	uid := limited("uid", int64(h.uid), maxOctal7)
	gid := limited("gid", int64(h.gid), maxOctal7)
	sec := h.sec
	if h.nsec != 0 || sec < 0 || sec > maxOctal11 {
		add("mtime", formatTime(h.sec, h.nsec))
		sec = min(max(sec, 0), maxOctal11)
	}
	records = append(records, h.records...)
	if len(records) > 0 {
		var text []byte
		for _, r := range records {
			text = r.append(text)
		}
		// Some readers want a name here; it is used by none.
		dst = appendUstar(dst, &ustar{name: "PaxHeader", kind: typePax, mode: 0o644, size: int64(len(text))})
		dst = append(dst, text...)
		dst = pad(dst, len(text))
	}
	return appendUstar(dst, &ustar{
		name: plain, link: link, kind: h.kind, mode: h.mode, uid: uid, gid: gid,
		size: size, time: sec, major: h.major, minor: h.minor,
	})
}

// append appends "length key=value\n", where length counts itself.
func (r record) append(dst []byte) []byte {
	rest := len(r.key) + len(r.value) + 3 // blank, equals sign, newline
	length := rest + len(strconv.Itoa(rest))
	if rest+len(strconv.Itoa(length)) != length {
		length++
	}
	dst = strconv.AppendInt(dst, int64(length), 10)
	dst = append(append(append(append(dst, ' '), r.key...), '='), r.value...)
	return append(dst, '\n')
}

// formatTime writes a time as decimal seconds since 1970; before that the
// nanoseconds count towards zero.
func formatTime(sec int64, nsec uint32) string {
	if nsec == 0 {
		return strconv.FormatInt(sec, 10)
	}
	sign := ""
	if sec < 0 {
		sign, sec, nsec = "-", -sec-1, 1e9-nsec
	}
	return strings.TrimRight(fmt.Sprintf("%s%d.%09d", sign, sec, nsec), "0")
}

// ustar is a plain header; its numbers fit.
type ustar struct {
	name, link   string
	kind         byte
	mode         uint32
	uid, gid     int64
	size, time   int64
	major, minor uint32
}

func appendUstar(dst []byte, u *ustar) []byte {
	begin := len(dst)
	dst = append(dst, make([]byte, blockSize)...)
	b := dst[begin:]
	octal := func(at, width int, value int64) {
		for i := at + width - 2; i >= at; i-- {
			b[i] = '0' + byte(value&7)
			value >>= 3
		}
	}
	copy(b[:nameSize], u.name)
	octal(100, 8, int64(u.mode))
	octal(108, 8, u.uid)
	octal(116, 8, u.gid)
	octal(124, 12, u.size)
	octal(136, 12, u.time)
	b[156] = u.kind
	copy(b[157:257], u.link)
	copy(b[257:], "ustar\x0000")
	octal(329, 8, int64(u.major))
	octal(337, 8, int64(u.minor))
	sum := int64(8 * ' ')
	for _, c := range b {
		sum += int64(c)
	}
	octal(148, 7, sum)
	b[155] = ' '
	return dst
}

// pad fills up to a whole block.
func pad(dst []byte, length int) []byte {
	return append(dst, make([]byte, padding(int64(length)))...)
}

func padding(length int64) int64 { return -length & (blockSize - 1) }
