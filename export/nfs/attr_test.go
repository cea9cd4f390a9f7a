package nfs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var kinds = map[uint32]string{1: "f", 2: "d", 3: "b", 4: "c", 5: "l", 6: "s", 7: "p"}

// describe prints attributes as find(1) does in TestWalk.
func describe(a fattr, target string) string {
	size, links := fmt.Sprint(a.size), fmt.Sprint(a.nlink)
	if a.kind == 2 {
		size, links = "-", "-"
	}
	return fmt.Sprintf("%s %o %d %d %s %s %d.%09d0 %s", kinds[a.kind], a.mode, a.uid, a.gid, size, links, a.mtime[0],
		a.mtime[1], target)
}

// walk reads a directory by READDIRPLUS, then what is below it, and calls
// visit for each path.
func (c *rpcClient) walk(dir []byte, path string, count int, visit func(path string, handle []byte, a fattr)) {
	c.t.Helper()
	cookie := uint64(0)
	type child struct {
		path   string
		handle []byte
		a      fattr
	}
	var children []child
	for {
		r := c.call(procReaddirplus, dir, cookie, uint64(0), count, count)
		if status := r.u32(); status != 0 {
			c.t.Fatalf("READDIRPLUS %q: status %d", path, status)
		}
		if len(r.b) > count {
			c.t.Fatalf("READDIRPLUS of %d bytes, asked for %d", len(r.b), count)
		}
		self := r.post()
		if r.u64() != 0 {
			c.t.Fatal("verifier")
		}
		for r.u32() == 1 {
			id, name := r.u64(), string(r.opaque())
			if next := r.u64(); next <= cookie {
				c.t.Fatalf("cookie %d after %d", next, cookie)
			} else {
				cookie = next
			}
			a := r.post()
			if a.fileid != id || a.fsid != self.fsid {
				c.t.Fatalf("%q: IDs %d and %d, %d and %d", name, a.fileid, id, a.fsid, self.fsid)
			}
			if r.u32() != 1 {
				c.t.Fatal("no handle")
			}
			handle := r.opaque()
			switch name {
			case ".":
				if a != self {
					c.t.Fatalf("%q: \".\" is %+v, not %+v", path, a, self)
				}
			case "..":
			default:
				children = append(children, child{strings.TrimPrefix(path+"/"+name, "/"), handle, a})
			}
		}
		end := r.u32()
		r.end()
		if end == 1 {
			break
		}
	}
	for _, child := range children {
		visit(child.path, child.handle, child.a)
		if child.a.kind == 2 {
			c.walk(child.handle, child.path, count, visit)
		}
	}
}

// TestWalk compares what READDIRPLUS, LOOKUP, GETATTR and READLINK say of
// each path with what find(1) prints.
func TestWalk(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	want := map[string]string{}
	for _, line := range strings.Split(run(t, "find", root, "-mindepth", "1", "-printf", `%P\t%y %m %U %G %s %n %T@ %l\0`), "\x00") {
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
	for _, count := range []int{65536, 4096, 700} {
		c := dial(t, s)
		top := c.root("/snapshot/" + string(testID))
		seen := 0
		ids := map[uint64]string{}
		c.walk(top, "", count, func(path string, handle []byte, a fattr) {
			seen++
			target := ""
			if a.kind == 5 {
				r := c.call(procReadlink, handle)
				if r.u32() != 0 || r.post() != a {
					t.Errorf("READLINK %q fails", path)
				}
				target = string(r.opaque())
				r.end()
			}
			if got := describe(a, target); got != want[path] {
				t.Errorf("%q:\n got %s\nwant %s", path, got, want[path])
			}
			if a.atime != a.mtime || a.ctime != a.mtime {
				t.Errorf("%q: times are not canonical: %+v", path, a)
			}
			r := c.call(procGetattr, handle)
			if r.u32() != 0 || r.fattr() != a {
				t.Errorf("GETATTR %q says something else", path)
			}
			r.end()
			if other, ok := ids[a.fileid]; ok && path != "hard" {
				t.Errorf("%q and %q have the same file ID", path, other)
			}
			ids[a.fileid] = path
			if count == 65536 {
				if got := c.lookup(top, strings.Split(path, "/")...); string(got) != string(handle) {
					t.Errorf("LOOKUP %q: handle %x, want %x", path, got, handle)
				}
			}
			switch path {
			case "null":
				if a.major != 1 || a.minor != 3 {
					t.Errorf("null is %d:%d", a.major, a.minor)
				}
			case "blk":
				if a.major != 259 || a.minor != 70000 {
					t.Errorf("blk is %d:%d", a.major, a.minor)
				}
			}
		})
		if seen != len(want) {
			t.Errorf("%d paths, find says %d", seen, len(want))
		}
	}
}

func TestReaddir(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	many := c.lookup(top, "many")
	for _, count := range []int{200, 1000, 100000} {
		names, cookie := 0, uint64(0)
		for end := uint32(0); end == 0; {
			r := c.call(procReaddir, many, cookie, uint64(0), count)
			if status := r.u32(); status != 0 {
				t.Fatalf("status %d", status)
			}
			if len(r.b) > count {
				t.Fatalf("%d bytes, asked for %d", len(r.b), count)
			}
			r.post()
			r.u64()
			for r.u32() == 1 {
				id, name := r.u64(), string(r.opaque())
				if names >= 2 && name != fmt.Sprintf("file-%05d", names-1) || id == 0 {
					t.Fatalf("entry %d is %q", names, name)
				}
				names++
				cookie = r.u64()
			}
			end = r.u32()
			r.end()
		}
		if names != 3002 {
			t.Errorf("%d names", names)
		}
	}
	for _, test := range []struct {
		name   string
		proc   int
		args   []any
		status uint32
	}{
		{"count too small for anything", procReaddir, []any{many, uint64(0), uint64(0), 50}, 10005},
		{"count too small for an entry", procReaddir, []any{many, uint64(0), uint64(0), 105}, 10005},
		{"cookie after the end", procReaddir, []any{many, uint64(4000), uint64(0), 4096}, 10003},
		{"huge cookie", procReaddirplus, []any{many, ^uint64(0), uint64(0), 4096, 4096}, 10003},
		{"foreign verifier", procReaddir, []any{many, uint64(3), uint64(9), 4096}, 10003},
		{"no directory", procReaddirplus, []any{c.lookup(top, "three"), uint64(0), uint64(0), 4096, 4096}, 20},
	} {
		if got := c.call(test.proc, test.args...).u32(); got != test.status {
			t.Errorf("%s: status %d, want %d", test.name, got, test.status)
		}
	}
	// After the last entry there is nothing, and that is said.
	r := c.call(procReaddir, many, uint64(3002), uint64(0), 4096)
	if r.u32() != 0 || r.post().kind != 2 || r.u64() != 0 || r.u32() != 0 || r.u32() != 1 {
		t.Error("READDIR from the last cookie")
	}
	// dircount bounds names, but one entry at least is given.
	r = c.call(procReaddirplus, many, uint64(0), uint64(0), 1, 4096)
	if r.u32() != 0 || r.post().kind != 2 || r.u64() != 0 || r.u32() != 1 {
		t.Error("READDIRPLUS with a dircount of 1")
	}
}

// TestBigDirectory has 100,000 entries.
func TestBigDirectory(t *testing.T) {
	root := t.TempDir()
	for i := range 100000 {
		f, err := os.Create(filepath.Join(root, fmt.Sprintf("%x", i*2654435761)))
		if err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	names := map[string]bool{}
	c.walk(top, "", 65536, func(path string, _ []byte, _ fattr) { names[path] = true })
	for i := range 100000 {
		if !names[fmt.Sprintf("%x", i*2654435761)] {
			t.Fatalf("entry %d is missing", i)
		}
	}
	if len(names) != 100000 {
		t.Errorf("%d names", len(names))
	}
	c.lookup(top, fmt.Sprintf("%x", 777*2654435761))
}

func TestLookup(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	usr := c.lookup(top, "usr")
	if got := c.lookup(top, ".."); string(got) != string(top) {
		t.Error("\"..\" of the root is not the root")
	}
	if got := c.lookup(usr, "."); string(got) != string(usr) {
		t.Error("\".\" is not the directory")
	}
	if got := c.lookup(usr, "bin", "..", ".."); string(got) != string(top) {
		t.Error("\"..\" does not lead up")
	}
	c.lookup(top, strings.Repeat("n", 255))
	c.lookup(top, "name\nwith\xffbytes")
	for name, want := range map[string]uint32{
		"missing": 2, "": 13, "a/b": 13, "a\x00": 13, strings.Repeat("n", 256): 63, strings.Repeat("n", 70000): 63, "...": 2,
	} {
		r := c.call(procLookup, top, []byte(name))
		if got := r.u32(); got != want {
			t.Errorf("%.20q: status %d, want %d", name, got, want)
		}
		if a := r.post(); a.kind != 2 {
			t.Errorf("%.20q: no attributes of the directory", name)
		}
		r.end()
	}
	if got := c.call(procLookup, c.lookup(top, "three"), []byte("x")).u32(); got != 20 {
		t.Errorf("in a file: status %d", got)
	}
}

// TestInfo checks FSSTAT, FSINFO, PATHCONF and COMMIT.
func TestInfo(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	r := c.call(procFsstat, top)
	inodes := len(strings.Fields(run(t, "bash", "-c", "find \"$1\" -printf '%i\n' | sort -u", "x", root)))
	if r.u32() != 0 || r.post().kind != 2 || r.u64() == 0 || r.u64() != 0 || r.u64() != 0 || r.u64() != uint64(inodes) ||
		r.u64() != 0 || r.u64() != 0 || r.u32() != 0xffffffff {
		t.Error("FSSTAT")
	}
	r.end()
	r = c.call(procFsinfo, top)
	if r.u32() != 0 || r.post().kind != 2 {
		t.Error("FSINFO")
	}
	for i, want := range []uint32{1 << 20, 1 << 20, 4096, 32768, 32768, 4096, 65536, 0x7fffffff, 0xffffffff, 0, 1, 0xb} {
		if got := r.u32(); got != want {
			t.Errorf("FSINFO: word %d is %#x, want %#x", i, got, want)
		}
	}
	r.end()
	r = c.call(procPathconf, top)
	if r.u32() != 0 || r.post().kind != 2 || r.u32() == 0 || r.u32() != 255 || r.u32() != 1 || r.u32() != 1 || r.u32() != 0 || r.u32() != 1 {
		t.Error("PATHCONF")
	}
	r.end()
	r = c.call(procCommit, c.lookup(top, "three"), uint64(0), 0)
	if r.u32() != 0 || r.wcc().size != 3 || r.u64() != 0 {
		t.Error("COMMIT")
	}
	r.end()
	r = c.call(procCommit, top, uint64(0), 0)
	if r.u32() != 22 || r.wcc().kind != 2 {
		t.Error("COMMIT of a directory")
	}
	r.end()
	c.call(procNull).end()
}

// TestWritesAreRefused calls every procedure that would change something.
func TestWritesAreRefused(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	file := c.lookup(top, "three")
	name := []byte("new")
	noAttr := raw(words(0, 0, 0, 0, 0, 0))
	allAttr := raw(words(1, 0o644, 1, 0, 1, 0, 1, uint64(5), 2, uint64(7), 1))
	for _, test := range []struct {
		name string
		proc int
		args []any
		wcc  int // how many wcc_data follow
	}{
		{"SETATTR", 2, []any{file, allAttr, 0}, 1},
		{"SETATTR guarded", 2, []any{file, noAttr, 1, uint64(3)}, 1},
		{"WRITE", 7, []any{file, uint64(0), 4, 2, []byte("data")}, 1},
		{"CREATE", 8, []any{top, name, 0, noAttr}, 1},
		{"CREATE exclusive", 8, []any{top, name, 2, uint64(1)}, 1},
		{"MKDIR", 9, []any{top, name, noAttr}, 1},
		{"SYMLINK", 10, []any{top, name, allAttr, []byte("target")}, 1},
		{"MKNOD", 11, []any{top, name, 4, noAttr, 1, 3}, 1},
		{"MKNOD FIFO", 11, []any{top, name, 7, noAttr}, 1},
		{"REMOVE", 12, []any{top, name}, 1},
		{"RMDIR", 13, []any{top, name}, 1},
		{"RENAME", 14, []any{top, name, top, name}, 2},
		{"LINK", 15, []any{file, top, name}, -1},
	} {
		t.Run(test.name, func(t *testing.T) {
			c.t = t
			r := c.call(test.proc, test.args...)
			if status := r.u32(); status != 30 {
				t.Errorf("status %d", status)
			}
			if test.wcc == -1 {
				r.post()
				r.wcc()
			}
			for range test.wcc {
				r.wcc()
			}
			r.end()
			// Without its last four bytes each is malformed.
			m := c.message(test.proc, test.args...)
			c.send(m[:len(m)-4])
			if reply := c.receive(); len(reply) != 24 || reply[23] != acceptGarbageArgs {
				t.Errorf("truncated: %x", reply)
			}
			// With a forged handle there are no attributes.
			forged := append([]byte{}, top...)
			forged[9] ^= 1
			args := append([]any{}, test.args...)
			for i, a := range args {
				if h, ok := a.([]byte); ok && len(h) == handleSize {
					args[i] = forged
				}
			}
			r = c.call(test.proc, args...)
			if status := r.u32(); status != 10001 {
				t.Errorf("forged: status %d", status)
			}
			for len(r.b) > 0 {
				if r.u32() != 0 {
					t.Error("forged: there are attributes")
				}
			}
		})
	}
}
