package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// DnsmasqOptions describes a DHCP and TFTP server that is not ours.
type DnsmasqOptions struct {
	// Bridge is the segment that it serves. The lab must have an address on it.
	Bridge string
	// First and Last bound the addresses that it gives.
	First, Last netip.Addr
	// Lease is how long an address is given for; 0 means an hour, the least is
	// two minutes.
	Lease time.Duration
	// TFTPRoot is the directory that is served by TFTP; "" means no TFTP.
	TFTPRoot string
	// BootFile is the boot loader's name in TFTPRoot; "" means none.
	BootFile string
	// Args are added to its command line ("--dhcp-host=...").
	Args []string
}

// Dnsmasq starts dnsmasq in the lab, for tests of what boots without our own
// DHCP server, or beside another one. It needs the program dnsmasq.
func (l *Lab) Dnsmasq(ctx context.Context, opts DnsmasqOptions) (*Process, error) {
	l.mu.Lock()
	bridge := l.bridges[opts.Bridge]
	l.mu.Unlock()
	if bridge == nil || !bridge.Prefix.IsValid() {
		return nil, fmt.Errorf("lab %s: dnsmasq needs a bridge with an address, %q is none", l.name, opts.Bridge)
	}
	if opts.Lease == 0 {
		opts.Lease = time.Hour
	}
	args := []string{
		"--keep-in-foreground", "--no-daemon", "--conf-file=/dev/null", "--log-dhcp", "--port=0",
		"--user=root", "--no-ping", "--bind-interfaces", "--interface=" + opts.Bridge,
		"--dhcp-authoritative", "--dhcp-leasefile=" + filepath.Join(l.dir, "dnsmasq."+opts.Bridge+".leases"),
		fmt.Sprintf("--dhcp-range=%s,%s,%s,%d", opts.First, opts.Last, netmask(bridge.Prefix), int(opts.Lease.Seconds())),
	}
	if opts.TFTPRoot != "" {
		args = append(args, "--enable-tftp", "--tftp-root="+opts.TFTPRoot)
	}
	if opts.BootFile != "" {
		args = append(args, "--dhcp-boot="+opts.BootFile)
	}
	p, err := l.Start("dnsmasq", append(args, opts.Args...)...)
	if err != nil {
		return nil, err
	}
	if _, _, err := p.Output.WaitFor(ctx, 0, dnsmasqReady); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("lab %s: dnsmasq: %w", l.name, err)
	}
	return p, nil
}

func netmask(p netip.Prefix) string {
	return net.IP(net.CIDRMask(p.Bits(), 32)).String()
}

// GaneshaOptions describes an NFSv3 server that is not ours.
type GaneshaOptions struct {
	// Dir is the directory that is exported, read-only, under its own name.
	Dir string
	// Address, NFSPort and MountPort are where NFS and MOUNT answer.
	Address            netip.Addr
	NFSPort, MountPort int
	// NoACL leaves the NFSACL protocol out.
	NoACL bool
}

// Ganesha starts nfs-ganesha in the lab, which can serve the root of machines.
// It needs the packages nfs-ganesha-vfs and rpcbind.
func (l *Lab) Ganesha(ctx context.Context, opts GaneshaOptions) (*Process, error) {
	config := filepath.Join(l.dir, "ganesha.conf")
	text := fmt.Sprintf(`NFS_CORE_PARAM { Protocols = 3; NFS_Port = %d; MNT_Port = %d; Bind_addr = %s;
	Enable_NLM = false; Enable_RQUOTA = false; Enable_NFSACL = %t; fsid_device = true; }
NFSV4 { Graceless = true; RecoveryRoot = %q; }
EXPORT { Export_Id = 1; Path = %q; Pseudo = "/"; Protocols = 3; Transports = TCP; Access_Type = RO;
	Squash = None; SecType = sys; FSAL { Name = VFS; } }
LOG { Default_Log_Level = EVENT; }
`, opts.NFSPort, opts.MountPort, opts.Address, !opts.NoACL, l.dir, opts.Dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		return nil, err
	}
	// It does not start unless it can register with a port mapper, which is
	// found by its socket in /run: both get a /run of their own.
	p, err := l.Start("unshare", "--mount", "sh", "-c", `set -e
mount -t tmpfs tmpfs /run
rpcbind -f &
for i in 1 2 3 4 5 6 7 8 9 10; do
	[ ! -S /run/rpcbind.sock ] || break
	sleep 0.2
done
exec ganesha.nfsd -F -L /dev/stdout -f "$1" -p /run/ganesha.pid`, "sh", config)
	if err != nil {
		return nil, err
	}
	if _, _, err := p.Output.WaitFor(ctx, 0, ganeshaReady); err != nil {
		_ = p.Close()
		return nil, fmt.Errorf("lab %s: ganesha: %w", l.name, err)
	}
	return p, nil
}

// PXELinux makes a directory for a TFTP server in the lab's directory: the
// boot loader PXELINUX and a menu that boots the kernel, with the initrd and
// the command line, from the same server. It needs the packages pxelinux and
// syslinux-common.
func (l *Lab) PXELinux(kernel, initrd, commandLine string) (string, error) {
	dir := filepath.Join(l.dir, "tftp")
	if err := os.MkdirAll(filepath.Join(dir, "pxelinux.cfg"), 0o755); err != nil {
		return "", err
	}
	menu := strings.Join([]string{"SERIAL 0 115200", "DEFAULT sidus", "LABEL sidus", " KERNEL kernel", " INITRD initrd", " APPEND " + commandLine, ""}, "\n")
	if err := os.WriteFile(filepath.Join(dir, "pxelinux.cfg", "default"), []byte(menu), 0o644); err != nil {
		return "", err
	}
	for name, source := range map[string]string{
		"pxelinux.0":  "/usr/lib/PXELINUX/pxelinux.0",
		"ldlinux.c32": "/usr/lib/syslinux/modules/bios/ldlinux.c32",
		"kernel":      kernel,
		"initrd":      initrd,
	} {
		data, err := os.ReadFile(source)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return "", err
		}
	}
	return dir, nil
}

var (
	dnsmasqReady = regexp.MustCompile(`DHCP, IP range|DHCP, sockets bound`)
	ganeshaReady = regexp.MustCompile(`NFS SERVER INITIALIZED`)
)
