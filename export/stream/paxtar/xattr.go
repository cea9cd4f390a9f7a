package paxtar

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// xattrs reads the extended attributes of an entry. list and get are the
// system calls for it.
func (w *writer) xattrs(list func([]byte) (int, error), get func(string, []byte) (int, error)) ([]record, error) {
	n, err := retry(&w.names, list)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EPERM) {
		return nil, nil
	} else if err != nil || n == 0 {
		return nil, err
	}
	names := strings.Split(strings.TrimSuffix(string(w.names[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var records []record
	for _, name := range names {
		n, err := retry(&w.value, func(b []byte) (int, error) { return get(name, b) })
		if err != nil {
			return nil, fmt.Errorf("attribute %s: %w", name, err)
		}
		records = append(records, attributeRecord(name, w.value[:n]))
	}
	return records, nil
}

// retry calls a system call with a buffer that grows until it is enough.
func retry(buffer *[]byte, call func([]byte) (int, error)) (int, error) {
	for {
		n, err := call(*buffer)
		switch {
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ERANGE) && len(*buffer) < 1<<20:
			*buffer = make([]byte, 2*len(*buffer))
		default:
			return n, err
		}
	}
}

func attributeRecord(name string, value []byte) record {
	for attribute, key := range map[string]string{accessACL: "SCHILY.acl.access", defaultACL: "SCHILY.acl.default"} {
		if name != attribute {
			continue
		}
		if text, ok := formatACL(value); ok {
			return record{key, text}
		}
	}
	// An equals sign would end the key; GNU tar writes it so.
	escaped := strings.NewReplacer("%", "%25", "=", "%3D").Replace(name)
	return record{"SCHILY.xattr." + escaped, string(value)}
}

// formatACL writes the kernel's form of an ACL (linux/posix_acl_xattr.h) in the
// long text form of acl(5), with numbers for names. ok is false if it is none.
func formatACL(raw []byte) (text string, ok bool) {
	if len(raw) < 4 || len(raw)%8 != 4 || binary.LittleEndian.Uint32(raw) != 2 {
		return "", false
	}
	var lines strings.Builder
	for raw = raw[4:]; len(raw) > 0; raw = raw[8:] {
		permissions, id := binary.LittleEndian.Uint16(raw[2:]), binary.LittleEndian.Uint32(raw[4:])
		switch binary.LittleEndian.Uint16(raw) {
		case 0x01:
			lines.WriteString("user::")
		case 0x02:
			fmt.Fprintf(&lines, "user:%d:", id)
		case 0x04:
			lines.WriteString("group::")
		case 0x08:
			fmt.Fprintf(&lines, "group:%d:", id)
		case 0x10:
			lines.WriteString("mask::")
		case 0x20:
			lines.WriteString("other::")
		default:
			return "", false
		}
		for i, letter := range "rwx" {
			if permissions>>(2-i)&1 == 0 {
				letter = '-'
			}
			lines.WriteRune(letter)
		}
		lines.WriteByte('\n')
	}
	return lines.String(), true
}
