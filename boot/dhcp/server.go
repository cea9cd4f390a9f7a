package dhcp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"sidus/boot/pxe"
)

// Server answers the DHCP clients of one interface. Its fields must not be
// changed after Serve was called.
type Server struct {
	// Interface is the network interface's name. It must be set.
	Interface string
	// Address is the server's own address; invalid means the first IPv4
	// address of the interface.
	Address netip.Addr
	// Directory knows networks and machines. It must be set.
	Directory Directory
	// Leases keeps leases; nil means in memory, good for a proxy only.
	Leases LeaseStore
	// Prober tells which addresses are in use; nil means a WireProber.
	Prober Prober
	// Steps is told how far boots have got; nil means nobody.
	Steps pxe.Stepper
	// Log is written to; nil means nowhere.
	Log logrus.FieldLogger
	// FindWait is how long another server is looked for before addresses are
	// given; 0 means as FindServer says.
	FindWait time.Duration
	// Workers is the number of packets that are answered at the same time;
	// 0 means 128.
	Workers int

	stats counters
	// find is FindServer; tests put it on a thread of the right namespace.
	find func(ctx context.Context, ifname string, wait time.Duration) (netip.Addr, error)
}

// Stats returns what was counted so far.
func (s *Server) Stats() Stats { return s.stats.read() }

// offPoll is how often a server whose network is off looks whether it still
// is; findAgain how often one that was found in full mode beside another
// server looks whether that one has gone.
const (
	offPoll   = 5 * time.Second
	findAgain = time.Minute
)

// Serve answers until ctx ends, and returns nil then. In a network in full
// mode it first looks for another DHCP server, and if there is one returns an
// error that names its address and wraps ErrOtherServer.
func (s *Server) Serve(ctx context.Context) error {
	if err := s.serve(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("dhcp on %s: %w", s.Interface, err)
	}
	return nil
}

func (s *Server) serve(ctx context.Context) error {
	if s.Directory == nil {
		return errors.New("no directory of networks was given")
	}
	log := s.Log
	if log == nil {
		discard := logrus.New()
		discard.SetOutput(io.Discard)
		log = discard
	}
	log = log.WithField("interface", s.Interface)
	self, err := s.address()
	if err != nil {
		return err
	}
	mode, err := s.mode(ctx, self, log)
	if err != nil {
		return err
	}

	// A proxy on the same machine as the server that gives addresses must share
	// the port with it. Nobody may share it in full mode.
	var conns []*ipv4.PacketConn
	for _, port := range []int{serverPort, bootPort} {
		conn, err := listen(ctx, s.Interface, port, mode != Full)
		if err != nil {
			closeAll(conns)
			return err
		}
		conns = append(conns, conn)
	}
	defer closeAll(conns)

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	guard := &guard{server: s, log: log}
	if mode == Full {
		if err := guard.look(ctx); err != nil {
			return err
		}
	}
	e := s.engine(self, log)
	e.full = func() bool { return guard.allow(ctx) }
	log.WithFields(logrus.Fields{"mode": mode, "address": self}).Info("dhcp: answering")

	work := make(chan packet, 512)
	var workers, readers sync.WaitGroup
	for range or(s.Workers, 128) {
		workers.Go(func() {
			for p := range work {
				s.answer(ctx, e, p)
			}
		})
	}
	stop := context.AfterFunc(ctx, func() { closeAll(conns) })
	defer stop()
	for i, port := range []int{serverPort, bootPort} {
		readers.Go(func() { cancel(s.read(ctx, conns[i], port, work)) })
	}
	readers.Wait()
	close(work)
	workers.Wait()
	guard.wait()
	return context.Cause(ctx)
}

func (s *Server) engine(self netip.Addr, log logrus.FieldLogger) *engine {
	e := &engine{
		self: self, dir: s.Directory, leases: s.Leases, prober: s.Prober, steps: s.Steps,
		log: newRateLog(log, time.Now), now: time.Now, stats: &s.stats,
		offers: map[netip.Addr]offer{}, busy: map[string]bool{},
	}
	if e.leases == nil {
		e.leases = &Memory{}
	}
	if e.prober == nil {
		e.prober = WireProber{Interface: s.Interface}
	}
	return e
}

// mode returns the mode of the interface's network, once it is not off.
func (s *Server) mode(ctx context.Context, self netip.Addr, log logrus.FieldLogger) (Mode, error) {
	for said := false; ; said = true {
		n, err := s.Directory.Network(ctx, self)
		switch {
		case errors.Is(err, ErrNoNetwork):
			// Networks behind relays may be served all the same.
			return Proxy, nil
		case err != nil:
			return "", err
		case n.Mode == "":
			return Proxy, nil
		case n.Mode != Off:
			return n.Mode, nil
		}
		if !said {
			log.WithField("network", n.Name).Info("dhcp: off in this network")
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(offPoll):
		}
	}
}

// address returns the address that the server goes by.
func (s *Server) address() (netip.Addr, error) {
	ifi, err := net.InterfaceByName(s.Interface)
	if err != nil {
		return netip.Addr{}, err
	}
	if s.Address.IsValid() {
		return s.Address.Unmap(), nil
	}
	addrs, err := ifi.Addrs()
	if err != nil {
		return netip.Addr{}, err
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if v4 := addrOf(n.IP); v4.IsValid() {
				return v4, nil
			}
		}
	}
	return netip.Addr{}, errors.New("the interface has no IPv4 address")
}

// listen opens a UDP socket that hears one interface only.
func listen(ctx context.Context, ifname string, port int, share bool) (*ipv4.PacketConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(raw uintptr) {
			fd := int(raw)
			failed = unix.BindToDevice(fd, ifname)
			if failed == nil {
				failed = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 1)
			}
			if failed == nil && share {
				failed = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			}
		})
		return errors.Join(err, failed)
	}}
	conn, err := lc.ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", port))
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fmt.Errorf("UDP port %d is taken by another program on this machine: %w", port, err)
	}
	if err != nil {
		return nil, err
	}
	return ipv4.NewPacketConn(conn), nil
}

func closeAll(conns []*ipv4.PacketConn) {
	for _, c := range conns {
		_ = c.Close()
	}
}

// packet is one that waits to be answered.
type packet struct {
	raw  []byte
	from netip.AddrPort
	port int
	conn *ipv4.PacketConn
}

func (s *Server) read(ctx context.Context, conn *ipv4.PacketConn, port int, work chan<- packet) error {
	buf := make([]byte, 65536)
	for {
		n, _, from, err := conn.ReadFrom(buf)
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return err
			}
			// The interface may be down for a while.
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Second):
			}
			continue
		}
		s.stats.received.Add(1)
		udp, ok := from.(*net.UDPAddr)
		if !ok {
			continue
		}
		source := udp.AddrPort()
		p := packet{raw: append([]byte(nil), buf[:n]...), from: netip.AddrPortFrom(source.Addr().Unmap(), source.Port()), port: port, conn: conn}
		select {
		case work <- p:
		default:
			s.stats.overload.Add(1)
		}
	}
}

// answer deals with one packet. A packet that makes the code panic is dropped:
// no packet may take DHCP away from a whole network.
func (s *Server) answer(ctx context.Context, e *engine, p packet) {
	defer func() {
		if r := recover(); r != nil {
			s.stats.malformed.Add(1)
			e.log.warn("panic", "dhcp: packet dropped: panic: %v", r)
		}
	}()
	m, err := dhcpv4.FromBytes(p.raw)
	if err != nil {
		s.stats.malformed.Add(1)
		e.log.warn("malformed", "dhcp: malformed packet from %s dropped: %v", p.from, err)
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	a := e.handle(ctx, m, p.from, p.port)
	if a == nil {
		return
	}
	from := &ipv4.ControlMessage{Src: e.self.AsSlice()}
	if _, err := p.conn.WriteTo(a.packet.ToBytes(), from, net.UDPAddrFromAddrPort(a.to)); err != nil {
		e.log.error("send", err, "dhcp: cannot answer %s", m.ClientHWAddr)
	}
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// guard keeps addresses from being given while another server gives them.
type guard struct {
	server *Server
	log    logrus.FieldLogger

	alone   atomic.Bool
	mu      sync.Mutex
	looked  time.Time
	looking sync.WaitGroup
}

// look looks for another server.
func (g *guard) look(ctx context.Context) error {
	g.log.Info("dhcp: looking for another DHCP server before giving addresses")
	find := g.server.find
	if find == nil {
		find = FindServer
	}
	other, err := find(ctx, g.server.Interface, g.server.FindWait)
	if err != nil {
		return err
	}
	if other.IsValid() {
		return fmt.Errorf("%w: %s; use proxy mode beside it", ErrOtherServer, other)
	}
	g.alone.Store(true)
	return nil
}

// allow tells whether addresses may be given. If it was not looked for
// another server yet, for the network was put into full mode under a running
// server, that is begun.
func (g *guard) allow(ctx context.Context) bool {
	if g.alone.Load() {
		return true
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.looked) < findAgain {
		return false
	}
	g.looked = time.Now()
	g.looking.Go(func() {
		if err := g.look(ctx); err != nil {
			g.log.WithError(err).Error("dhcp: giving no addresses")
		}
	})
	return false
}

func (g *guard) wait() { g.looking.Wait() }
