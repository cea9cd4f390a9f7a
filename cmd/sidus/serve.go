package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/boot/frontend"
	"sidus/boot/node"
	"sidus/boot/pxe"
)

func serveCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "boot machines: DHCP, TFTP, HTTP and NFS",
		Description: describe("Serves the networks of the catalog until it is stopped. A promotion, a new node or a changed network\n"+
			"counts from the next request on; nothing is restarted. Machines that run go on when a server that was\n"+
			"stopped comes back. Nothing answers DHCP in a network that was not added, and there it only adds what to\n"+
			"boot (mode proxy) unless the network says `full`; before addresses are given, another DHCP server is\n"+
			"looked for, and if there is one Sidus refuses.\n"+
			"With --nfs-engine kernel the kernel's NFS server, which must run, serves the roots: snapshots are exported by\n"+
			"exportfs, nothing is restarted. Only Sidus' own engine lets another server take over machines that run. The\n"+
			"engine cannot be changed while machines run.",
			"sidus serve", "sidus serve --interface eth1", "sidus serve --only http,nfs --listen 10.0.0.1"),
		Flags: reads(
			&cli.StringFlag{Name: "interface", Aliases: []string{"i"}, Usage: "serve the network interface `IF`; else every one with an address in a network of the catalog"},
			&cli.StringFlag{Name: "listen", Usage: "listen on the `ADDRESS` only"},
			&cli.StringFlag{Name: "only", Usage: "run these `SERVICES` only: dhcp,tftp,http,nfs,portmap"},
			&cli.StringFlag{Name: "dhcp", Usage: "DHCP `MODE` of all networks: full, proxy or off"},
			&cli.IntFlag{Name: "http-port", Value: frontend.DefaultHTTPPort, Usage: "the TCP port `N` of HTTP"},
			&cli.IntFlag{Name: "nfs-port", Value: frontend.DefaultNFSPort, Usage: "the TCP port `N` of NFS"},
			&cli.StringFlag{Name: "nfs-engine", Value: string(node.EngineOwn), Usage: "what serves the roots: `ENGINE` sidus, or kernel for the kernel's NFS server (no fail-over)"},
			&cli.StringFlag{Name: "bios-loader", Value: pxe.DefaultBIOS, Usage: "what BIOS machines load: `FILE`, such as pxelinux.0 or undionly.kpxe"},
			&cli.StringFlag{Name: "efi-loader", Value: pxe.DefaultEFI, Usage: "what UEFI machines load: `FILE`, such as ipxe.efi"},
			&cli.BoolFlag{Name: "no-ipxe-script", Usage: "give firmware that is iPXE the same loader as others"},
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			server, err := newFrontEnd(c, s)
			if err != nil {
				return err
			}
			// The leases and sessions of a server that is no primary would be lost.
			if server.Boots() {
				if err := s.manager.Writable(ctx); err != nil {
					return fmt.Errorf("%w; until then it serves NFS only (--only nfs)", err)
				}
			}
			logrus.Infof("sidus %s serves %s", version, s.layout.Dir)
			err = server.Run(ctx)
			logrus.Info("stopped")
			return err
		}),
	}
}

func newFrontEnd(c *cli.Context, s *site) (*frontend.Server, error) {
	key, err := s.siteKey()
	if err != nil {
		return nil, err
	}
	log := logrus.StandardLogger()
	server := &frontend.Server{
		Manager:   s.manager,
		Registry:  node.New(s.catalog, node.Options{SiteKey: key, Log: log}),
		SiteKey:   key,
		Interface: c.String("interface"),
		DHCPMode:  node.Mode(c.String("dhcp")),
		HTTPPort:  c.Int("http-port"),
		NFSPort:   c.Int("nfs-port"),
		Engine:    node.Engine(c.String("nfs-engine")),
		Loaders:   pxe.Loaders{BIOS: c.String("bios-loader"), EFI: c.String("efi-loader"), NoScript: c.Bool("no-ipxe-script")},
		Log:       log,
		// Snapshots of ZFS and LVM are mounted when they are first asked for.
		KeepCapabilities: s.config.mounts(),
		Ready:            notifyReady,
	}
	if text := c.String("listen"); text != "" {
		if server.Listen, err = netip.ParseAddr(text); err != nil {
			return nil, usagef("--listen %q: it is no address", text)
		}
	}
	for _, service := range listOption(c, "only") {
		if !slices.Contains(frontend.Services, service) {
			return nil, usagef("--only %s: the services are %s", service, strings.Join(frontend.Services, ", "))
		}
		server.Only = append(server.Only, service)
	}
	if server.DHCPMode != "" && !slices.Contains([]node.Mode{node.ModeFull, node.ModeProxy, node.ModeOff}, server.DHCPMode) {
		return nil, usagef("--dhcp %s: it is full, proxy or off", server.DHCPMode)
	}
	if !slices.Contains(frontend.Engines, server.Engine) {
		return nil, usagef("--nfs-engine %s: it is sidus or kernel", server.Engine)
	}
	for name, port := range map[string]int{"http-port": server.HTTPPort, "nfs-port": server.NFSPort} {
		if port < 1 || port > 65535 {
			return nil, usagef("--%s %d: a port is 1 to 65535", name, port)
		}
	}
	return server, nil
}

// notifyReady tells systemd that the service is up (sd_notify(3)).
func notifyReady() {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return
	}
	if err := sendNotification(socket, "READY=1"); err != nil {
		logrus.WithError(err).Warn("systemd was not told that the service is up")
	}
}
