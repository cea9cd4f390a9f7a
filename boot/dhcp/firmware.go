package dhcp

import (
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"sidus/boot/pxe"
)

// Options that the library has no names for.
const (
	optionUUID = dhcpv4.GenericOptionCode(97)  // client machine identifier, RFC 4578 2.3
	optionIPXE = dhcpv4.GenericOptionCode(175) // iPXE's encapsulated options
)

const (
	classPXE  = "PXEClient"
	classHTTP = "HTTPClient"

	ipxeHTTP = 0x13 // feature tag of iPXE's HTTP
)

// firmwareOf says what m tells of the firmware that sent it, and whether it
// asks for something to boot at all.
func firmwareOf(m *dhcpv4.DHCPv4) (f pxe.Firmware, boots bool) {
	class := string(m.Options.Get(dhcpv4.OptionClassIdentifier))
	switch {
	case strings.HasPrefix(class, classPXE):
	case strings.HasPrefix(class, classHTTP):
		f.HTTP = true
	default:
		return pxe.Firmware{}, false
	}
	f.Arch = archOf(m, class)
	f.IPXE = isIPXE(m) && !f.HTTP
	return f, true
}

func archOf(m *dhcpv4.DHCPv4, class string) pxe.Arch {
	if raw := m.Options.Get(dhcpv4.OptionClientSystemArchitectureType); len(raw) >= 2 {
		return pxe.Arch(binary.BigEndian.Uint16(raw))
	}
	// "PXEClient:Arch:00007:UNDI:003016", PXE 2.1 table 2-1.
	if parts := strings.Split(class, ":"); len(parts) >= 3 && parts[1] == "Arch" {
		if n, err := strconv.ParseUint(parts[2], 10, 16); err == nil {
			return pxe.Arch(n)
		}
	}
	return pxe.ArchBIOS
}

// isIPXE tells whether m comes from an iPXE that can load by HTTP.
func isIPXE(m *dhcpv4.DHCPv4) bool {
	encapsulated := m.Options.Get(optionIPXE)
	user := m.Options.Get(dhcpv4.OptionUserClassInformation)
	// iPXE sends its name plainly, RFC 3004 wants a length before it.
	named := string(user) == "iPXE" || string(user) == "\x04iPXE"
	if !named && encapsulated == nil {
		return false
	}
	if len(encapsulated) == 0 {
		return true
	}
	features := dhcpv4.Options{}
	if err := features.FromBytes(encapsulated); err != nil {
		return named
	}
	return features.Has(dhcpv4.GenericOptionCode(ipxeHTTP))
}
