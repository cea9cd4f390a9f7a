package service

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"sidus/tests/labdisk"
)

// TestUnit starts the service on each store and reads what it serves with the
// kernel's NFS client.
func TestUnit(t *testing.T) {
	if os.Getenv("SIDUS_LAB") == "" {
		if os.Getenv("SIDUS_LAB_TESTS") == "" {
			t.Skip("SKIPPED: the systemd unit was NOT started: `make lab-test` does it in a machine of its own")
		}
		labdisk.Run(t, labdisk.Suite{
			Package: "sidus/tests/service", Programs: []string{"sidus/cmd/sidus"}, Timeout: 15 * time.Minute,
			Files: []string{"../../cmd/sidus/sidus.service", "../../docs/nfs-engines.md"},
			Setup: "ip link set lo up; mkdir -p /usr/local/sbin; cp sidus /usr/local/sbin/",
		})
		return
	}
	unit := strings.ReplaceAll(read(t, "sidus.service"), "@PREFIX@", "/usr/local")
	write(t, "/etc/systemd/system/sidus.service", unit)
	do(t, "systemctl daemon-reload")

	t.Run("btrfs", func(t *testing.T) {
		initSite(t, "--size", "2G")
		serves(t)
	})
	t.Run("zfs", func(t *testing.T) {
		do(t, "truncate -s 1G /var/tmp/zfs.img; zpool create -m none service /var/tmp/zfs.img")
		t.Cleanup(func() { do(t, "zpool destroy service") })
		initSite(t, "--dataset", "service/sidus")
		serves(t)
	})
	t.Run("lvm", func(t *testing.T) {
		do(t, "truncate -s 2G /var/tmp/lvm.img; losetup -f /var/tmp/lvm.img")
		device := strings.TrimSpace(do(t, "losetup -n -O NAME -j /var/tmp/lvm.img"))
		t.Cleanup(func() { do(t, "vgremove -fy service; losetup -d "+device) })
		do(t, "pvcreate --metadatasize 16m "+device+"; vgcreate service "+device+"; lvcreate -y --type thin-pool -L 1500M -n pool service")
		initSite(t, "--thin-pool", "service/pool", "--volume-size", "1G")
		serves(t)
	})
	t.Run("the kernel's NFS server", func(t *testing.T) {
		initSite(t, "--size", "2G")
		dropIn := regexp.MustCompile("(?s)```\n(\\[Service\\].*?)```").FindStringSubmatch(read(t, "nfs-engines.md"))
		if dropIn == nil {
			t.Fatal("docs/nfs-engines.md has no drop-in")
		}
		write(t, "/etc/systemd/system/sidus.service.d/kernel.conf", dropIn[1])
		t.Cleanup(func() { do(t, "rm -r /etc/systemd/system/sidus.service.d; systemctl daemon-reload") })
		do(t, "systemctl daemon-reload; systemctl start rpcbind nfs-server")
		start(t)
		if served := do(t, "exportfs -v"); !strings.Contains(served, "snapshot") {
			t.Errorf("nothing is exported: %s", served)
		}
		// What it has exported stays, for those who run from it.
		do(t, "systemctl stop sidus; exportfs -ua; systemctl stop nfs-server; umount /run/sidus/nfsd/snapshot/*")
	})
}

// initSite makes a site in the place where the unit looks for it.
func initSite(t *testing.T, store ...string) {
	t.Helper()
	tree := t.TempDir()
	for name, text := range map[string]string{"etc/marker": "served by the unit\n", "boot/vmlinuz": "kernel", "boot/initrd.img": "initrd"} {
		write(t, filepath.Join(tree, name), text)
	}
	t.Cleanup(func() {
		do(t, "systemctl stop sidus; sidus unmount; rm -rf /var/lib/sidus /run/sidus")
	})
	do(t, "sidus init "+strings.Join(store, " ")+"; sidus import deb --dir "+tree+"; sidus promote deb@1; sidus network add here --subnet 127.0.0.0/8 --mode off")
}

// start starts the service, which says itself that it is ready.
func start(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("systemctl", "start", "sidus").CombinedOutput(); err != nil {
		log, _ := exec.Command("journalctl", "-u", "sidus", "-n", "40", "--no-pager").CombinedOutput()
		t.Fatalf("%v: %s%s", err, out, log)
	}
}

// serves starts the service and reads from it: also after a restart, and what
// is promoted while it runs.
func serves(t *testing.T) {
	t.Helper()
	start(t)
	const mount = "busybox mount -t nfs -o ro,vers=3,proto=tcp,mountproto=tcp,addr=127.0.0.1,mountaddr=127.0.0.1,port=2049,mountport=2049,nolock,hard 127.0.0.1:/channel/default "
	root := t.TempDir()
	do(t, mount+root)
	t.Cleanup(func() { _ = exec.Command("umount", "-f", "-l", root).Run() })
	if text := read(t, filepath.Join(root, "etc/marker")); text != "served by the unit\n" {
		t.Errorf("the client reads %q", text)
	}
	do(t, "sidus snapshot deb; sidus promote deb@2; systemctl restart sidus; echo 3 >/proc/sys/vm/drop_caches")
	if text := read(t, filepath.Join(root, "etc/marker")); text != "served by the unit\n" {
		t.Errorf("after a restart the client reads %q", text)
	}
	do(t, "umount "+root+"; "+mount+root+"; umount "+root+"; systemctl stop sidus")
}

// do runs a shell's command line, which must succeed.
func do(t *testing.T, line string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", line).CombinedOutput()
	if err != nil {
		log, _ := exec.Command("journalctl", "-u", "sidus", "-n", "40", "--no-pager").CombinedOutput()
		t.Errorf("%s: %v: %s\n%s", line, err, out, log)
	}
	return string(out)
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}
