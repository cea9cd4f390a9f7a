#!/bin/sh
# Installs, on Debian 12, what Sidus needs to run (`setup.sh run`), or also
# what its tests and the demo need (`setup.sh test`). Does nothing where all is
# there. Must run as root to install.
set -eu

run="btrfs-progs mmdebstrap debian-archive-keyring pxelinux syslinux-common ipxe tar gzip bzip2 xz-utils zstd mount util-linux"
build="gcc libc6-dev git make ca-certificates"
test="$build qemu-system-x86 openssh-client ipxe-qemu iproute2 busybox-static acl attr libcap2-bin libnfs-utils tftp-hpa atftp curl \
dnsmasq-base isc-dhcp-client debootstrap tcpdump e2fsprogs cpio procps strace nfs-ganesha nfs-ganesha-vfs openssh-server keepalived tshark"

case "${1:-}" in
run) want="$run $build" ;;
test) want="$run $test" ;;
*) echo "usage: $0 run|test" >&2; exit 2 ;;
esac

missing=
for package in $want; do
	if ! dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed'; then
		missing="$missing $package"
	fi
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" != 0 ]; then
		echo "these packages are missing, and only root can install them:$missing" >&2
		exit 1
	fi
	echo "installing:$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	# Services of these packages are not wanted: each is used by hand.
	policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f $policy' EXIT
		printf '#!/bin/sh\nexit 101\n' > $policy
		chmod 755 $policy
	fi
	# shellcheck disable=SC2086
	apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

# Go: any release that can fetch the toolchain which go.mod names.
good_go() { "$1" version 2>/dev/null | grep -Eq 'go1\.(2[1-9]|[3-9][0-9])'; }
if ! good_go go && ! good_go /usr/local/go/bin/go && ! good_go /usr/lib/go-1.23/bin/go; then
	if [ "$(id -u)" != 0 ]; then
		echo "Go 1.21 or newer is missing, and only root can install it" >&2
		exit 1
	fi
	echo "installing: Go from bookworm-backports"
	# The machine's own mirror has the backports, too.
	mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
		grep -v '^#' | grep -Eo 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')
	[ -n "$mirror" ] || { echo "no Debian mirror in /etc/apt; install Go 1.21 or newer by hand" >&2; exit 1; }
	list=$(mktemp)
	echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror bookworm-backports main" > "$list"
	options="-o Dir::Etc::sourceparts=- -o APT::Get::List-Cleanup=0"
	# shellcheck disable=SC2086
	DEBIAN_FRONTEND=noninteractive sh -c "
		apt-get update -qq -o Dir::Etc::sourcelist=$list $options
		apt-get install -y -qq --no-install-recommends -o Dir::Etc::sourcelist=$list $options -t bookworm-backports golang-1.23-go golang-1.23-src >/dev/null"
	rm -f "$list"
fi
