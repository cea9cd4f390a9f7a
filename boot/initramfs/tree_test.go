package initramfs_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gofrs/flock"

	"sidus/boot/initramfs"
	"sidus/tests/lab"
)

// packages are those of a small tree as a user would build one.
const packages = "systemd,systemd-sysv,dbus,udev,kmod,initramfs-tools,busybox,zstd,linux-image-amd64,iproute2,openssh-server"

// extras are files of the test's tree: what lets the test in, and what must
// not disturb the boot.
var extras = map[string]string{
	lab.AutologinPath: lab.AutologinUnit,
	// Another network manager that wants every card.
	"/etc/systemd/network/50-every-card.network":                                           "[Match]\nName=e*\n\n[Network]\nDHCP=yes\n",
	"/etc/systemd/system/multi-user.target.wants/systemd-networkd.service":                 "-> /lib/systemd/system/systemd-networkd.service",
	"/etc/systemd/system/network-online.target.wants/systemd-networkd-wait-online.service": "-> /lib/systemd/system/systemd-networkd-wait-online.service",
	"/etc/systemd/system/multi-user.target.wants/sidus-test-fails.service":                 "-> /etc/systemd/system/sidus-test-fails.service",
	"/etc/systemd/system/sidus-test-fails.service":                                         "[Unit]\nAfter=network-online.target\nWants=network-online.target\n[Service]\nType=oneshot\nExecStart=/bin/false\n",
	"/etc/fstab": "# a comment\n/dev/sda1 / ext4 errors=remount-ro 0 1\n",
}

// needMachines skips the test unless virtual machines are wanted: they take
// minutes under emulation.
func needMachines(t *testing.T) {
	t.Helper()
	if os.Getenv("SIDUS_VM_TESTS") == "" {
		t.Skip("SKIPPED: boots virtual machines for some minutes; set SIDUS_VM_TESTS=1 to run it")
	}
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
}

// bootableTree makes a Debian tree, once, and installs what is to be tested.
// It is kept in SIDUS_TEST_CACHE, or in the user's cache directory.
func bootableTree(t *testing.T) string {
	t.Helper()
	cache := os.Getenv("SIDUS_TEST_CACHE")
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		cache = filepath.Join(dir, "sidus-tests")
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(cache, "initramfs-"+digest([]byte(packages)))
	lock := flock.New(tree + ".lock")
	if err := lock.Lock(); err != nil {
		t.Fatal(err)
	}
	defer lock.Unlock()
	if _, err := os.Stat(tree); err != nil {
		t.Log("making a tree with mmdebstrap; it is kept in", cache)
		half := tree + ".half"
		if err := os.RemoveAll(half); err != nil {
			t.Fatal(err)
		}
		run(t, "mmdebstrap", "--quiet", "--variant=minbase", "--include="+packages, "bookworm", half)
		if err := os.Rename(half, tree); err != nil {
			t.Fatal(err)
		}
	}

	agent := filepath.Join(t.TempDir(), "sidus-agent")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", agent, "sidus/cmd/sidus-agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	program, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	if size := len(program); size > 8<<20 {
		t.Errorf("the agent has %d bytes, more than 8 MiB", size)
	}
	for name, text := range extras {
		path := filepath.Join(tree, name)
		_ = os.Remove(path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(text, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(text), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := initramfs.Install(tree, initramfs.Options{Agent: program}); err != nil {
		t.Fatal(err)
	}
	// The initrd takes half a minute: only if what goes into it has changed.
	var inputs bytes.Buffer
	for _, name := range []string{"hooks/sidus", "scripts/sidus", "conf.d/sidus"} {
		data, err := os.ReadFile(filepath.Join(tree, "usr/share/initramfs-tools", name))
		if err != nil {
			t.Fatal(err)
		}
		inputs.Write(data)
	}
	stamp, key := tree+".initrd", digest(inputs.Bytes())
	if old, _ := os.ReadFile(stamp); string(old) != key {
		run(t, "chroot", tree, "update-initramfs", "-u")
		if err := os.WriteFile(stamp, []byte(key), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := initramfs.Prepare(tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:8])
}

func run(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(args, " "), err, out)
	}
	if strings.Contains(string(out), "W: ") {
		t.Logf("%s: %s", strings.Join(args, " "), out)
	}
}

// one is the only file that matches the pattern in the tree.
func one(t *testing.T, tree, pattern string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(tree, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	return found[0]
}

func shell(t *testing.T, ctx context.Context, m *lab.Machine, command string) string {
	t.Helper()
	out, err := m.Shell(ctx, command)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
