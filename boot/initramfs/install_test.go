package initramfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sidus/boot/initramfs"
)

// emptyTree has no more than Install asks for.
func emptyTree(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	for _, name := range []string{"usr/sbin/mkinitramfs", "usr/lib/systemd/systemd", "usr/bin/busybox"} {
		write(t, root, name, "")
	}
	return root
}

func write(t *testing.T, root, name, text string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, root, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestInstall(t *testing.T) {
	root := emptyTree(t)
	for _, modules := range []string{"", "most"} { // a second time is no error
		if err := initramfs.Install(root, initramfs.Options{Agent: []byte("agent"), Modules: modules}); err != nil {
			t.Fatal(err)
		}
	}
	for name, mode := range map[string]os.FileMode{
		"usr/share/initramfs-tools/hooks/sidus":                           0o755,
		"usr/share/initramfs-tools/scripts/sidus":                         0o644,
		"usr/share/initramfs-tools/conf.d/sidus":                          0o644,
		"usr/lib/sidus/sidus-agent":                                       0o755,
		"usr/lib/systemd/system/sidus-lease.service":                      0o644,
		"usr/lib/systemd/system/sidus-agent.service":                      0o644,
		"usr/lib/systemd/system/run-sidus-ro.mount.d/sidus.conf":          0o644,
		"usr/lib/systemd/system/sysinit.target.wants/sidus-lease.service": 0o644, // through the link
	} {
		info, err := os.Stat(filepath.Join(root, name))
		if err != nil || info.Mode() != mode {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if got := read(t, root, "usr/lib/sidus/sidus-agent"); got != "agent" {
		t.Errorf("the agent is %q", got)
	}
	conf := read(t, root, "usr/share/initramfs-tools/conf.d/sidus")
	if !strings.Contains(conf, "\nMODULES=most\n") || strings.Contains(conf, "@") {
		t.Errorf("conf.d/sidus:\n%s", conf)
	}
	left, _ := filepath.Glob(filepath.Join(root, "usr/lib/sidus/.*"))
	if len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
}

func TestInstallRefuses(t *testing.T) {
	root := emptyTree(t)
	if _, err := initramfs.Agent(); err != nil {
		if !errors.Is(err, initramfs.ErrNoAgent) {
			t.Error(err)
		}
		if err := initramfs.Install(root, initramfs.Options{}); !errors.Is(err, initramfs.ErrNoAgent) {
			t.Errorf("without an agent: %v", err)
		}
	}
	with := initramfs.Options{Agent: []byte("agent")}
	for file, pkg := range map[string]string{"usr/bin/busybox": "busybox", "usr/sbin/mkinitramfs": "initramfs-tools", "usr/lib/systemd/systemd": "systemd"} {
		root := emptyTree(t)
		if err := os.Remove(filepath.Join(root, file)); err != nil {
			t.Fatal(err)
		}
		if err := initramfs.Install(root, with); err == nil || !strings.Contains(err.Error(), "add the package "+pkg) {
			t.Errorf("without %s: %v", file, err)
		}
	}
	// A link out of the tree is not followed.
	outside := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(root, "usr/lib/sidus")); err != nil {
		t.Fatal(err)
	}
	if err := initramfs.Install(root, with); err == nil {
		t.Error("a link out of the tree is followed")
	}
	if entries, _ := os.ReadDir(outside); len(entries) != 0 {
		t.Errorf("written outside of the tree: %v", entries)
	}
}

func TestPrepare(t *testing.T) {
	root := t.TempDir()
	secrets := []string{
		"etc/hostname", "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "var/lib/systemd/random-seed",
		"var/lib/dhcp/dhclient.eth0.leases",
	}
	for _, name := range append(secrets, "etc/ssh/sshd_config", "etc/machine-id") {
		write(t, root, name, "text")
	}
	write(t, root, "etc/cron.daily/locate", "#!/bin/sh\n")
	write(t, root, "etc/fstab", "# / is not a root line\n/dev/sda1 /  ext4 defaults 0 1\ntmpfs /tmp tmpfs defaults 0 0\nUUID=1 / xfs")
	if err := os.Chmod(filepath.Join(root, "etc/cron.daily/locate"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := initramfs.Prepare(root); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range secrets {
		if _, err := os.Lstat(filepath.Join(root, name)); !os.IsNotExist(err) {
			t.Errorf("%s is still there", name)
		}
	}
	if read(t, root, "etc/machine-id") != "" || read(t, root, "etc/ssh/sshd_config") != "text" {
		t.Error("machine-id or sshd_config is not as it must be")
	}
	if got, want := read(t, root, "etc/fstab"), "# / is not a root line\ntmpfs /tmp tmpfs defaults 0 0\n"; got != want {
		t.Errorf("fstab:\n%s", got)
	}
	if target, err := os.Readlink(filepath.Join(root, "etc/systemd/system/apt-daily.timer")); target != "/dev/null" {
		t.Errorf("apt-daily.timer is not masked: %q, %v", target, err)
	}
	if info, err := os.Stat(filepath.Join(root, "etc/cron.daily/locate")); err != nil || info.Mode().Perm()&0o111 != 0 {
		t.Errorf("the daily job can still be run: %v, %v", info.Mode(), err)
	}
	// A tree without any of it is fine, too.
	if err := initramfs.Prepare(t.TempDir()); err != nil {
		t.Error(err)
	}
}

// TestScripts lets the shells that run them look at the scripts.
func TestScripts(t *testing.T) {
	shells := [][]string{{"sh", "-n"}, {"busybox", "ash", "-n"}}
	for _, sh := range shells {
		if _, err := exec.LookPath(sh[0]); err != nil {
			t.Logf("SKIPPED: there is no %s", sh[0])
			continue
		}
		for _, name := range []string{"files/hook", "files/script"} {
			if out, err := exec.Command(sh[0], append(sh[1:], name)...).CombinedOutput(); err != nil {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
	}
}
