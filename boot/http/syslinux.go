package http

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// PXELINUX (lpxelinux.0) reads the card through the firmware's UNDI driver, and
// waits for its interrupts. That of iPXE for virtio-net, which QEMU's machines
// have, keeps eight buffers for what arrives, and does not look at them again
// when it enables interrupts: if they have filled since it last did, because the
// host took the processor away just then, no interrupt follows, the card has no
// buffer, and the machine hears nothing any more (virtnet_irq in
// drivers/net/virtio-net.c, PXENV_UNDI_ISR in pxe_undi.c of iPXE); after five
// minutes it starts again. With fewer packets on their way than it has buffers,
// the next one wakes it. What is sent again counts, too: with three on their way
// a machine may stand still for three seconds (a probe of the tail, then one
// packet after 0.2, 0.6, 1.4 and 3 s, RFC 6298 with Linux' least timeout). It
// takes two to be answered without delay (RFC 1122, 4.2.3.2).
const (
	// fewWrite is what a TCP segment of an Ethernet holds, in bytes.
	fewWrite = 1460
	// fewBuffer is the size of the kernel's send buffer, in bytes: the least that
	// it takes is 4,608, its records included, which has room for three writes.
	fewBuffer = 1
)

// listener makes each connection one that can have few packets on its way.
type listener struct{ net.Listener }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if tcp, ok := c.(*net.TCPConn); ok && err == nil {
		return &conn{TCPConn: tcp}, nil
	}
	return c, err
}

// conn is a TCP connection. When few is set, it has few packets on its way.
type conn struct {
	*net.TCPConn
	few atomic.Bool
}

// Write implements net.Conn. The kernel appends a write to one that is not sent
// yet, whatever the size of its buffer (tcp_sendmsg_locked in net/ipv4/tcp.c of
// Linux), but not to one that ends a record.
func (c *conn) Write(p []byte) (n int, err error) {
	if !c.few.Load() {
		return c.TCPConn.Write(p)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	for n < len(p) {
		did, part := 0, p[n:min(len(p), n+fewWrite)]
		var sent error
		err := raw.Write(func(fd uintptr) bool {
			did, sent = unix.SendmsgN(int(fd), part, nil, nil, unix.MSG_EOR|unix.MSG_NOSIGNAL)
			return sent != unix.EAGAIN
		})
		n += did
		if err == nil && sent != nil && sent != unix.EINTR {
			err = &net.OpError{Op: "write", Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: sent}
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// ReadFrom implements io.ReaderFrom: the kernel sends files by itself.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	if c.few.Load() {
		return io.Copy(struct{ io.Writer }{c}, r)
	}
	return c.TCPConn.ReadFrom(r)
}

// connKey is the context's key of a request's connection.
type connKey struct{}

func withConn(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// spare has few packets on their way to a client that needs that.
func spare(r *http.Request) {
	c, ok := r.Context().Value(connKey{}).(*conn)
	if ok && strings.HasPrefix(r.UserAgent(), "Syslinux/") && c.SetWriteBuffer(fewBuffer) == nil {
		c.few.Store(true)
	}
}
