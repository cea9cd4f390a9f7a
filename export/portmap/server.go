package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Server is a port mapper.
type Server struct {
	// Mappings is what it tells. The port mapper itself is told, too.
	Mappings []Mapping
	// Allow decides who is answered. Nil answers everyone.
	Allow func(client netip.AddrPort) bool
	// Logger is where to log. Nil discards.
	Logger logrus.FieldLogger
}

const (
	maxMessage  = 4096
	idleTimeout = 30 * time.Second
	maxConns    = 128 // by TCP, at the same time
)

// Serve answers on both sockets until ctx is done or one fails, and closes
// them. It returns nil after ctx is done.
func (s *Server) Serve(ctx context.Context, udp *net.UDPConn, tcp net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		_ = udp.Close()
		_ = tcp.Close()
	})
	defer stop()
	mappings := withSelf(s.Mappings, udp, tcp)
	var errUDP, errTCP error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer cancel()
		errUDP = s.serveUDP(udp, mappings)
	})
	wg.Go(func() {
		defer cancel()
		errTCP = s.serveTCP(ctx, tcp, mappings)
	})
	wg.Wait()
	for _, err := range []error{errUDP, errTCP} {
		if !errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("portmap: %w", err)
		}
	}
	return nil
}

// withSelf adds the port mapper, in its three versions.
func withSelf(mappings []Mapping, udp *net.UDPConn, tcp net.Listener) []Mapping {
	all := slices.Clone(mappings)
	for version := uint32(2); version <= 4; version++ {
		all = append(all,
			Mapping{program, version, TCP, tcp.Addr().(*net.TCPAddr).AddrPort().Port()},
			Mapping{program, version, UDP, udp.LocalAddr().(*net.UDPAddr).AddrPort().Port()})
	}
	return all
}

func (s *Server) allowed(client netip.AddrPort) bool {
	return s.Allow == nil || s.Allow(netip.AddrPortFrom(client.Addr().Unmap(), client.Port()))
}

func (s *Server) serveUDP(udp *net.UDPConn, mappings []Mapping) error {
	bound := udp.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	buf := make([]byte, maxMessage)
	for {
		n, client, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			s.logger().WithError(err).Debug("portmap: receive")
			continue
		}
		if !s.allowed(client) {
			continue
		}
		local := bound
		if local.IsUnspecified() {
			local = localAddr(client)
		}
		if reply := answer(mappings, buf[:n], local); reply != nil {
			if _, err := udp.WriteToUDPAddrPort(reply, client); err != nil {
				s.logger().WithError(err).WithField("client", client).Debug("portmap: send")
			}
		}
	}
}

// localAddr returns the address from which packets to a client go out.
// Connecting a UDP socket sends nothing.
func localAddr(client netip.AddrPort) netip.Addr {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(client))
	if err != nil {
		return netip.IPv4Unspecified()
	}
	defer func() { _ = conn.Close() }()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
}

func (s *Server) serveTCP(ctx context.Context, l net.Listener, mappings []Mapping) error {
	places := make(chan struct{}, maxConns)
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() && ctx.Err() == nil {
				s.logger().WithError(err).Warn("portmap: no connection can be accepted")
				select {
				case <-time.After(100 * time.Millisecond):
				case <-ctx.Done():
				}
				continue
			}
			return err
		}
		client := conn.RemoteAddr().(*net.TCPAddr).AddrPort()
		select {
		case places <- struct{}{}:
		default:
			_ = conn.Close()
			continue
		}
		if !s.allowed(client) {
			_ = conn.Close()
			<-places
			continue
		}
		wg.Go(func() {
			defer func() { <-places }()
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			defer func() { _ = conn.Close() }()
			serveConn(conn, mappings)
		})
	}
}

// serveConn answers records of one or more fragments (RFC 5531, section 11).
func serveConn(conn net.Conn, mappings []Mapping) {
	local := conn.LocalAddr().(*net.TCPAddr).AddrPort().Addr()
	for {
		_ = conn.SetDeadline(time.Now().Add(idleTimeout))
		message, err := readRecord(conn)
		if err != nil {
			return
		}
		reply := answer(mappings, message, local)
		if reply == nil {
			continue
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(reply))), reply...)); err != nil {
			return
		}
	}
}

const lastFragment = 1 << 31

// readRecord reads a record of at most maxMessage bytes and 64 fragments.
func readRecord(r io.Reader) ([]byte, error) {
	var message []byte
	for range 64 {
		var mark [4]byte
		if _, err := io.ReadFull(r, mark[:]); err != nil {
			return nil, err
		}
		header := binary.BigEndian.Uint32(mark[:])
		size := int(header &^ lastFragment)
		if size > maxMessage-len(message) {
			return nil, errors.New("record is too long")
		}
		start := len(message)
		message = append(message, make([]byte, size)...)
		if _, err := io.ReadFull(r, message[start:]); err != nil {
			return nil, err
		}
		if header&lastFragment != 0 {
			return message, nil
		}
	}
	return nil, errors.New("record has too many fragments")
}

func (s *Server) logger() logrus.FieldLogger {
	if s.Logger != nil {
		return s.Logger
	}
	discard := logrus.New()
	discard.SetOutput(io.Discard)
	return discard
}
