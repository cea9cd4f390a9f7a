package node

import (
	"errors"
	"net"
	"testing"
)

func TestParseMAC(t *testing.T) {
	want := MAC{0x52, 0x54, 0x00, 0xab, 0xcd, 0x0f}
	for _, text := range []string{
		"52:54:00:ab:cd:0f", "52:54:00:AB:CD:0F", "52-54-00-ab-cd-0f", "5254.00ab.cd0f", "5254:00ab:cd0f", "525400-abcd0f",
		"525400abcd0f", "52:54:0:ab:cd:f", "01-52-54-00-ab-cd-0f", "  52:54:00:ab:cd:0f\n",
	} {
		if got, err := ParseMAC(text); err != nil || got != want {
			t.Errorf("ParseMAC(%q) = %s, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "52", "52:54:00:ab:cd", "52:54:00:ab:cd:0f:11", "52:54-00:ab:cd:0f", "5g:54:00:ab:cd:0f", "52:54:00:ab:cd:0f0",
		"0152:5400:abcd:0f00", "00:00:00:00:00:00", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "::::::", "02-52-54-00-ab-cd-0f",
		"52 54 00 ab cd 0f", "525400abcd0f00", "+2:54:00:ab:cd:0f",
	} {
		if got, err := ParseMAC(text); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseMAC(%q) = %s, %v; want ErrInvalid", text, got, err)
		}
	}
}

func TestMachineID(t *testing.T) {
	key := [32]byte{1, 2, 3}
	// Golden: a node's machine-id may never change.
	if got, want := MachineID(key, mac1), "5872e7d60ce6469898d945b0d8aa52bd"; got != want {
		t.Errorf("MachineID = %s, want %s", got, want)
	}
	if MachineID(key, mac1) == MachineID(key, mac2) || MachineID(key, mac1) == MachineID([32]byte{}, mac1) {
		t.Error("two nodes or two sites share a machine-id")
	}
}

func FuzzParseMAC(f *testing.F) {
	for _, text := range []string{"52:54:00:ab:cd:0f", "525400abcd0f", "01-52-54-00-ab-cd-0f", "5254.00ab.cd0f", "", ":::::", "0:1:2:3:4:5"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		mac, err := ParseMAC(text)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		again, err := ParseMAC(mac.String())
		if err != nil || again != mac {
			t.Fatalf("%q: %s is read as %s, %v", text, mac, again, err)
		}
		if std, err := net.ParseMAC(text); err == nil && len(std) == 6 && MAC(std) != mac {
			t.Fatalf("%q: %s, package net reads %s", text, mac, std)
		}
	})
}
