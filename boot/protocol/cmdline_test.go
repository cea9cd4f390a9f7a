package protocol

import (
	"errors"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

func example() CommandLine {
	return CommandLine{
		Session:    "00112233445566778899aabbccddeeff",
		Snapshot:   "ffeeddccbbaa99887766554433221100",
		NFS:        netip.MustParseAddrPort("10.0.0.1:2049"),
		HTTP:       "http://10.0.0.1:8080",
		MachineID:  "0123456789abcdef0123456789abcdef",
		Hostname:   "node-1",
		NFSOptions: []string{"rsize=1048576", "nocto"},
		BootMAC:    net.HardwareAddr{0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x0f},
		Extra:      `quiet console=ttyS0,115200 dyndbg="file a.c +p"`,
	}
}

const rendered = `boot=sidus sidus.protocol=1 sidus.session=00112233445566778899aabbccddeeff ` +
	`sidus.snapshot=ffeeddccbbaa99887766554433221100 sidus.nfs=10.0.0.1:2049:/snapshot/ffeeddccbbaa99887766554433221100 ` +
	`sidus.http=http://10.0.0.1:8080 sidus.machine-id=0123456789abcdef0123456789abcdef sidus.hostname=node-1 ` +
	`sidus.nfsopts=rsize=1048576,nocto BOOTIF=01-aa-bb-cc-dd-ee-0f quiet console=ttyS0,115200 dyndbg="file a.c +p"`

func TestCommandLine(t *testing.T) {
	got, err := example().Render()
	if err != nil || got != rendered {
		t.Fatalf("rendered %q, %v", got, err)
	}
	// Boot loaders put words before and after ours, PXELINUX a second BOOTIF.
	back, err := ParseCommandLine("BOOT_IMAGE=http://10.0.0.1:8080/kernel " + got + " initrd=x BOOTIF=01-00-00-00-00-00-01\n")
	if err != nil {
		t.Fatal(err)
	}
	want := example()
	want.Protocol = 1
	want.NFSPath = "/snapshot/ffeeddccbbaa99887766554433221100"
	want.Extra = "BOOT_IMAGE=http://10.0.0.1:8080/kernel " + want.Extra + " initrd=x"
	if !reflect.DeepEqual(back, want) {
		t.Errorf("read back %+v\nwant %+v", back, want)
	}
}

func TestCommandLineIPv6(t *testing.T) {
	c := example()
	c.NFS = netip.MustParseAddrPort("[2001:db8::1]:2049")
	line, err := c.Render()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseCommandLine(line)
	if err != nil || back.NFS != c.NFS {
		t.Errorf("read back %v, %v", back.NFS, err)
	}
}

func TestCommandLineRefused(t *testing.T) {
	for name, change := range map[string]func(*CommandLine){
		"no session":         func(c *CommandLine) { c.Session = "" },
		"upper-case session": func(c *CommandLine) { c.Session = SessionID(strings.ToUpper(string(c.Session))) },
		"bad snapshot":       func(c *CommandLine) { c.Snapshot = "x" },
		"no NFS":             func(c *CommandLine) { c.NFS = netip.AddrPort{} },
		"space in path":      func(c *CommandLine) { c.NFSPath = "/a b" },
		"newline in path":    func(c *CommandLine) { c.NFSPath = "/a\nb" },
		"relative path":      func(c *CommandLine) { c.NFSPath = "a" },
		"https":              func(c *CommandLine) { c.HTTP = "https://10.0.0.1" },
		"quote in URL":       func(c *CommandLine) { c.HTTP = `http://10.0.0.1/"` },
		"bad machine-id":     func(c *CommandLine) { c.MachineID = "1" },
		"bad hostname":       func(c *CommandLine) { c.Hostname = "a b" },
		"comma in option":    func(c *CommandLine) { c.NFSOptions = []string{"a,b"} },
		"empty option":       func(c *CommandLine) { c.NFSOptions = []string{""} },
		"no MAC":             func(c *CommandLine) { c.BootMAC = nil },
		"our word":           func(c *CommandLine) { c.Extra = "quiet sidus.session=1" },
		"our quoted word":    func(c *CommandLine) { c.Extra = `"sidus.session=1"` },
		"boot":               func(c *CommandLine) { c.Extra = "boot=nfs" },
		"BOOTIF":             func(c *CommandLine) { c.Extra = "BOOTIF=x" },
		"open quote":         func(c *CommandLine) { c.Extra = `a="b` },
		"newline":            func(c *CommandLine) { c.Extra = "a\nb" },
		"for init":           func(c *CommandLine) { c.Extra = "a -- b" },
		"too long":           func(c *CommandLine) { c.Extra = strings.Repeat("a ", MaxCommandLine/2) },
	} {
		c := example()
		change(&c)
		if line, err := c.Render(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got %q, %v", name, line, err)
		}
	}
}

func TestParseCommandLineRefused(t *testing.T) {
	for line, want := range map[string]error{
		"":                         ErrNotSidus,
		"quiet root=/dev/sda1":     ErrNotSidus,
		rendered + ` a="`:          ErrMalformed,
		rendered + " sidus.nfs=x":  ErrMalformed,
		"sidus.protocol=1":         ErrMalformed,
		"sidus.protocol=x":         ErrMalformed,
		"sidus.protocol=0":         ErrMalformed,
		"sidus.protocol=2":         ErrTooNew,
		"sidus.protocol=-1 sidus.": ErrMalformed,
		strings.Replace(rendered, "BOOTIF=01-aa", "BOOTIF=aa", 1): ErrMalformed,
	} {
		if c, err := ParseCommandLine(line); !errors.Is(err, want) {
			t.Errorf("%q: got %+v, %v", line, c, err)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	f.Add(rendered)
	f.Add("sidus.protocol=1 sidus.nfs=[::1%a]:1:/")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseCommandLine(line)
		if err != nil || CheckExtra(c.Extra) != nil {
			return
		}
		again, err := c.Render()
		if errors.Is(err, ErrTooLarge) {
			return
		}
		if err != nil {
			t.Fatalf("%q was read as %+v, which cannot be rendered: %v", line, c, err)
		}
		back, err := ParseCommandLine(again)
		if err != nil || !reflect.DeepEqual(back, c) {
			t.Fatalf("%+v came back as %+v, %v", c, back, err)
		}
	})
}
