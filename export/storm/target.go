package storm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sidus/export/internal/xdr"
)

// Target is the server that is to be measured.
type Target struct {
	Host string // a name or an address
	Path string // what is mounted, such as /channel/default
	// NFSPort and MountPort are TCP ports. 0 asks the server's port mapper.
	NFSPort, MountPort int
}

// resolve finds the addresses of NFS and MOUNT.
func (t Target) resolve(ctx context.Context) (nfs, mount netip.AddrPort, err error) {
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", t.Host)
	if err != nil {
		return nfs, mount, err
	}
	address := addresses[0].Unmap()
	find := func(port int, program uint32) (netip.AddrPort, error) {
		if port == 0 {
			if port, err = portOf(ctx, netip.AddrPortFrom(address, 111), program); err != nil {
				return netip.AddrPort{}, err
			}
		}
		return netip.AddrPortFrom(address, uint16(port)), nil
	}
	if nfs, err = find(t.NFSPort, nfsProgram); err != nil {
		return nfs, mount, fmt.Errorf("port of NFS on %s: %w", t.Host, err)
	}
	if mount, err = find(t.MountPort, mountProgram); err != nil {
		return nfs, mount, fmt.Errorf("port of MOUNT on %s: %w", t.Host, err)
	}
	return nfs, mount, nil
}

// portOf asks a port mapper (RFC 1833, section 3, PMAPPROC_GETPORT).
func portOf(ctx context.Context, mapper netip.AddrPort, program uint32) (int, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", mapper.String())
	if err != nil {
		return 0, fmt.Errorf("%w (no port mapper answers: name the ports)", err)
	}
	defer func() { _ = conn.Close() }()
	const mapperProgram, mapperVersion, getPort, protocolTCP = 100000, 2, 3, 6
	reply, err := ask(conn, mapperProgram, mapperVersion, getPort, xdr.AppendUint32(nil, program, version, protocolTCP, 0))
	if err != nil {
		return 0, err
	}
	port := reply.Uint32()
	if reply.Bad || port == 0 || port > 65535 {
		return 0, errors.New("the port mapper knows of none for version 3 by TCP")
	}
	return int(port), nil
}

// askLimit is how long a single question may take.
const askLimit = time.Minute

// askXID is the ID of a single question. No other call on the same connection
// has it.
const askXID = 1

// ask makes one call on a connection on which nothing else is under way.
func ask(conn net.Conn, program, vers, proc uint32, arguments []byte) (*xdr.Decoder, error) {
	_ = conn.SetDeadline(time.Now().Add(askLimit))
	defer func() { _ = conn.SetDeadline(time.Time{}) }()
	m := appendCall(nil, askXID, program, vers, proc, 0, 0)
	m = append(m, arguments...)
	be.PutUint32(m, lastFragment|uint32(len(m)-4))
	if _, err := conn.Write(m); err != nil {
		return nil, err
	}
	var b []byte
	for part := make([]byte, 4096); ; {
		n, err := conn.Read(part)
		if err != nil {
			return nil, err
		}
		b = append(b, part[:n]...)
		record, used, err := takeRecord(b)
		if err != nil {
			return nil, err
		}
		if used > 0 {
			d := &xdr.Decoder{Data: record}
			d.Uint32()
			return d, replyHead(d)
		}
	}
}

// replyHead takes what stands before the results in a reply (RFC 5531,
// section 9), after the transaction ID.
func replyHead(d *xdr.Decoder) error {
	kind, denied := d.Uint32(), d.Uint32()
	if d.Bad || kind != 1 {
		return errNoRPC
	}
	if denied != 0 {
		if why, what := d.Uint32(), d.Uint32(); why == 1 {
			return fmt.Errorf("the server does not accept our credentials (authentication error %d)", what)
		}
		return errors.New("the server denies the call")
	}
	d.Uint32() // the verifier's flavor
	d.Opaque(400)
	accepted := d.Uint32()
	if d.Bad {
		return errNoRPC
	}
	if accepted != 0 {
		return fmt.Errorf("the server does not perform the call (RPC status %d)", accepted)
	}
	return nil
}

// appendCall appends a record mark, to be filled in, and a call with AUTH_SYS
// up to its arguments (RFC 5531, section 9 and appendix A).
func appendCall(b []byte, xid, program, vers, proc, uid, gid uint32) []byte {
	b = xdr.AppendUint32(b, 0, xid, 0, 2, program, vers, proc, 1, 28, 0)
	b = xdr.AppendOpaque(b, []byte("storm"))
	return xdr.AppendUint32(b, uid, gid, 0, 0, 0)
}

// mount asks for the handle of the target's path (RFC 1813, section 5.2.1).
func mount(conn net.Conn, path string) ([]byte, error) {
	reply, err := ask(conn, mountProgram, version, mountProcMnt, xdr.AppendOpaque(nil, []byte(path)))
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", path, err)
	}
	if status := reply.Uint32(); status != 0 {
		return nil, fmt.Errorf("mount %s: the server refuses (status %d of MOUNT)", path, status)
	}
	handle := reply.Opaque(maxHandle)
	if reply.Bad {
		return nil, fmt.Errorf("mount %s: malformed reply", path)
	}
	return handle, nil
}

// dialer makes connections as clients of NFS do: from ports below 1024, if it
// may.
type dialer struct {
	privileged bool
	next       atomic.Uint32
}

func newDialer() *dialer { return &dialer{privileged: os.Geteuid() == 0} }

const firstPort, lastPort = 1023, 300

// dial connects. Each node has an address of its own if the server is on this
// machine: all of 127.0.0.0/8 is.
func (d *dialer) dial(ctx context.Context, node int, to netip.AddrPort) (net.Conn, error) {
	from := netip.IPv4Unspecified()
	if to.Addr().IsLoopback() {
		from = netip.AddrFrom4([4]byte{127, 1 + byte(node>>16), byte(node >> 8), byte(node)})
	}
	dialer := net.Dialer{Timeout: askLimit, Control: func(_, _ string, raw syscall.RawConn) (err error) {
		controlErr := raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		})
		return errors.Join(controlErr, err)
	}}
	for tries := 0; ; tries++ {
		port := 0
		if d.privileged {
			port = firstPort - int(d.next.Add(1)-1)%(firstPort-lastPort)
		}
		dialer.LocalAddr = &net.TCPAddr{IP: from.AsSlice(), Port: port}
		conn, err := dialer.DialContext(ctx, "tcp4", to.String())
		if err == nil {
			// Ports below 1024 are few: leave none in TIME_WAIT.
			_ = conn.(*net.TCPConn).SetLinger(0)
			return conn, nil
		}
		taken := errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL)
		if !taken || !d.privileged || tries >= firstPort-lastPort {
			return nil, err
		}
	}
}

// ParseTarget parses HOST:/PATH.
func ParseTarget(text string) (Target, error) {
	for i := range text {
		if text[i] == ':' && i > 0 && i+1 < len(text) && text[i+1] == '/' {
			return Target{Host: text[:i], Path: text[i+1:]}, nil
		}
	}
	return Target{}, fmt.Errorf("%s is not of the form HOST:/PATH", strconv.Quote(text))
}
