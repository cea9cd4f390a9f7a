package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
)

// BootEntryPath is where a tree keeps its boot entry.
const BootEntryPath = "/usr/lib/sidus/boot.json"

const maxBootEntry = 64 << 10

// BootEntry says how a tree is booted.
type BootEntry struct {
	// Protocol is the version that the tree's initramfs hook and agent speak;
	// 0 if the tree has no entry of its own and its kernel was found.
	Protocol int `json:"protocol"`
	// Kernel and Initrd are absolute paths in the tree.
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	// CmdLine holds further words for the kernel's command line.
	CmdLine string `json:"cmdline,omitempty"`
}

// Validate checks the form of e. The error wraps ErrMalformed, or ErrTooNew.
func (e BootEntry) Validate() error {
	switch {
	case e.Protocol > Version:
		return fmt.Errorf("boot entry: %w: it has protocol %d, this server has %d", ErrTooNew, e.Protocol, Version)
	case e.Protocol < 0:
		return fmt.Errorf("boot entry: %w: protocol %d", ErrMalformed, e.Protocol)
	}
	for _, p := range []string{e.Kernel, e.Initrd} {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" || hasControl(p) {
			return fmt.Errorf("boot entry: %w: %.80q is not a clean absolute path", ErrMalformed, p)
		}
	}
	if _, err := extraWords(e.CmdLine); err != nil {
		return fmt.Errorf("boot entry: %w", err)
	}
	return nil
}

// ParseBootEntry decodes the JSON form of a boot entry. Unknown keys are
// refused. The error wraps ErrMalformed, or ErrTooNew.
func ParseBootEntry(data []byte) (BootEntry, error) {
	if err := checkVersion("boot entry", data); err != nil {
		return BootEntry{}, err
	}
	var e BootEntry
	if err := decodeStrict(data, &e); err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w: %v", ErrMalformed, err)
	}
	return e, e.Validate()
}

// ReadBootEntry returns the boot entry of the tree at root, an absolute path
// on this machine. A tree without one (it was imported) boots the newest
// /boot/vmlinuz-<version> that has its initrd.img-<version> or
// initramfs-<version>.img. Symbolic links are followed inside the tree only.
//
// The error wraps ErrNoBootEntry if there is nothing to boot (the entry names
// a file that is missing, or is empty, or is not a regular file),
// ErrMalformed if the entry cannot be understood, and ErrTooNew if it is of a
// newer protocol.
func ReadBootEntry(root string) (BootEntry, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w", err)
	}
	defer r.Close()

	e, err := readEntry(r)
	if errors.Is(err, fs.ErrNotExist) {
		return findEntry(r)
	}
	if err != nil {
		return BootEntry{}, err
	}
	for _, p := range []string{e.Kernel, e.Initrd} {
		if err := checkFile(r, p); err != nil {
			return BootEntry{}, fmt.Errorf("boot entry: %w: %w", ErrNoBootEntry, err)
		}
	}
	return e, nil
}

// Open opens a file that e names in the tree at root, for reading. Symbolic
// links are followed inside the tree only.
func (e BootEntry) Open(root string, f BootFile) (*os.File, error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	name := e.Kernel
	if f == Initrd {
		name = e.Initrd
	}
	if err := checkFile(r, name); err != nil {
		return nil, err
	}
	return r.Open(inRoot(name))
}

func readEntry(r *os.Root) (BootEntry, error) {
	// Checked before the file is opened: opening a FIFO would wait for ever.
	if info, err := r.Stat(inRoot(BootEntryPath)); err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w", err)
	} else if !info.Mode().IsRegular() {
		return BootEntry{}, fmt.Errorf("boot entry: %w: %s is not a regular file", ErrMalformed, BootEntryPath)
	}
	f, err := r.Open(inRoot(BootEntryPath))
	if err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBootEntry+1))
	if err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w", err)
	}
	if len(data) > maxBootEntry {
		return BootEntry{}, fmt.Errorf("boot entry: %w: %w: over %d bytes", ErrMalformed, ErrTooLarge, maxBootEntry)
	}
	return ParseBootEntry(data)
}

func findEntry(r *os.Root) (BootEntry, error) {
	dir, err := r.Open("boot")
	if err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w: neither %s nor /boot can be read: %v", ErrNoBootEntry, BootEntryPath, err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return BootEntry{}, fmt.Errorf("boot entry: %w", err)
	}
	var best BootEntry
	var bestVersion string
	for _, name := range names {
		version, ok := strings.CutPrefix(name, "vmlinuz-")
		if !ok || version == "" || hasControl(version) {
			continue
		}
		if best.Kernel != "" && compareVersions(version, bestVersion) <= 0 {
			continue
		}
		kernel := "/boot/" + name
		if checkFile(r, kernel) != nil {
			continue
		}
		for _, initrd := range []string{"/boot/initrd.img-" + version, "/boot/initramfs-" + version + ".img"} {
			if checkFile(r, initrd) == nil {
				best, bestVersion = BootEntry{Kernel: kernel, Initrd: initrd}, version
				break
			}
		}
	}
	if best.Kernel == "" {
		return BootEntry{}, fmt.Errorf("boot entry: %w: there is no %s, and no /boot/vmlinuz-* has its initrd", ErrNoBootEntry, BootEntryPath)
	}
	return best, nil
}

func checkFile(r *os.Root, name string) error {
	info, err := r.Stat(inRoot(name))
	switch {
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", name)
	case info.Size() == 0:
		return fmt.Errorf("%s is empty", name)
	}
	return nil
}

func inRoot(p string) string { return strings.TrimPrefix(p, "/") }

// compareVersions orders kernel versions as people do: runs of digits by
// value, the rest by bytes, and "-rc" before the version itself.
func compareVersions(a, b string) int {
	a, b = strings.ReplaceAll(a, "-rc", "~rc"), strings.ReplaceAll(b, "-rc", "~rc")
	for a != "" || b != "" {
		ta, tb := leading(a, false), leading(b, false)
		for i := 0; i < len(ta) || i < len(tb); i++ {
			if d := weight(ta, i) - weight(tb, i); d != 0 {
				return d
			}
		}
		a, b = a[len(ta):], b[len(tb):]
		da, db := leading(a, true), leading(b, true)
		na, nb := strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
		if d := len(na) - len(nb); d != 0 {
			return d
		}
		if d := strings.Compare(na, nb); d != 0 {
			return d
		}
		a, b = a[len(da):], b[len(db):]
	}
	return 0
}

func leading(s string, digits bool) string {
	for i := range len(s) {
		if (s[i] >= '0' && s[i] <= '9') != digits {
			return s[:i]
		}
	}
	return s
}

func weight(s string, i int) int {
	switch {
	case i >= len(s):
		return 0
	case s[i] == '~':
		return -1
	}
	return int(s[i])
}

func hasControl(s string) bool {
	return strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func decodeStrict(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one JSON value")
	}
	return nil
}

// checkVersion looks at the version first, because a newer protocol may have
// keys that this one would refuse as unknown.
func checkVersion(what string, data []byte) error {
	var v struct {
		Protocol *int `json:"protocol"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return fmt.Errorf("%s: %w: %v", what, ErrMalformed, err)
	}
	if v.Protocol == nil || *v.Protocol < 1 {
		return fmt.Errorf("%s: %w: it has no protocol version", what, ErrMalformed)
	}
	if *v.Protocol > Version {
		return fmt.Errorf("%s: %w: it has protocol %d, the newest known is %d", what, ErrTooNew, *v.Protocol, Version)
	}
	return nil
}
