package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/export/internal/xdr"
)

// Announcer makes programs known on this machine.
type Announcer struct {
	// Mappings is what to make known.
	Mappings []Mapping
	// Listen is the address to listen on, without a port. The zero value means
	// all addresses.
	Listen netip.Addr
	// Port is the port to listen on, or to look for a port mapper at. Zero
	// means 111.
	Port uint16
	// Allow and Logger are those of Server.
	Allow  func(client netip.AddrPort) bool
	Logger logrus.FieldLogger
}

// ErrTaken is wrapped by errors that say that somebody else has registered
// one of the programs with the machine's port mapper.
var ErrTaken = errors.New("registered by another program already")

// Run makes the programs known until ctx is done: it serves on the port if
// that is free, and registers with the port mapper that runs there if not. It
// calls ready, if that is not nil, when the programs are known. The error
// wraps ErrTaken if that port mapper knows another's port for one of them; then
// nothing was changed there.
func (a *Announcer) Run(ctx context.Context, ready func()) error {
	port := a.Port
	if port == 0 {
		port = Port
	}
	host := ""
	if a.Listen.IsValid() {
		host = a.Listen.String()
	}
	addr := net.JoinHostPort(host, strconv.Itoa(int(port)))
	s := &Server{Mappings: a.Mappings, Allow: a.Allow, Logger: a.Logger}
	udp, tcp, err := listen(ctx, addr)
	switch {
	case err == nil:
		if ready != nil {
			ready()
		}
		return s.Serve(ctx, udp, tcp)
	case !errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("portmap: %w", err)
	}
	if !a.Listen.IsValid() || a.Listen.IsUnspecified() {
		host = "127.0.0.1"
	}
	r := registrar{addr: net.JoinHostPort(host, strconv.Itoa(int(port)))}
	undo, err := r.register(ctx, a.Mappings)
	if err != nil {
		return fmt.Errorf("portmap: the port mapper at %s: %w", r.addr, err)
	}
	s.logger().WithField("address", r.addr).Info("registered with the port mapper that runs already")
	if ready != nil {
		ready()
	}
	<-ctx.Done()
	limit, cancel := context.WithTimeout(context.WithoutCancel(ctx), registerTimeout)
	defer cancel()
	if err := undo(limit); err != nil {
		s.logger().WithError(err).Warn("programs stay registered with the port mapper")
	}
	return nil
}

func listen(ctx context.Context, addr string) (*net.UDPConn, net.Listener, error) {
	var c net.ListenConfig
	tcp, err := c.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	udp, err := c.ListenPacket(ctx, "udp", tcp.Addr().String())
	if err != nil {
		_ = tcp.Close()
		return nil, nil, err
	}
	return udp.(*net.UDPConn), tcp, nil
}

const registerTimeout = 5 * time.Second

// registrar registers programs with a port mapper, by version 2 over TCP.
type registrar struct{ addr string }

// register registers mappings, and returns what takes them back. A mapping
// that is registered already, by a server that was killed, stays.
func (r registrar) register(ctx context.Context, mappings []Mapping) (undo func(context.Context) error, err error) {
	known, err := r.dump(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range mappings {
		for _, k := range known {
			if k.Program == m.Program && k.Version == m.Version && k.Protocol == m.Protocol && k.Port != m.Port {
				return nil, fmt.Errorf("program %d version %d is at port %d: %w", k.Program, k.Version, k.Port, ErrTaken)
			}
		}
	}
	var done []Mapping
	undo = func(ctx context.Context) error {
		var first error
		for _, m := range done {
			if _, err := r.change(ctx, procUnset, m); err != nil && first == nil {
				first = err
			}
		}
		return first
	}
	for _, m := range mappings {
		ok, err := r.change(ctx, procSet, m)
		if err == nil && !ok && !contains(known, m) {
			err = fmt.Errorf("program %d version %d: registration refused", m.Program, m.Version)
		}
		if err != nil {
			return nil, errors.Join(err, undo(ctx))
		}
		done = append(done, m)
	}
	return undo, nil
}

func contains(all []Mapping, m Mapping) bool {
	for _, k := range all {
		if k == m {
			return true
		}
	}
	return false
}

// dump asks what is registered.
func (r registrar) dump(ctx context.Context) ([]Mapping, error) {
	reply, err := r.call(ctx, procDump, nil)
	if err != nil {
		return nil, err
	}
	var all []Mapping
	for reply.Bool() {
		all = append(all, Mapping{reply.Uint32(), reply.Uint32(), reply.Uint32(), uint16(reply.Uint32())})
	}
	if reply.Bad {
		return nil, errors.New("malformed answer to DUMP")
	}
	return all, nil
}

// change calls SET or UNSET.
func (r registrar) change(ctx context.Context, proc uint32, m Mapping) (bool, error) {
	reply, err := r.call(ctx, proc, xdr.AppendUint32(nil, m.Program, m.Version, m.Protocol, uint32(m.Port)))
	if err != nil {
		return false, err
	}
	ok := reply.Bool()
	if reply.Bad {
		return false, errors.New("malformed answer")
	}
	return ok, nil
}

func (r registrar) call(ctx context.Context, proc uint32, args []byte) (*xdr.Decoder, error) {
	ctx, cancel := context.WithTimeout(ctx, registerTimeout)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	const xid = 1
	message := append(xdr.AppendUint32(nil, xid, 0, 2, program, 2, proc, 0, 0, 0, 0), args...)
	if _, err := conn.Write(append(binary.BigEndian.AppendUint32(nil, lastFragment|uint32(len(message))), message...)); err != nil {
		return nil, err
	}
	record, err := readRecord(conn)
	if err != nil {
		return nil, err
	}
	reply := &xdr.Decoder{Data: record}
	header := [6]uint32{reply.Uint32(), reply.Uint32(), reply.Uint32(), reply.Uint32(), reply.Uint32(), reply.Uint32()}
	if reply.Bad || header != [6]uint32{xid, 1, 0, 0, 0, success} {
		return nil, fmt.Errorf("call of procedure %d was refused", proc)
	}
	return reply, nil
}
