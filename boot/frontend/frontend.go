package frontend

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"sidus/boot/dhcp"
	boothttp "sidus/boot/http"
	"sidus/boot/node"
	"sidus/boot/pxe"
	"sidus/boot/tftp"
	"sidus/export/nfs"
	"sidus/export/portmap"
	"sidus/image"
)

// The services of a front end.
const (
	DHCP    = "dhcp"
	TFTP    = "tftp"
	HTTP    = "http"
	NFS     = "nfs"
	Portmap = "portmap"
)

// Services are all services, in the order in which they start.
var Services = []string{NFS, HTTP, TFTP, Portmap, DHCP}

// Default ports.
const (
	DefaultHTTPPort = 8080
	DefaultNFSPort  = 2049
)

// Server is a front end. Fill in the fields, then call Run once.
type Server struct {
	Manager *image.Manager // required
	// Registry keeps networks, nodes and sessions. It must have been made with
	// the site's key. Required.
	Registry *node.Registry
	SiteKey  [32]byte // authenticates file handles

	// Interface is the network interface to serve; "" serves every interface
	// that has an address in a network of the catalog.
	Interface string
	// Listen is the only address to listen on; the zero value is all IPv4
	// addresses of the interfaces that are served.
	Listen netip.Addr
	// Only names the services to run; nothing is all of them.
	Only []string
	// DHCPMode takes the place of the modes of all networks; "" leaves them.
	DHCPMode node.Mode
	HTTPPort int // 0: DefaultHTTPPort
	NFSPort  int // 0: DefaultNFSPort
	// Engine serves the roots; "" is node.EngineOwn. The kernel's has its own
	// ports.
	Engine node.Engine
	// Loaders says which boot loader each firmware gets.
	Loaders pxe.Loaders
	// KeepCapabilities leaves the process all that it is allowed to do.
	KeepCapabilities bool
	// Ready is called when every service listens. It may be nil.
	Ready func()
	Log   logrus.FieldLogger // nil: logrus' standard logger

	endpoints []endpoint
}

// runs tells whether a service is to run.
func (s *Server) runs(service string) bool {
	return len(s.Only) == 0 || slices.Contains(s.Only, service)
}

// Boots tells whether a service runs that boots machines. NFS alone leaves
// neither leases nor sessions behind.
func (s *Server) Boots() bool { return s.runs(DHCP) || s.runs(TFTP) || s.runs(HTTP) }

// Run serves until ctx ends, and returns nil then. Machines that are running
// go on when a front end comes back: their file handles and sessions outlive
// it. When the server ceases to be the primary, only NFS goes on.
func (s *Server) Run(ctx context.Context) error {
	if s.Log == nil {
		s.Log = logrus.StandardLogger()
	}
	if s.HTTPPort == 0 {
		s.HTTPPort = DefaultHTTPPort
	}
	if s.NFSPort == 0 {
		s.NFSPort = DefaultNFSPort
	}
	var err error
	if s.endpoints, err = s.findEndpoints(ctx); err != nil {
		return err
	}
	if err := s.checkEngine(ctx); err != nil {
		return err
	}
	var kernel *kernelEngine
	if s.Engine == node.EngineKernel && s.runs(NFS) {
		kernel = newKernelEngine(s)
		if err := kernel.start(ctx); err != nil {
			return err
		}
		defer kernel.stop(context.WithoutCancel(ctx))
	}
	if !s.KeepCapabilities && kernel == nil { // who exports also mounts
		if err := dropCapabilities(); err != nil {
			s.Log.WithError(err).Warn("serving with all capabilities")
		}
	}
	group, ctx := errgroup.WithContext(ctx)
	follower := node.NewFollower(s.Registry)
	files := newBootFiles(s.Manager)
	booter := &node.Booter{Registry: s.Registry, Entry: files.entry, HTTP: s.httpBase, NFS: s.nfsAddress}
	group.Go(func() error { return follower.Run(ctx) })

	listeners, err := s.listen(ctx)
	if err != nil {
		return err
	}
	// Whatever was not handed to a server when this function ends is closed.
	defer listeners.close()
	nfsServer := s.nfsServer(follower)
	if kernel != nil {
		booter.Root = kernel.root
		group.Go(func() error { return kernel.run(ctx) })
	}
	if s.ownNFS() {
		s.serveNFS(ctx, group, nfsServer, follower, listeners)
	}
	boots := newBooting(ctx, s, group)
	if s.runs(HTTP) {
		orders := node.NewOrders(s.Registry)
		boots.run(orders.Run)
		web := &boothttp.Server{Boot: booter, Files: files, Loaders: pxe.DebianLoaders, Reports: s.Registry, Orders: orders, Steps: follower,
			Metrics: nfsServer.WriteMetrics, Log: s.Log}
		for _, l := range listeners.http {
			boots.run(func(ctx context.Context) error { return web.Serve(ctx, l) })
		}
	}
	if s.runs(TFTP) {
		files := &tftp.Server{Loaders: pxe.DebianLoaders, Boot: booter, Files: files, Steps: follower, Log: s.Log}
		for _, conn := range listeners.tftp {
			boots.run(func(ctx context.Context) error { return files.Serve(ctx, conn) })
		}
	}
	if s.ownNFS() && s.runs(Portmap) {
		s.servePortmap(ctx, group)
	}
	if s.runs(DHCP) {
		s.serveDHCP(boots, follower)
	}
	listeners.handedOver()
	for _, e := range s.endpoints {
		s.Log.Infof("serving %s on %s (%s): %s", e.network, e.address, e.iface, s.describe())
	}
	if s.Ready != nil {
		s.Ready()
	}
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// describe lists what is served.
func (s *Server) describe() string {
	var list []string
	for _, service := range Services {
		if !s.runs(service) {
			continue
		}
		switch service {
		case HTTP:
			list = append(list, fmt.Sprintf("HTTP port %d", s.HTTPPort))
		case NFS:
			if s.Engine == node.EngineKernel {
				list = append(list, "NFS by the kernel")
				continue
			}
			list = append(list, fmt.Sprintf("NFS port %d", s.NFSPort))
		case Portmap:
			if s.ownNFS() {
				list = append(list, strings.ToUpper(service))
			}
		default:
			list = append(list, strings.ToUpper(service))
		}
	}
	return strings.Join(list, ", ")
}

func (s *Server) serveDHCP(boots *booting, follower *node.Follower) {
	directory := &node.Directory{Registry: s.Registry, Mode: s.DHCPMode, Loaders: s.Loaders, HTTP: func(subnet netip.Prefix) string {
		return s.httpBase(subnet.Addr())
	}}
	served := map[string]bool{}
	for _, e := range s.endpoints {
		if served[e.iface] {
			continue // one server for an interface with several addresses
		}
		served[e.iface] = true
		server := &dhcp.Server{Interface: e.iface, Address: e.address, Directory: directory, Leases: s.Registry, Steps: follower, Log: s.Log}
		boots.run(server.Serve)
	}
}

func (s *Server) serveNFS(ctx context.Context, group *errgroup.Group, server *nfs.Server, follower *node.Follower, listeners *listeners) {
	for _, l := range listeners.nfs {
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, nfs.ErrServerClosed) {
				return err
			}
			return nil
		})
	}
	group.Go(func() error {
		s.watch(ctx, server, follower)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopGrace)
		defer cancel()
		if err := server.Shutdown(grace); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	})
}

// stopGrace is how long calls under way may take when the front end stops.
const stopGrace = 3 * time.Second

// servePortmap makes NFS and MOUNT known at port 111. Machines booted by Sidus
// name their ports; `showmount` and mounts by hand ask.
func (s *Server) servePortmap(ctx context.Context, group *errgroup.Group) {
	port := uint16(s.NFSPort)
	for _, e := range s.endpoints {
		announcer := &portmap.Announcer{
			Mappings: []portmap.Mapping{
				{Program: nfsProgram, Version: 3, Protocol: portmap.TCP, Port: port},
				{Program: mountProgram, Version: 1, Protocol: portmap.TCP, Port: port},
				{Program: mountProgram, Version: 3, Protocol: portmap.TCP, Port: port},
			},
			Listen: e.address,
			Allow:  func(client netip.AddrPort) bool { return s.allowed(client.Addr()) },
			Logger: s.Log,
		}
		group.Go(func() error {
			if err := announcer.Run(ctx, nil); err != nil && ctx.Err() == nil {
				s.Log.WithError(err).Warn("no port mapper: showmount, and mounts that name no port, will not work")
			}
			return nil
		})
	}
}

// ONC RPC program numbers, RFC 1813.
const (
	nfsProgram   = 100003
	mountProgram = 100005
)

// listeners are the sockets of a front end until the servers have them.
type listeners struct {
	nfs, http []net.Listener
	tftp      []net.PacketConn
}

// listen opens the sockets of NFS, HTTP and TFTP: a port that is taken is
// found out before anything is answered.
func (s *Server) listen(ctx context.Context) (l *listeners, err error) {
	l = &listeners{}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	var config net.ListenConfig
	for _, e := range s.endpoints {
		if s.ownNFS() {
			listener, err := config.Listen(ctx, "tcp4", netip.AddrPortFrom(e.address, uint16(s.NFSPort)).String())
			if err != nil {
				return l, taken(err, "NFS", "--nfs-port")
			}
			l.nfs = append(l.nfs, listener)
		}
		if s.runs(HTTP) {
			listener, err := config.Listen(ctx, "tcp4", netip.AddrPortFrom(e.address, uint16(s.HTTPPort)).String())
			if err != nil {
				return l, taken(err, "HTTP", "--http-port")
			}
			l.http = append(l.http, listener)
		}
		if s.runs(TFTP) {
			conn, err := config.ListenPacket(ctx, "udp4", netip.AddrPortFrom(e.address, tftpPort).String())
			if err != nil {
				return l, taken(err, "TFTP", "--only (to leave TFTP out)")
			}
			l.tftp = append(l.tftp, conn)
		}
	}
	return l, nil
}

const tftpPort = 69

// taken says what to do about a port that another program has.
func taken(err error, service, option string) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("%s: %w: another program has the port; stop it (`ss -lnp` shows it) or use %s", service, err, option)
	}
	return fmt.Errorf("%s: %w", service, err)
}

// handedOver notes that the servers close the sockets now.
func (l *listeners) handedOver() { *l = listeners{} }

func (l *listeners) close() {
	for _, listener := range append(l.nfs, l.http...) {
		_ = listener.Close()
	}
	for _, conn := range l.tftp {
		_ = conn.Close()
	}
}
