#!/bin/sh
# Runs as mmdebstrap's customize hook: $1 is the tree, $2 the folder with the
# files of the lab. Makes the tree a machine that runs what it is handed and
# powers off.
set -eu
root=$1
files=$2

# The kernel's package and its headers came together with zfs-dkms. The module
# must exist now: compiling it at boot would take minutes each time.
for dir in "$root"/lib/modules/*; do
	version=${dir##*/}
	if [ -z "$(find "$dir" -name 'zfs.ko*')" ]; then
		chroot "$root" dkms autoinstall -k "$version"
	fi
	if [ -z "$(find "$dir" -name 'zfs.ko*')" ]; then
		echo "the ZFS module was not built for Linux $version:" >&2
		tail -n 30 "$root"/var/lib/dkms/zfs/*/build/make.log >&2 || true
		exit 1
	fi
	chroot "$root" depmod "$version"
done

# An initrd with what a virtio disk needs and nothing else: emulated, the
# time to unpack it counts.
mkdir -p "$root/etc/initramfs-tools/conf.d"
echo 'MODULES=list' >"$root/etc/initramfs-tools/conf.d/lab"
echo 'COMPRESS=zstd' >>"$root/etc/initramfs-tools/conf.d/lab"
printf '%s\n' virtio_pci virtio_blk virtio_console virtio_rng ext4 >>"$root/etc/initramfs-tools/modules"
chroot "$root" update-initramfs -u -k all

install -m 755 "$files/run" "$root/usr/lib/sidus-lab-run"
install -m 644 "$files/sidus-lab.service" "$root/etc/systemd/system/sidus-lab.service"
mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/lab"
ln -sf ../sidus-lab.service "$root/etc/systemd/system/multi-user.target.wants/sidus-lab.service"

echo sidus-lab >"$root/etc/hostname"
echo '127.0.0.1 localhost sidus-lab' >"$root/etc/hosts"
echo '/dev/vda / ext4 rw,noatime 0 1' >"$root/etc/fstab"
: >"$root/etc/machine-id"
printf '%s\n' zfs loop dm_thin_pool >"$root/etc/modules-load.d/sidus-lab.conf"
# A pool's cache is emulated memory: leave some for the tests.
echo 'options zfs zfs_arc_max=268435456' >"$root/etc/modprobe.d/sidus-lab.conf"

# What nobody needs at boot. nfsd and sshd are started by whoever wants them.
for unit in keepalived zfs-zed zfs-import-cache zfs-import-scan zfs-mount zfs-share zfs-volume-wait \
	nfs-server nfs-blkmap rpc-statd rpcbind ssh lvm2-monitor blk-availability \
	systemd-timesyncd systemd-networkd apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
	e2scrub_all.timer e2scrub_reap fstrim.timer getty@tty1 console-getty; do
	chroot "$root" systemctl disable "$unit" >/dev/null 2>&1 || true
done
chroot "$root" passwd -d root >/dev/null
# Logs go to memory: nobody reads them after the machine is off.
mkdir -p "$root/etc/systemd/journald.conf.d"
printf '[Journal]\nStorage=volatile\nForwardToConsole=no\n' >"$root/etc/systemd/journald.conf.d/lab.conf"

# What only the build of the module needed.
rm -rf "$root"/var/lib/dkms/zfs/*/build "$root"/var/cache/apt/archives/*.deb "$root"/usr/share/doc/*
