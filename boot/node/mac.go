package node

import (
	"encoding/hex"
	"fmt"
	"net"
	"strings"
)

// MAC is the hardware address of an Ethernet card.
type MAC [6]byte

// ParseMAC reads a hardware address in any usual notation:
// 52:54:00:ab:cd:ef, 52-54-0-AB-CD-EF, 5254.00ab.cdef, 525400-abcdef,
// 525400abcdef, and PXELINUX's 01-52-54-00-ab-cd-ef. The error wraps
// ErrInvalid; so does that for an address that no card can have (all zero, or
// a group address).
func ParseMAC(text string) (MAC, error) {
	var mac MAC
	digits, ok := macDigits(strings.TrimSpace(text))
	if !ok {
		return MAC{}, fmt.Errorf("hardware address %.40q: %w: it is written like 52:54:00:ab:cd:ef", text, ErrInvalid)
	}
	if _, err := hex.Decode(mac[:], []byte(digits)); err != nil {
		return MAC{}, fmt.Errorf("hardware address %.40q: %w: it has other characters than hexadecimal digits", text, ErrInvalid)
	}
	return mac, mac.check()
}

// MACOf is the MAC of hw. The error wraps ErrInvalid.
func MACOf(hw net.HardwareAddr) (MAC, error) {
	if len(hw) != 6 {
		return MAC{}, fmt.Errorf("hardware address %.40q: %w: it has %d bytes, an Ethernet card's has 6", hw.String(), ErrInvalid, len(hw))
	}
	mac := MAC(hw)
	return mac, mac.check()
}

func (m MAC) check() error {
	switch {
	case m == MAC{}:
		return fmt.Errorf("hardware address %s: %w: no card has it", m, ErrInvalid)
	case m[0]&1 != 0:
		return fmt.Errorf("hardware address %s: %w: it is a group address, no card has it", m, ErrInvalid)
	}
	return nil
}

// macDigits returns the twelve digits of an address; whether they are
// hexadecimal is not looked at.
func macDigits(text string) (string, bool) {
	separator := strings.IndexAny(text, ":-.")
	if separator < 0 {
		return text, len(text) == 12
	}
	groups := strings.Split(text, text[separator:separator+1])
	if len(groups) == 7 && groups[0] == "01" { // PXELINUX puts the hardware type before it
		groups = groups[1:]
	}
	width, least := 12/len(groups), 12/len(groups)
	switch len(groups) {
	case 6:
		least = 1 // 0:1b:21:…, as Solaris and BSD write it
	case 2, 3:
	default:
		return "", false
	}
	var digits strings.Builder
	for _, group := range groups {
		if len(group) < least || len(group) > width {
			return "", false
		}
		digits.WriteString(strings.Repeat("0", width-len(group)))
		digits.WriteString(group)
	}
	return digits.String(), true
}

// String is the address in the one notation that is kept and shown:
// 52:54:00:ab:cd:ef.
func (m MAC) String() string { return m.HardwareAddr().String() }

// HardwareAddr is the address as package net has it.
func (m MAC) HardwareAddr() net.HardwareAddr { return net.HardwareAddr(m[:]) }

// MarshalText returns String.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText is ParseMAC.
func (m *MAC) UnmarshalText(text []byte) error {
	mac, err := ParseMAC(string(text))
	if err == nil {
		*m = mac
	}
	return err
}
