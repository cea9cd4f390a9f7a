package initramfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// masked are the units that must not run on many machines at once, nor on a
// root in memory.
var masked = []string{
	// All nodes would ask the mirror, and fill their memory, together.
	"apt-daily.service", "apt-daily.timer",
	"apt-daily-upgrade.service", "apt-daily-upgrade.timer",
	"unattended-upgrades.service",
	// All nodes would read the whole tree together.
	"man-db.service", "man-db.timer",
	"plocate-updatedb.service", "plocate-updatedb.timer",
	"mlocate-updatedb.timer", "updatedb.timer", "updatedb-mlocate.timer",
	"dpkg-db-backup.timer",
	"debsums.timer", "aide.timer", "dailyaidecheck.timer",
	// These look after disks.
	"e2scrub_all.timer", "e2scrub_reap.service",
	"fstrim.timer", "mdcheck_start.timer", "mdcheck_continue.timer", "mdmonitor-oneshot.timer",
	"xfs_scrub_all.timer",
	"systemd-growfs-root.service",
}

// cronJobs are the same for cron. Those that leave it to a timer where
// systemd runs are not among them.
var cronJobs = []string{
	"etc/cron.daily/locate", "etc/cron.daily/mlocate", "etc/cron.daily/plocate",
	"etc/cron.daily/aide", "etc/cron.daily/debsums",
	"etc/cron.weekly/man-db",
}

// identity are files that only one machine may have. A node makes its own, or
// is given them.
var identity = []string{
	"etc/hostname",
	"etc/ssh/ssh_host_*_key", "etc/ssh/ssh_host_*_key.pub",
	"var/lib/systemd/random-seed", "var/lib/systemd/credential.secret",
	"var/lib/urandom/random-seed",
	"var/lib/dhcp/*.leases", "var/lib/NetworkManager/secret_key",
	"var/lib/dbus/machine-id",
}

// Prepare takes out of the tree at root what must not be the same on many
// machines, and what must not run on all of them at once:
//
//   - timers and daily jobs of package managers, indexers and disk tools are
//     masked (see systemctl(1)) or no longer executable,
//   - the hostname, the ssh host keys, random seeds and DHCP leases go, and
//     /etc/machine-id is empty,
//   - /etc/fstab has no line for the root.
//
// It may be called again. Nothing outside of root is written.
func Prepare(root string) error {
	if err := prepare(root); err != nil {
		return fmt.Errorf("prepare %s for many machines: %w", root, err)
	}
	return nil
}

func prepare(root string) error {
	tree, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer tree.Close()
	for _, pattern := range identity {
		found, err := fs.Glob(tree.FS(), pattern)
		if err != nil {
			return err
		}
		for _, name := range found {
			if err := tree.Remove(name); err != nil {
				return err
			}
		}
	}
	for _, name := range cronJobs {
		if info, err := tree.Lstat(name); err == nil && info.Mode().IsRegular() {
			if err := tree.Chmod(name, info.Mode().Perm()&^0o111); err != nil {
				return err
			}
		}
	}
	w := writer{tree: tree}
	for _, unit := range masked {
		w.link("/dev/null", "etc/systemd/system/"+unit)
	}
	// Empty, not missing: systemd would take a missing one for the first boot
	// of a new system, and change settings.
	w.write("etc/machine-id", nil, 0o444)
	if w.err != nil {
		return w.err
	}
	return removeRootLine(tree)
}

// removeRootLine removes the lines of /etc/fstab that mount the root: systemd
// would remount it as they say.
func removeRootLine(tree *os.Root) error {
	const name = "etc/fstab"
	old, err := tree.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var kept []string
	for _, line := range lines(old) {
		if f := strings.Fields(line); len(f) < 2 || strings.HasPrefix(f[0], "#") || f[1] != "/" {
			kept = append(kept, line)
		}
	}
	text := []byte(strings.Join(kept, "\n") + "\n")
	if bytes.Equal(text, old) || len(old) == 0 {
		return nil
	}
	w := writer{tree: tree}
	w.write(name, text, 0o644)
	return w.err
}
