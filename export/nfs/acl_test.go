package nfs

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestACL compares GETACL with what getfacl says of the tree itself.
func TestACL(t *testing.T) {
	root := makeTree(t)
	run(t, "bash", "-c", `cd "$1"; mkdir aclDir; setfacl -m u:1234:x,g:55:rx,g:42:r -m d:u:1234:rwx aclDir
		echo m > masked; chmod 600 masked; setfacl -m u:1234:rwx,g:42:rwx,m::r masked
		echo o > owned; chown 7:8 owned; chmod 4751 owned`, "x", root)
	s := serveTree(t, root)
	c := dial(t, s)
	top := c.root("/channel/default")
	letters := []string{"---", "--x", "-w-", "-wx", "r--", "r-x", "rw-", "rwx"}
	for _, name := range []string{"acl", "aclDir", "masked", "owned", "three", "sticky"} {
		handle := c.lookup(top, name)
		c.prog = aclProgram
		r := c.call(aclProcGetacl, handle, 0xf)
		c.prog = nfsProgram
		if status := r.u32(); status != nfsOK {
			t.Fatalf("%s: status %d", name, status)
		}
		attr := r.post()
		if mask := r.u32(); mask != 0xf {
			t.Errorf("%s: mask %#x", name, mask)
		}
		count := r.u32()
		if n := r.u32(); n != count || n < 4 {
			t.Fatalf("%s: %d entries, and %d are told", name, count, n)
		}
		var got []string
		for range count {
			tag, id, perm := r.u32(), r.u32(), r.u32()
			switch tag {
			case 0x01, 0x04, 0x10, 0x20:
				word := map[uint32]string{0x01: "user", 0x04: "group", 0x10: "mask", 0x20: "other"}[tag]
				if tag == 0x01 && id != attr.uid || tag == 0x04 && id != attr.gid {
					t.Errorf("%s: the entry of the %s names %d", name, word, id)
				}
				if tag == 0x10 && count == 4 {
					continue // getfacl tells no mask that takes nothing away
				}
				got = append(got, word+"::"+letters[perm])
			case 0x02, 0x08:
				got = append(got, fmt.Sprintf("%s:%d:%s", map[uint32]string{0x02: "user", 0x08: "group"}[tag], id, letters[perm]))
			default:
				t.Errorf("%s: tag %#x", name, tag)
			}
		}
		if a, b := r.u32(), r.u32(); a != 0 || b != 0 {
			t.Errorf("%s: a default ACL", name)
		}
		r.end()
		out, err := exec.Command("getfacl", "--access", "--numeric", "--omit-header", "--no-effective", "--absolute-names", filepath.Join(root, name)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if want := strings.Fields(string(out)); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: NFSACL says %v, getfacl %v", name, got, want)
		}
	}
	c.prog = aclProgram
	if status := c.call(aclProcSetacl, top, 0, 0, 0, 0, 0).u32(); status != nfsErrROFS {
		t.Errorf("SETACL: status %d", status)
	}
	if status := c.call(aclProcGetacl, top, 0x10).u32(); status != nfsErrInval {
		t.Errorf("GETACL of what is not known: status %d", status)
	}
	if status := c.call(aclProcGetacl, []byte("none"), 1).u32(); status != nfsErrBadHandle {
		t.Errorf("GETACL of a bad handle: status %d", status)
	}
}
