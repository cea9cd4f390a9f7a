package adopt

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// newThinPool makes a volume group with a thin pool, on a file, that goes away
// with the test.
func newThinPool(t *testing.T) string {
	t.Helper()
	if os.Getenv("SIDUS_LAB") == "" {
		t.Skip("SKIPPED: it needs the device mapper and makes volume groups: `make lab-test` runs it in a machine of its own")
	}
	dir, group := t.TempDir(), "adopt-"+strings.ToLower(rand.Text()[:8])
	file := filepath.Join(dir, "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 4<<30)); err != nil {
		t.Fatal(err)
	}
	device := tool(t, "losetup", "--find", "--show", file)
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", device).Run() })
	tool(t, "vgcreate", "--quiet", "--metadatasize", "16m", group, device)
	t.Cleanup(func() { _ = exec.Command("vgremove", "--yes", "--force", group).Run() })
	tool(t, "lvcreate", "--quiet", "--type", "thin-pool", "--size", "3g", "--name", "pool", group)
	return group + "/pool"
}

// TestThinPool: a tree larger than --volume-size is imported, as a directory
// and as an archive whose size nobody can know beforehand. Then the state is
// lost: with the thin pool and the key another server has the same trees.
func TestThinPool(t *testing.T) {
	pool := newThinPool(t)
	first := server{t, filepath.Join(t.TempDir(), "first")}
	if said, code := first.run("init", "--thin-pool", pool, "--volume-size", "128M"); code != 2 || !strings.Contains(said, "320.0 MiB at least") {
		t.Errorf("volumes that are too small: exit status %d", code)
	}
	first.must("init", "--thin-pool", pool, "--volume-size", "320M")
	tree := smallTree(t)
	const files, size = 3, 120 << 20
	for n := range files {
		if err := os.WriteFile(filepath.Join(tree, fmt.Sprint("large", n)), bytes.Repeat([]byte{byte('a' + n)}, size), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	first.must("import", "deb", "--dir", tree)
	archive := exec.Command("sh", "-c", `tar -C "$0" -c . | ./sidus import piped --tar -`, tree)
	archive.Env = append(os.Environ(), "SIDUS_STATE="+first.state)
	if out, err := archive.CombinedOutput(); err != nil {
		t.Fatalf("an archive larger than --volume-size: %v: %s", err, out)
	}
	if said := first.must("diff", "deb@1", "piped@1"); strings.Contains(said, "large") || strings.Contains(said, "etc/marker") {
		t.Error("the archive is not what the directory is")
	}
	first.must("branch", "deb@1", "gpu")
	first.must("promote", "deb@1")
	before := first.ids("deb")
	key := filepath.Join(t.TempDir(), "site.key")
	if err := errors.Join(os.WriteFile(key, read(t, filepath.Join(first.state, "secrets/site.key")), 0o600), os.RemoveAll(first.state)); err != nil {
		t.Fatal(err)
	}

	second := server{t, filepath.Join(t.TempDir(), "second")}
	if said, code := second.run("init", "--thin-pool", pool); code != 4 || !strings.Contains(said, "sidus restore --from-store --thin-pool "+pool) {
		t.Errorf("init of another server's store: exit status %d", code)
	}
	said := second.must("restore", "--from-store", "--thin-pool", pool, "--key", key)
	if strings.Contains(said, "lost:") || !strings.Contains(said, "catalog and store agree") {
		t.Error("what was brought back is not what was there")
	}
	if after := second.ids("deb"); after != before {
		t.Errorf("the second server has\n%s\nthe first had\n%s", after, before)
	}
	if said := second.must("diff", "gpu", "piped@1"); strings.Contains(said, "large") {
		t.Error("the second server's trees are not what they were")
	}
	second.must("check")
}
