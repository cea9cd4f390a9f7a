package index

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"sidus/image/store"
)

// needRoot skips tests that make device nodes or mounts; under CI they fail.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test must run as root")
		}
		t.Skip("SKIPPED: needs root (device nodes, mounts)")
	}
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, stderr.String())
	}
	return string(out)
}

// makeTree makes a tree with everything that a file system can hold.
func makeTree(t *testing.T) string {
	t.Helper()
	needRoot(t)
	root := filepath.Join(t.TempDir(), "tree")
	script := `
set -e
umask 022
mkdir -p "$1" && cd "$1"
mkdir -p a a-b a/x a+ usr/bin empty "$(printf 'name\nwith\377bytes')"
echo one > a/b; echo two > a-b/c; echo three > a0; echo four > 'a.d'
echo x > a/x/y
ln a/b zz-hard; ln a/b 'a!hard'
ln -s /etc/passwd link; ln -s "$(head -c 900 /dev/zero | tr '\0' x)" longlink
mknod null c 1 3; mknod blk b 259 70000; mkfifo fifo
python3 -c 'import socket; s=socket.socket(socket.AF_UNIX); s.bind("sock")'
echo su > usr/bin/su; chmod 4755 usr/bin/su; chmod 2750 usr/bin; chmod 1777 empty
chown 1000:1001 a0; chown -h 12:13 link
truncate -s 5G sparse; echo tail >> sparse
touch -d '2001-02-03 04:05:06.123456789' a0 a; touch -h -d '1999-01-01 00:00:00.000000001' link
: > "$(head -c 255 /dev/zero | tr '\0' n)"
echo acl > acl; setfacl -m u:1234:rw,u:33:r,g:55:x acl; setfacl -m u:7:rwx usr
chmod 000 a.d
`
	cmd := exec.Command("bash", "-c", script, "make", root)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("making a tree: %v: %s", err, out)
	}
	return root
}

func buildIndex(t *testing.T, root string) (*Index, string) {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "index")
	digest, err := Build(context.Background(), root, dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	x, err := Open(dst)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = x.Close() })
	if err := x.Verify(); err != nil {
		t.Fatal(err)
	}
	if x.Digest() != digest {
		t.Fatalf("digest %s, Build said %s", x.Digest(), digest)
	}
	return x, dst
}

// walkIndex calls visit for every path that the index's directories lead to.
func walkIndex(x *Index, visit func(path string, id ID)) {
	var down func(path string, id ID)
	down = func(path string, id ID) {
		visit(path, id)
		var a Attr
		x.Attr(id, &a)
		entries := x.Entries(&a)
		for i := range entries.Len() {
			name, child := entries.At(i)
			down(join(path, string(name)), child)
		}
	}
	down("", Root)
}

// TestAgainstFind compares every attribute with what find(1) prints.
func TestAgainstFind(t *testing.T) {
	root := makeTree(t)
	x, _ := buildIndex(t, root)

	got := map[string]string{}
	walkIndex(x, func(path string, id ID) {
		var a Attr
		if !x.Attr(id, &a) {
			t.Fatalf("no attributes of %q", path)
		}
		kind := map[uint32]string{ModeDir: "d", ModeRegular: "f", ModeSymlink: "l", ModeChar: "c",
			ModeBlock: "b", ModeFIFO: "p", ModeSocket: "s"}[a.Mode&ModeType]
		size, links := strconv.FormatUint(a.Size, 10), strconv.FormatUint(uint64(a.Nlink), 10)
		if kind == "d" {
			size, links = "-", "-"
		}
		got[path] = fmt.Sprintf("%s %o %d %d %s %s %d.%09d0 %s", kind, a.Mode&0o7777, a.UID, a.GID, size, links,
			a.Mtime, a.MtimeNsec, x.Target(&a))
	})
	want := map[string]string{}
	for _, line := range strings.Split(run(t, "find", root, "-printf", `%P\t%y %m %U %G %s %n %T@ %l\0`), "\x00") {
		path, attrs, ok := strings.Cut(line, "\t")
		if !ok {
			continue
		}
		f := strings.SplitN(attrs, " ", 8)
		switch f[0] {
		case "d":
			f[4], f[5] = "-", "-"
		case "c", "b", "p", "s":
			f[4] = "0"
		}
		want[path] = strings.Join(f, " ")
	}
	for path, w := range want {
		if got[path] != w {
			t.Errorf("%q:\n got %s\nwant %s", path, got[path], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d paths, find says %d", len(got), len(want))
	}
	for path, dev := range map[string][2]uint32{"null": {1, 3}, "blk": {259, 70000}} {
		var a Attr
		x.Attr(lookup(t, x, path), &a)
		if a.Major != dev[0] || a.Minor != dev[1] {
			t.Errorf("%s: device %d:%d", path, a.Major, a.Minor)
		}
	}
}

// TestFileIDs checks the IDs against sorting all paths with sort(1).
func TestFileIDs(t *testing.T) {
	root := makeTree(t)
	x, _ := buildIndex(t, root)
	var paths []string
	inodes := map[string]string{} // path → inode number
	for _, line := range strings.Split(run(t, "find", root, "-printf", `%P\t%i\0`), "\x00") {
		if path, ino, ok := strings.Cut(line, "\t"); ok {
			paths = append(paths, path)
			inodes[path] = ino
		}
	}
	sort.Strings(paths)
	rank := map[string]int{}
	smallest := map[int]string{}
	for _, path := range paths {
		if _, ok := rank[inodes[path]]; !ok {
			rank[inodes[path]] = len(rank) + 1
			smallest[len(rank)] = path
		}
	}
	walkIndex(x, func(path string, id ID) {
		if want := rank[inodes[path]]; int(id) != want {
			t.Errorf("%q has ID %d, want %d", path, id, want)
		}
		got, err := x.AppendPath(nil, id)
		if err != nil || string(got) != smallest[int(id)] {
			t.Errorf("path of %d is %q (%v), want %q", id, got, err, smallest[int(id)])
		}
		if want := lookup(t, x, filepath.Dir("/" + smallest[int(id)])[1:]); x.Parent(id) != want {
			t.Errorf("parent of %q is %d, want %d", got, x.Parent(id), want)
		}
	})
	if x.Len() != len(rank) {
		t.Errorf("%d inodes, want %d", x.Len(), len(rank))
	}
}

func lookup(t *testing.T, x *Index, path string) ID {
	t.Helper()
	id := Root
	for _, name := range strings.Split(path, "/") {
		if name == "" {
			continue
		}
		var a Attr
		x.Attr(id, &a)
		entries := x.Entries(&a)
		if id = entries.Find([]byte(name)); id == 0 {
			t.Fatalf("no %q", path)
		}
	}
	return id
}

func TestACL(t *testing.T) {
	root := makeTree(t)
	x, _ := buildIndex(t, root)
	for _, path := range []string{"acl", "usr", "a0"} {
		var a Attr
		x.Attr(lookup(t, x, path), &a)
		var got []string
		acl := x.ACL(&a)
		for i := range acl.Len() {
			e := acl.At(i)
			perm := []byte("---")
			for k, c := range "rwx" {
				if e.Perm&(4>>k) != 0 {
					perm[k] = byte(c)
				}
			}
			who := map[uint16]string{ACLUserObj: "user::", ACLUser: fmt.Sprintf("user:%d:", e.ID), ACLGroupObj: "group::",
				ACLGroup: fmt.Sprintf("group:%d:", e.ID), ACLMask: "mask::", ACLOther: "other::"}[e.Tag]
			got = append(got, who+string(perm))
		}
		want := strings.Fields(run(t, "getfacl", "-n", "-p", "-c", "-E", "-s", filepath.Join(root, path)))
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: ACL %q, getfacl says %q", path, got, want)
		}
		if a.HasACL != (len(want) > 0) {
			t.Errorf("%s: HasACL is %v", path, a.HasACL)
		}
	}
}

// TestSameBytesElsewhere compares the index of a tree with those of copies on
// other file systems, where inode numbers and directory orders differ.
func TestSameBytesElsewhere(t *testing.T) {
	root := makeTree(t)
	_, first := buildIndex(t, root)
	want, err := os.ReadFile(first)
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"plain", "tmpfs", "btrfs", "ext4"} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			switch kind {
			case "tmpfs":
				mount(t, "tmpfs", "-t", "tmpfs", "tmpfs", dir)
			case "btrfs", "ext4":
				image := filepath.Join(t.TempDir(), "image")
				run(t, "truncate", "-s", "256M", image)
				run(t, "mkfs."+kind, "-q", image)
				mount(t, kind, "-o", "loop", image, dir)
			}
			copied := filepath.Join(dir, "copy")
			run(t, "cp", "-a", "--sparse=always", root, copied)
			dst := filepath.Join(t.TempDir(), "index")
			if _, err := Build(context.Background(), copied, dst, Options{Workers: 1}); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(dst)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("the index of the copy differs: %d and %d bytes", len(got), len(want))
			}
		})
	}
}

func mount(t *testing.T, what string, args ...string) {
	t.Helper()
	if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
		t.Fatalf("mounting %s: %v: %s", what, err, out)
	}
	dir := args[len(args)-1]
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
}

func TestRefusesOtherFileSystems(t *testing.T) {
	needRoot(t)
	build := func(root string) error {
		_, err := Build(context.Background(), root, filepath.Join(t.TempDir(), "index"), Options{})
		return err
	}
	t.Run("mount", func(t *testing.T) {
		root := t.TempDir()
		dir := filepath.Join(root, "sub", "mnt")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		mount(t, "tmpfs", "-t", "tmpfs", "tmpfs", dir)
		if err := build(root); !errors.Is(err, store.ErrNestedVolume) || !strings.Contains(err.Error(), "/sub/mnt") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("bind mount of the same file system", func(t *testing.T) {
		root, other := t.TempDir(), t.TempDir()
		dir := filepath.Join(root, "mnt")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		mount(t, "bind", "--bind", other, dir)
		if err := build(root); !errors.Is(err, store.ErrNestedVolume) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("subvolume", func(t *testing.T) {
		dir, image := t.TempDir(), filepath.Join(t.TempDir(), "image")
		run(t, "truncate", "-s", "256M", image)
		run(t, "mkfs.btrfs", "-q", image)
		mount(t, "btrfs", "-o", "loop", image, dir)
		run(t, "btrfs", "subvolume", "create", dir+"/vol")
		run(t, "btrfs", "subvolume", "create", dir+"/vol/nested")
		run(t, "btrfs", "subvolume", "snapshot", "-r", dir+"/vol", dir+"/snap")
		for _, root := range []string{dir + "/vol", dir + "/snap"} {
			if err := build(root); !errors.Is(err, store.ErrNestedVolume) || !strings.Contains(err.Error(), "/nested") {
				t.Errorf("%s: got %v", root, err)
			}
		}
	})
}

func TestLongPaths(t *testing.T) {
	root := t.TempDir()
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 200)
	for range 60 { // a path of 12,000 bytes
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_ = unix.Close(fd)
		fd = next
	}
	file, err := unix.Openat(fd, "file", unix.O_CREAT|unix.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = unix.Write(file, []byte("deep"))
	_ = unix.Close(file)
	_ = unix.Close(fd)

	x, _ := buildIndex(t, root)
	path, err := x.AppendPath(nil, ID(x.Len()))
	if err != nil || len(path) != 60*201+4 {
		t.Fatalf("path of %d bytes, %v", len(path), err)
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(dir) }()
	file, err = OpenAt(dir, path, unix.O_RDONLY, false)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(file) }()
	buf := make([]byte, 10)
	if n, err := unix.Read(file, buf); err != nil || string(buf[:n]) != "deep" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
}

func TestWrittenAtomically(t *testing.T) {
	root := t.TempDir()
	dst := filepath.Join(t.TempDir(), "index")
	if err := os.WriteFile(dst, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := Build(ctx, root, dst, Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := Build(context.Background(), root+"/missing", dst, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v", err)
	}
	if text, _ := os.ReadFile(dst); string(text) != "old" {
		t.Errorf("the old file is %q", text)
	}
	if _, err := Build(context.Background(), root, dst, Options{}); err != nil {
		t.Fatal(err)
	}
	names, _ := filepath.Glob(filepath.Dir(dst) + "/.*")
	if len(names) != 0 {
		t.Errorf("left over: %q", names)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	_, path := buildIndex(t, makeTree(t))
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	for i := offDigest; i < len(data); i += 97 {
		data[i] ^= 1
		if x, err := parse(data); err == nil && !errors.Is(x.Verify(), ErrCorrupt) {
			t.Errorf("a change of byte %d was not found", i)
		}
		data[i] ^= 1
	}
	if sha256.Sum256(data) != sum {
		t.Fatal("the test left the data changed")
	}
	for n := 0; n < len(data); n += 61 {
		short := filepath.Join(t.TempDir(), "short")
		if err := os.WriteFile(short, data[:n], 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(short); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
}

func TestLookupsDoNotAllocate(t *testing.T) {
	x, _ := buildIndex(t, makeTree(t))
	name, buf := []byte("usr"), make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() {
		var a Attr
		x.Attr(Root, &a)
		entries := x.Entries(&a)
		id := entries.Find(name)
		entries.At(3)
		x.Attr(id, &a)
		acl := x.ACL(&a)
		acl.At(0)
		buf, _ = x.AppendPath(buf[:0], id)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// exercise uses everything that an index offers; it must end, and not crash,
// whatever the bytes are.
func exercise(x *Index) {
	var a Attr
	for id := ID(0); id <= ID(x.Len())+1; id++ {
		x.Attr(id, &a)
		x.Parent(id)
		_, _ = x.AppendPath(nil, id)
		entries := x.Entries(&a)
		for i := range min(entries.Len(), 1000) {
			name, _ := entries.At(i)
			entries.Find(name)
		}
		x.Target(&a)
		acl := x.ACL(&a)
		for i := range acl.Len() {
			acl.At(i)
		}
	}
}

func FuzzOpen(f *testing.F) {
	root := f.TempDir()
	for i := range 5 {
		_ = os.WriteFile(filepath.Join(root, fmt.Sprint(i)), []byte("x"), 0o644)
	}
	_ = os.Symlink("target", filepath.Join(root, "link"))
	dst := filepath.Join(f.TempDir(), "index")
	if _, err := Build(context.Background(), root, dst, Options{}); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(dst)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, 200, byte(1))
	f.Add(data, 40, byte(255))
	f.Add([]byte("SIDUSIDX"), 0, byte(0))
	f.Fuzz(func(_ *testing.T, data []byte, at int, change byte) {
		data = bytes.Clone(data)
		if at >= 0 && at < len(data) {
			data[at] ^= change
		}
		x, err := parse(data)
		if err != nil {
			return
		}
		exercise(x)
	})
}
