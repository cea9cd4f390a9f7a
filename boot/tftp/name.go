package tftp

import (
	"errors"
	"fmt"
	"net"
	"strings"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

// errRefused is wrapped by the errors of names that nobody asks for in good
// faith.
var errRefused = errors.New("access violation")

const maxName = 255 // bytes

type kind int

const (
	kindLoader  kind = iota // a boot loader or a module of it
	kindConfig              // a machine's configuration
	kindBoot                // a snapshot's kernel or initrd
	kindMissing             // a name that boot loaders try and that never exists
)

// request is what a file name asks for.
type request struct {
	kind     kind
	name     string // cleaned
	loader   pxe.Loader
	mac      net.HardwareAddr
	snapshot store.SnapshotID
	file     protocol.BootFile
}

// parse understands a file name as it came from the wire.
func parse(raw string) (request, error) {
	if raw == "" || len(raw) > maxName {
		return request{}, fmt.Errorf("%w: the name has %d bytes", errRefused, len(raw))
	}
	for i := range len(raw) {
		if c := raw[i]; c < 0x20 || c > 0x7e || c == '\\' {
			return request{}, fmt.Errorf("%w: the name has byte %#x", errRefused, c)
		}
	}
	// Firmware and loaders write the root in many ways: "/x", "//x", "./x".
	var parts []string
	for part := range strings.SplitSeq(raw, "/") {
		switch part {
		case "", ".":
		case "..":
			return request{}, fmt.Errorf("%w: the name leads upwards", errRefused)
		default:
			parts = append(parts, part)
		}
	}
	if len(parts) == 0 {
		return request{}, fmt.Errorf("%w: no name", errRefused)
	}
	r := request{name: strings.Join(parts, "/")}
	switch {
	case len(parts) == 1:
		r.kind = kindLoader
	case parts[0] == "boot":
		var err error
		if r.snapshot, r.file, err = protocol.ParseBootFilePath(r.name); err != nil {
			r.kind = kindMissing
			return r, nil
		}
		r.kind = kindBoot
	case len(parts) == 2 && parts[0] == "pxelinux.cfg":
		r.config(pxe.PXELINUX, "", parts[1])
	case len(parts) == 2 && parts[0] == "grub":
		r.config(pxe.GRUB, "grub.cfg-", parts[1])
	default:
		r.kind = kindMissing
	}
	return r, nil
}

func (r *request) config(loader pxe.Loader, prefix, name string) {
	r.kind = kindMissing
	text, ok := strings.CutPrefix(strings.ToLower(name), prefix+"01-")
	if !ok || len(text) != 17 || strings.Count(text, "-") != 5 {
		return
	}
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return
	}
	r.kind, r.loader, r.mac = kindConfig, loader, mac
}
