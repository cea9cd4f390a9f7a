package nfs

import (
	"crypto/sha256"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// url is how the tools of libnfs name a file of the server.
func (s *testServer) url(path string) string {
	_, port, _ := net.SplitHostPort(s.addr)
	return fmt.Sprintf("nfs://127.0.0.1/%s?nfsport=%s&mountport=%s&uid=0&gid=0", strings.TrimPrefix(path, "/"), port, port)
}

// TestLibnfs reads the tree with the tools of libnfs, a client that is not
// ours.
func TestLibnfs(t *testing.T) {
	root := makeTree(t)
	s := serveTree(t, root)
	for _, file := range []string{"big", "odd", "three", "empty", "a/x/y", "usr/bin/su", "with space"} {
		path := filepath.Join(root, file)
		if info, err := os.Stat(path); err != nil || info.IsDir() {
			continue
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got := run(t, "nfs-cat", s.url("/snapshot/"+string(testID)+"/"+file))
		if sha256.Sum256([]byte(got)) != sha256.Sum256(want) {
			t.Errorf("%s: %d bytes, want %d", file, len(got), len(want))
		}
	}
	list := run(t, "nfs-ls", "-R", s.url("/channel/default"))
	names := strings.Count(run(t, "find", root, "-mindepth", "1", "-printf", "x"), "x")
	// A name with a line feed in it takes two lines.
	if lines := strings.Count(list, "\n"); lines != names+1 {
		t.Errorf("nfs-ls prints %d lines for %d names:\n%.2000s", lines, names, list)
	}
	for _, want := range []string{"-rwsr-xr-x", "drwxrwxrwt", "file-03000", "crw-r--r--"} {
		if !strings.Contains(list, want) {
			t.Logf("nfs-ls does not show %q", want)
		}
	}
}
