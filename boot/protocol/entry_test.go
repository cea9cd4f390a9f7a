package protocol

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// tree makes a tree: a name that ends in / is a directory, "a -> b" a
// symbolic link, any other a file with the content after the first space.
func tree(t *testing.T, entries ...string) string {
	t.Helper()
	root := t.TempDir()
	for _, e := range entries {
		name, content, _ := strings.Cut(e, " ")
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			switch target, link := strings.CutPrefix(content, "-> "); {
			case link:
				err = os.Symlink(target, path)
			case strings.HasSuffix(e, "/"):
				err = os.MkdirAll(path, 0o755)
			default:
				err = os.WriteFile(path, []byte(content), 0o644)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const entryFile = "usr/lib/sidus/boot.json"

func TestReadBootEntry(t *testing.T) {
	for name, c := range map[string]struct {
		tree []string
		want BootEntry
		err  error
	}{
		"entry": {
			tree: []string{entryFile + ` {"protocol":1,"kernel":"/boot/k","initrd":"/boot/i","cmdline":"quiet"}`, "boot/k k", "boot/i i"},
			want: BootEntry{1, "/boot/k", "/boot/i", "quiet"},
		},
		"entry wins over what is found": {
			tree: []string{entryFile + ` {"protocol":1,"kernel":"/boot/k","initrd":"/boot/i"}`, "boot/k k", "boot/i i", "boot/vmlinuz-9 k", "boot/initrd.img-9 i"},
			want: BootEntry{1, "/boot/k", "/boot/i", ""},
		},
		"links inside": {
			tree: []string{entryFile + ` {"protocol":1,"kernel":"/vmlinuz","initrd":"/boot/i"}`, "vmlinuz -> boot/k", "boot/k k", "boot/i i"},
			want: BootEntry{1, "/vmlinuz", "/boot/i", ""},
		},
		"newest": {
			tree: []string{"boot/vmlinuz-6.1.0-9-amd64 k", "boot/initrd.img-6.1.0-9-amd64 i", "boot/vmlinuz-6.1.0-10-amd64 k", "boot/initrd.img-6.1.0-10-amd64 i", "boot/vmlinuz-6.10-rc1 k"},
			want: BootEntry{Kernel: "/boot/vmlinuz-6.1.0-10-amd64", Initrd: "/boot/initrd.img-6.1.0-10-amd64"},
		},
		"dracut": {
			tree: []string{"boot/vmlinuz-6.12 k", "boot/initramfs-6.12.img i", "boot/vmlinuz-6.12-rc3 k", "boot/initramfs-6.12-rc3.img i"},
			want: BootEntry{Kernel: "/boot/vmlinuz-6.12", Initrd: "/boot/initramfs-6.12.img"},
		},
		"no boot":              {tree: []string{"etc/"}, err: ErrNoBootEntry},
		"no initrd":            {tree: []string{"boot/vmlinuz-6 k"}, err: ErrNoBootEntry},
		"empty initrd":         {tree: []string{"boot/vmlinuz-6 k", "boot/initrd.img-6"}, err: ErrNoBootEntry},
		"kernel is missing":    {tree: []string{entryFile + ` {"protocol":1,"kernel":"/boot/k","initrd":"/boot/i"}`, "boot/i i"}, err: ErrNoBootEntry},
		"kernel is a folder":   {tree: []string{entryFile + ` {"protocol":1,"kernel":"/boot","initrd":"/boot/i"}`, "boot/i i"}, err: ErrNoBootEntry},
		"link escapes":         {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/boot/i"}`, "k -> /etc/hostname", "boot/i i"}, err: ErrNoBootEntry},
		"link climbs":          {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/boot/i"}`, "k -> ../../../../../etc/hostname", "boot/i i"}, err: ErrNoBootEntry},
		"not JSON":             {tree: []string{entryFile + ` kernel=/boot/k`}, err: ErrMalformed},
		"two values":           {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/i"} 1`}, err: ErrMalformed},
		"unknown key":          {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/i","root":"x"}`}, err: ErrMalformed},
		"no version":           {tree: []string{entryFile + ` {"kernel":"/k","initrd":"/i"}`}, err: ErrMalformed},
		"newer":                {tree: []string{entryFile + ` {"protocol":2,"kernels":[]}`}, err: ErrTooNew},
		"path with ..":         {tree: []string{entryFile + ` {"protocol":1,"kernel":"/../k","initrd":"/i"}`}, err: ErrMalformed},
		"relative path":        {tree: []string{entryFile + ` {"protocol":1,"kernel":"k","initrd":"/i"}`}, err: ErrMalformed},
		"words that are ours":  {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/i","cmdline":"sidus.session=1"}`}, err: ErrMalformed},
		"newline in the words": {tree: []string{entryFile + ` {"protocol":1,"kernel":"/k","initrd":"/i","cmdline":"a\nb"}`}, err: ErrMalformed},
		"huge":                 {tree: []string{entryFile + ` {"protocol":1,"cmdline":"` + strings.Repeat("a", maxBootEntry) + `"}`}, err: ErrTooLarge},
		"entry is a folder":    {tree: []string{entryFile + "/"}, err: ErrMalformed},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ReadBootEntry(tree(t, c.tree...))
			if !errors.Is(err, c.err) || (err == nil && got != c.want) {
				t.Errorf("got %+v, %v; want %+v, %v", got, err, c.want, c.err)
			}
		})
	}
}

// A FIFO in the place of a file must not be waited for.
func TestReadBootEntryFIFO(t *testing.T) {
	root := tree(t, "boot/vmlinuz-6 k", "usr/lib/sidus/")
	for _, name := range []string{entryFile, "boot/initrd.img-6"} {
		if err := syscall.Mkfifo(filepath.Join(root, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := ReadBootEntry(root); !errors.Is(err, ErrMalformed) {
		t.Errorf("got %v", err)
	}
	if err := os.Remove(filepath.Join(root, entryFile)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadBootEntry(root); !errors.Is(err, ErrNoBootEntry) {
		t.Errorf("got %v", err)
	}
}

func TestOpenBootFile(t *testing.T) {
	root := tree(t, "boot/vmlinuz-6 kernel", "boot/initrd.img-6 initrd")
	e, err := ReadBootEntry(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []BootFile{Kernel, Initrd} {
		file, err := e.Open(root, f)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 10)
		n, _ := file.Read(buf)
		file.Close()
		if string(buf[:n]) != string(f) {
			t.Errorf("%s holds %q", f, buf[:n])
		}
	}
	if _, err := (BootEntry{Kernel: "/../../etc/hostname"}).Open(root, Kernel); err == nil {
		t.Error("a path that leads out was opened")
	}
}

func TestCompareVersions(t *testing.T) {
	rising := []string{"5.10.0-9", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.9", "6.10-rc1", "6.10-rc2", "6.10", "6.10.1", "10.0"}
	for i, a := range rising {
		for j, b := range rising {
			got := compareVersions(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("%s and %s compare as %d", a, b, got)
			}
		}
	}
}

func FuzzParseBootEntry(f *testing.F) {
	f.Add([]byte(`{"protocol":1,"kernel":"/boot/k","initrd":"/boot/i","cmdline":"quiet"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := ParseBootEntry(data); err == nil && e.Validate() != nil {
			t.Fatalf("%q was taken as %+v, which is not valid", data, e)
		}
	})
}
