package nfs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// callers of the permission tests: a user, and groups besides the first.
var callers = []struct {
	uid, gid int
	groups   []int
}{
	{0, 0, nil}, {1000, 1000, nil}, {1234, 9, nil}, {33, 33, []int{55}}, {34, 34, []int{55}}, {35, 55, nil},
	{5, 5, nil}, {7, 42, nil}, {7, 7, []int{1, 2, 42}}, {65534, 65534, nil}, {12, 13, nil},
}

// TestPermissions compares ACCESS, LOOKUP, READ and READDIR with what the
// kernel lets the same user do on the tree itself.
func TestPermissions(t *testing.T) {
	root := makeTree(t)
	run(t, "bash", "-c", `cd "$1"; chmod 755 . ; mkdir -m 700 shut; echo x > shut/x; mkdir -m 733 dark; echo x > dark/x
		mkdir aclDir; echo x > aclDir/x; chmod 700 aclDir; setfacl -m u:1234:x,g:55:rx,g:42:r aclDir
		echo m > masked; chmod 600 masked; setfacl -m u:1234:rwx,g:42:rwx,m::r masked
		echo both > both; chmod 640 both; setfacl -m g:55:-,g:42:r,o::r both; chmod 755 "$(dirname "$1")" "$(dirname "$(dirname "$1")")"`, "x", root)
	s := serveTree(t, root)
	helper := buildHelper(t)
	admin := dial(t, s)
	top := admin.root("/channel/default")
	paths := []string{"three", "acl", "both", "masked", "private", "private/shadow", "private/prog", "private/own", "shut",
		"shut/x", "dark", "dark/x", "aclDir", "aclDir/x", "usr/bin", "usr/bin/su", "sticky", "many"}
	for _, who := range callers {
		t.Run(fmt.Sprint(who.uid, who.gid, who.groups), func(t *testing.T) {
			cmd := exec.Command(helper, append([]string{"-test.run=^$"}, paths...)...)
			cmd.Dir = root
			cmd.Env = append(os.Environ(), "SIDUS_TEST_ACCESS=1")
			groups := []uint32{}
			for _, g := range who.groups {
				groups = append(groups, uint32(g))
			}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(who.uid), Gid: uint32(who.gid), Groups: groups}}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("helper: %v: %s", err, out)
			}
			want := strings.Fields(string(out))
			c := dial(t, s)
			c.cred = sysCred(who.uid, who.gid, who.groups...)
			for i, path := range paths {
				if got := c.access(admin, top, path); got != want[i] {
					t.Errorf("%s: NFS lets them %q, the kernel %q", path, got, want[i])
				}
			}
		})
	}
}

// access says what the caller may do: r or -, x or -, for "not found on the
// way" a question mark.
func (c *rpcClient) access(admin *rpcClient, top []byte, path string) string {
	c.t.Helper()
	handle := top
	for _, name := range strings.Split(path, "/") {
		r := c.call(procLookup, handle, []byte(name))
		switch r.u32() {
		case 0:
			handle = r.opaque()
		case 13:
			return "?"
		default:
			c.t.Fatalf("LOOKUP %q fails", name)
		}
	}
	r := c.call(procAccess, handle, 0x3f)
	if r.u32() != 0 {
		c.t.Fatal("ACCESS fails")
	}
	a := r.post()
	bits := r.u32()
	r.end()
	result := []byte("--")
	if bits&1 != 0 {
		result[0] = 'r'
	}
	if bits&(2|32) != 0 {
		result[1] = 'x'
	}
	if bits&(4|8|16) != 0 || a.kind == 2 && bits&32 != 0 || a.kind != 2 && bits&2 != 0 {
		c.t.Errorf("%s: ACCESS grants %#x", path, bits)
	}
	// The other calls must agree.
	if a.kind == 2 {
		if got := c.call(procReaddir, handle, uint64(0), uint64(0), 4096).u32() == 0; got != (result[0] == 'r') {
			c.t.Errorf("%s: READDIR is allowed: %v", path, got)
		}
	} else {
		owner := string(c.cred) == string(sysCred(int(a.uid), int(a.gid))) || c.uid() == a.uid
		status := c.call(procRead, handle, uint64(0), 10).u32()
		if allowed := result[0] == 'r' || result[1] == 'x' || owner; allowed && status != 0 || !allowed && status != 13 {
			c.t.Errorf("%s: READ has status %d, ACCESS says %q", path, status, result)
		}
	}
	return string(result)
}

// uid takes the caller's user from its credentials.
func (c *rpcClient) uid() uint32 {
	return be.Uint32(c.cred[8+4+4+4:])
}

// buildHelper returns the test program itself, which as another user prints
// what faccessat(2) says (see init).
func buildHelper(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("/tmp", "sidus-helper-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path := filepath.Join(dir, "helper")
	run(t, "cp", self, path)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func init() {
	if os.Getenv("SIDUS_TEST_ACCESS") == "" {
		return
	}
	for _, path := range os.Args[2:] {
		result := []byte("--")
		if _, err := os.Lstat(path); err != nil {
			result = []byte("?")
		} else {
			if syscall.Access(path, 4) == nil {
				result[0] = 'r'
			}
			if syscall.Access(path, 1) == nil {
				result[1] = 'x'
			}
		}
		fmt.Println(string(result))
	}
	os.Exit(0)
}
