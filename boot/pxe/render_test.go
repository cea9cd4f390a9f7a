package pxe

import (
	"bytes"
	"errors"
	"flag"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
}

func example() Config {
	c := Config{
		MAC:         net.HardwareAddr{0x52, 0x54, 0, 0xab, 0xcd, 0xef},
		Node:        "node1",
		Title:       "debian@14",
		Session:     "00112233445566778899aabbccddeeff",
		Snapshot:    "ffeeddccbbaa99887766554433221100",
		CommandLine: `boot=sidus sidus.protocol=1 quiet`,
	}
	c.SetFiles("http://10.0.0.1:8080")
	return c
}

var loaders = []Loader{PXELINUX, LPXELINUX, IPXE, GRUB}

func TestRender(t *testing.T) {
	for _, l := range loaders {
		c := example()
		if l != GRUB {
			c.CommandLine += ` dyndbg="file a.c +p"`
		}
		text, err := Render(l, c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, string(l)+".golden", text)
	}
	c := example()
	c.ScriptURL, c.Node, c.Title = "", "", ""
	text, err := Render(IPXE, c)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ipxe-no-script.golden", text)
}

func TestRenderNothing(t *testing.T) {
	for _, l := range loaders {
		for then, n := range map[string]*Nothing{
			"local": {Reason: "channel gpu points to no snapshot", Wait: 5 * time.Second},
			"retry": AsNothing(errors.New("disk I/O error")),
			// The reason is people's text, and may hold anything.
			"hostile": {Reason: "a\nKERNEL evil ${net0/ip} || shell; 'x' \"y\" `z` \x1b[2J é", Then: ThenRetry},
		} {
			again := FileName(l, example().MAC)
			if l == IPXE {
				again = ScriptURL("http://10.0.0.1:8080", example().MAC)
			}
			text, err := RenderNothing(l, "52:54:00:ab:cd:ef", again, n)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, string(l)+"-"+then+".golden", text)
		}
	}
	text, err := RenderNothing(IPXE, "x", "", &Nothing{Reason: "y", Then: ThenRetry})
	if err != nil || !bytes.Contains(text, []byte("\nexit\n")) {
		t.Errorf("without an address to ask again: %s, %v", text, err)
	}
}

func TestRenderWho(t *testing.T) {
	text, err := RenderWho("http://10.0.0.1:8080")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "ipxe-who.golden", text)
	if _, err := RenderWho("http://10.0.0.1/\n"); !errors.Is(err, ErrUnrenderable) {
		t.Errorf("got %v", err)
	}
}

func TestRenderRefused(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"newline in node":         func(c *Config) { c.Node = "a\nb" },
		"newline in title":        func(c *Config) { c.Title = "a\nb" },
		"newline in command line": func(c *Config) { c.CommandLine = "a\nb" },
		"return in command line":  func(c *Config) { c.CommandLine = "a\rb" },
		"newline in URL":          func(c *Config) { c.KernelURL += "\nshell" },
		"newline in path":         func(c *Config) { c.InitrdPath += "\nshell" },
		"escape in script URL":    func(c *Config) { c.ScriptURL += "\x1b" },
		"no MAC":                  func(c *Config) { c.MAC = nil },
		"long command line":       func(c *Config) { c.CommandLine = strings.Repeat("a", 3000) },
	} {
		c := example()
		change(&c)
		for _, l := range loaders {
			if text, err := Render(l, c); !errors.Is(err, ErrUnrenderable) {
				t.Errorf("%s, %s: got %s, %v", l, name, text, err)
			}
		}
	}
	for line, l := range map[string]Loader{"a=${net0/mac}": IPXE, "a || shell": IPXE, "a ; b": IPXE, "it's": GRUB, `a="b c"`: GRUB, `a\\b`: GRUB, "x": "lilo"} {
		c := example()
		c.CommandLine = line
		if text, err := Render(l, c); !errors.Is(err, ErrUnrenderable) {
			t.Errorf("%s, %q: got %s, %v", l, line, text, err)
		}
	}
	c := example()
	c.KernelURL = "ftp://x/y"
	if _, err := Render(IPXE, c); !errors.Is(err, ErrUnrenderable) {
		t.Errorf("an address that is not HTTP: %v", err)
	}
}

// FuzzRender looks for values that add a line to what is rendered.
func FuzzRender(f *testing.F) {
	f.Add("node1", "debian@14", "quiet", "reason")
	f.Fuzz(func(t *testing.T, node, title, line, reason string) {
		for _, l := range loaders {
			plain, err := Render(l, example())
			if err != nil {
				t.Fatal(err)
			}
			c := example()
			c.Node, c.Title, c.CommandLine = node, title, line
			if text, err := Render(l, c); err == nil && lines(text) != lines(plain) {
				t.Errorf("%s:\n%q", l, text)
			}
			text, err := RenderNothing(l, "x", "", &Nothing{Reason: reason})
			if err != nil {
				t.Fatal(err)
			}
			if other, _ := RenderNothing(l, "x", "", &Nothing{}); lines(text) != lines(other) {
				t.Errorf("%s:\n%q", l, text)
			}
		}
	})
}

func lines(text []byte) int { return bytes.Count(text, []byte("\n")) + bytes.Count(text, []byte("\r")) }

func TestBootFile(t *testing.T) {
	mac := example().MAC
	const base = "http://10.0.0.1:8080"
	script := base + "/v1/ipxe/52-54-00-ab-cd-ef"
	for name, c := range map[string]struct {
		loaders  Loaders
		firmware Firmware
		base     string
		want     string
	}{
		"BIOS":               {firmware: Firmware{Arch: 0}, base: base, want: "lpxelinux.0"},
		"BIOS, other":        {loaders: Loaders{BIOS: "pxelinux.0"}, firmware: Firmware{Arch: 0}, base: base, want: "pxelinux.0"},
		"EFI BC":             {firmware: Firmware{Arch: 7}, base: base, want: "snponly.efi"},
		"EFI x64":            {firmware: Firmware{Arch: 9}, base: base, want: "snponly.efi"},
		"EFI, other":         {loaders: Loaders{EFI: "ipxe.efi"}, firmware: Firmware{Arch: 9}, want: "ipxe.efi"},
		"iPXE, BIOS":         {firmware: Firmware{Arch: 0, IPXE: true}, base: base, want: script},
		"iPXE, EFI":          {firmware: Firmware{Arch: 7, IPXE: true}, base: base, want: script},
		"iPXE, ARM":          {firmware: Firmware{Arch: 11, IPXE: true}, base: base, want: script},
		"iPXE, no HTTP":      {firmware: Firmware{Arch: 0, IPXE: true}, want: "lpxelinux.0"},
		"iPXE, no scripts":   {loaders: Loaders{NoScript: true}, firmware: Firmware{Arch: 0, IPXE: true}, base: base, want: "lpxelinux.0"},
		"HTTP boot":          {firmware: Firmware{Arch: 16, HTTP: true}, base: base, want: base + "/v1/loader/snponly.efi"},
		"HTTP boot, no HTTP": {firmware: Firmware{Arch: 16, HTTP: true}},
		"EFI IA32":           {firmware: Firmware{Arch: 6}, base: base},
		"ARM64":              {firmware: Firmware{Arch: 11}, base: base},
		"unknown":            {firmware: Firmware{Arch: 65535}, base: base},
	} {
		got, ok := c.loaders.BootFile(c.firmware, c.base, mac)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s: got %q, %v; want %q", name, got, ok, c.want)
		}
	}
}

func TestLoaderDirs(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	for path, content := range map[string]string{a + "/one": "a", b + "/one": "b", b + "/two": "b"} {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(a+"/dir", 0o755); err != nil {
		t.Fatal(err)
	}
	for link, to := range map[string]string{a + "/out": "/etc/hostname", a + "/up": "../../../../../etc/hostname", a + "/in": "one"} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	dirs := LoaderDirs{a, "/does/not/exist", b}
	for name, want := range map[string]string{
		"one": "a", "two": "b", "in": "a",
		"three": "", "": "", ".": "", "..": "", "dir": "", "dir/x": "", "/one": "", "../one": "", "out": "", "up": "",
	} {
		f, err := dirs.Open(name)
		if (err == nil) != (want != "") {
			t.Errorf("%q: %v", name, err)
		}
		if err != nil {
			continue
		}
		got := make([]byte, 1)
		_, _ = f.Read(got)
		f.Close()
		if string(got) != want {
			t.Errorf("%q holds %q", name, got)
		}
	}
}
