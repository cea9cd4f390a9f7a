package adopt

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// keyFile makes a key, and an encrypted dataset with it.
func keyFile(t *testing.T, dataset string) string {
	t.Helper()
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, bytes.Repeat([]byte("k"), 32), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "zfs", "create", "-o", "mountpoint=none", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://"+key, dataset)
	return key
}

// sendsTo lets `sidus send ssh://…` reach another server of this machine.
func sendsTo(t *testing.T, other server) {
	t.Helper()
	program, err := filepath.Abs("sidus")
	if err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(t.TempDir(), "ssh")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nSIDUS_STATE='"+other.state+"' exec '"+program+"' receive\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SIDUS_SSH", script)
}

// TestEncryptedLeavesEncrypted: the snapshots of an encrypted store go to other
// servers as they are, without the key, and in the clear only where that is said.
func TestEncryptedLeavesEncrypted(t *testing.T) {
	pool, _ := newPool(t)
	key := keyFile(t, pool+"/first")
	s := server{t, filepath.Join(t.TempDir(), "first")}
	s.must("init", "--dataset", pool+"/first")
	s.must("import", "deb", "--dir", smallTree(t))
	s.must("snapshot", "deb", "second")
	s.must("promote", "deb@1")
	// newServer is another server, which the first sends to from now on.
	newServer := func(name string) server {
		t.Helper()
		other := server{t, filepath.Join(t.TempDir(), name)}
		other.must("init", "--dataset", pool+"/"+name)
		sendsTo(t, other)
		return other
	}
	loadAll := func(name string) {
		t.Helper()
		for _, line := range strings.Split(tool(t, "zfs", "get", "-H", "-r", "-t", "filesystem", "-o", "name,value", "encryptionroot", pool+"/"+name), "\n") {
			if dataset, root, _ := strings.Cut(line, "\t"); dataset == root {
				tool(t, "zfs", "load-key", "-L", "file://"+key, dataset)
			}
		}
	}
	inClear := func(s server, ref string) bool {
		t.Helper()
		file := filepath.Join(t.TempDir(), "tar")
		s.must("export", ref, "--portable", "--decrypt", "--level", "none", "-o", file)
		return bytes.Contains(read(t, file), bytes.Repeat([]byte("x"), 10000))
	}

	for _, args := range [][]string{{"export", "deb@1", "--portable", "-o", "/dev/shm/clear.stream"}, {"send", "deb@1", "ssh://other", "--portable"}} {
		if args[0] == "send" {
			newServer("nothing")
		}
		if said, code := s.run(args...); code == 0 || !strings.Contains(said, "--decrypt") {
			t.Errorf("%v: exit status %d", args, code)
		}
	}
	if _, err := os.Stat("/dev/shm/clear.stream"); err == nil {
		t.Error("what was refused has left a file")
	}
	if !inClear(s, "deb@1") {
		t.Error("with --decrypt it is not in the clear: the test finds nothing")
	}
	plain := newServer("open")
	s.must("send", "deb@1", "ssh://other", "--portable", "--decrypt")
	if got := tool(t, "zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "encryption", pool+"/open"); got != "off" {
		t.Errorf("a store that is not encrypted holds what is %q", got)
	}
	plain.must("check")

	tool(t, "zfs", "unload-key", "-r", pool+"/first")
	file := filepath.Join(t.TempDir(), "raw")
	s.must("export", "deb@1", "--level", "none", "-o", file)
	if bytes.Contains(read(t, file), bytes.Repeat([]byte("x"), 1000)) {
		t.Error("a native stream is not encrypted")
	}
	sent := newServer("sent")
	s.must("send", "deb@1", "ssh://other")
	s.must("send", "deb@2", "ssh://other")
	replica := newServer("replica")
	s.must("replicate", "add", "replica", "ssh://other")
	s.must("replicate")
	for _, other := range []server{sent, replica} {
		other.must("check")
		if said, code := other.run("export", "deb@1", "--portable", "-o", filepath.Join(t.TempDir(), "x")); code == 0 || !strings.Contains(said, "--decrypt") {
			t.Errorf("what came encrypted leaves in the clear: exit status %d", code)
		}
		if said, code := other.run("export", "deb@1", "--portable", "--decrypt", "-o", filepath.Join(t.TempDir(), "x")); code == 0 || !strings.Contains(said, "zfs load-key") {
			t.Errorf("without the key: exit status %d", code)
		}
	}
	loadAll("sent")
	loadAll("replica")
	for _, other := range []server{sent, replica} {
		if !inClear(other, "deb@1") || !inClear(other, "deb@2") {
			t.Error("with the key it cannot be read")
		}
	}
	tool(t, "zfs", "load-key", "-r", pool+"/first")
	s.must("check")
}

// TestHoldsOfTheDead: check tells of the hold of a sender that was killed, and of
// what another tool's snapshot keeps; --repair and gc remove what they can.
func TestHoldsOfTheDead(t *testing.T) {
	pool, _ := newPool(t)
	dataset := pool + "/sidus"
	s := server{t, filepath.Join(t.TempDir(), "state")}
	s.must("init", "--dataset", dataset)
	s.must("import", "deb", "--dir", smallTree(t))
	s.must("branch", "deb@1", "gpu")
	snapshot := tool(t, "zfs", "list", "-H", "-r", "-t", "snapshot", "-o", "name", dataset)
	tool(t, "zfs", "hold", "sidus:send-killed", snapshot)
	if said, code := s.run("check"); code != 6 || !strings.Contains(said, "sidus:send-killed") {
		t.Errorf("check: exit status %d", code)
	}
	s.must("check", "--repair")
	if left := tool(t, "zfs", "holds", "-H", snapshot); left != "" {
		t.Errorf("left: %s", left)
	}
	volume := ""
	for _, line := range strings.Split(tool(t, "zfs", "list", "-H", "-r", "-d", "1", "-t", "filesystem", "-o", "name,origin", dataset), "\n") {
		if name, origin, _ := strings.Cut(line, "\t"); origin == snapshot && name != strings.Split(snapshot, "@")[0] {
			volume = name
		}
	}
	tool(t, "zfs", "snapshot", volume+"@daily")
	s.must("delete", "gpu", "--yes")
	if said := s.must("check"); !strings.Contains(said, "zfs destroy "+volume+"@daily") {
		t.Error("check does not tell what keeps a deleted head")
	}
	if said := s.must("gc", "--dry-run"); !strings.Contains(said, "zfs destroy "+volume+"@daily") {
		t.Error("gc does not tell what keeps a deleted head")
	}
	tool(t, "zfs", "destroy", volume+"@daily")
	if said, code := s.run("check"); code != 6 || !strings.Contains(said, volume) {
		t.Errorf("check: exit status %d", code)
	}
	s.must("gc", "--yes")
	if left := tool(t, "zfs", "list", "-H", "-r", "-o", "name", dataset); strings.Contains(left, volume) {
		t.Errorf("left: %s", left)
	}
	s.must("check")
}
