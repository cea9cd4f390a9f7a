package pxe

import (
	"net"
	"strings"
)

// Arch is the architecture of a client as it says in DHCP's option 93
// (RFC 4578 2.1, and the registry of processor architecture types).
type Arch uint16

// The architectures that can be served.
const (
	ArchBIOS    Arch = 0
	ArchEFIBC   Arch = 7 // x86-64 in practice, whatever the name says
	ArchEFIx64  Arch = 9
	ArchHTTPx64 Arch = 16 // UEFI HTTP boot on x86-64
)

// Firmware is what a client says about itself when it asks what to load.
type Firmware struct {
	Arch Arch
	// IPXE is set if the client is iPXE, or a firmware built on it, that can
	// load by HTTP.
	IPXE bool
	// HTTP is set if the client is a firmware's HTTP boot: it wants an URL.
	HTTP bool
}

// Loaders says which file each firmware is given.
type Loaders struct {
	// BIOS is the file for BIOS machines; empty means "lpxelinux.0".
	BIOS string
	// EFI is the file for x86-64 UEFI machines; empty means "snponly.efi".
	EFI string
	// NoScript keeps machines whose firmware is iPXE from being given the
	// script's address: they get the same files as others.
	NoScript bool
}

// Known boot loaders.
const (
	DefaultBIOS = "lpxelinux.0"
	DefaultEFI  = "snponly.efi"
)

// BootFile says what a client shall load: a file of the TFTP server, or an
// URL under base, the address of the HTTP server, which may be empty if there
// is none. It reports false if there is nothing for such a client.
func (l Loaders) BootFile(f Firmware, base string, mac net.HardwareAddr) (file string, ok bool) {
	base = strings.TrimSuffix(base, "/")
	if f.IPXE && !l.NoScript && base != "" {
		return ScriptURL(base, mac), true
	}
	bios, efi := l.BIOS, l.EFI
	if bios == "" {
		bios = DefaultBIOS
	}
	if efi == "" {
		efi = DefaultEFI
	}
	switch f.Arch {
	case ArchBIOS:
		return bios, true
	case ArchEFIBC, ArchEFIx64:
		return efi, true
	case ArchHTTPx64:
		if f.HTTP && base != "" {
			return base + LoaderPath + efi, true
		}
	}
	return "", false
}

// LoaderPath is where boot loaders are on the HTTP server, for firmware that
// boots by HTTP.
const LoaderPath = "/v1/loader/"
