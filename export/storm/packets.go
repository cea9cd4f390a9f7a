package storm

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// packet is what was seen on a network, from its IP header on.
type packet struct {
	at time.Time
	ip []byte
}

// errCut says that a capture holds the beginnings of packets only.
var errCut = errors.New("the capture holds parts of packets only: capture whole packets (`tcpdump -s 0`)")

// Link types of capture files (https://www.tcpdump.org/linktypes.html).
const (
	linkEthernet = 1
	linkRaw      = 101
	linkCooked   = 113 // LINUX_SLL
	linkCooked2  = 276 // LINUX_SLL2
)

// readPcap calls each for the IP packets of a capture file in pcap format
// (https://www.tcpdump.org/manpages/pcap-savefile.5.html).
func readPcap(in io.Reader, each func(p packet) error) error {
	r := bufio.NewReaderSize(in, 64<<10)
	var head [24]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return fmt.Errorf("read capture: %w", err)
	}
	var order binary.ByteOrder = binary.LittleEndian
	unit := time.Microsecond
	switch be.Uint32(head[:]) {
	case 0xa1b2c3d4:
		order = be
	case 0xa1b23c4d:
		order, unit = be, time.Nanosecond
	case 0xd4c3b2a1:
	case 0x4d3cb2a1:
		unit = time.Nanosecond
	case 0x0a0d0d0a:
		return errors.New("the capture is in pcapng format: `editcap -F pcap FILE NEW` makes a pcap file of it")
	default:
		return errors.New("this is no capture in pcap format")
	}
	link := order.Uint32(head[20:]) & 0xffff
	var buf []byte
	for {
		var h [16]byte
		// A capture that was cut ends with its last whole packet.
		if _, err := io.ReadFull(r, h[:]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read capture: %w", err)
		}
		n, whole := order.Uint32(h[8:]), order.Uint32(h[12:])
		if n > 1<<24 {
			return fmt.Errorf("read capture: a packet of %d bytes", n)
		}
		if uint32(cap(buf)) < n {
			buf = make([]byte, n)
		}
		if _, err := io.ReadFull(r, buf[:n]); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read capture: %w", err)
		}
		ip, err := stripLink(link, buf[:n])
		if err != nil {
			return err
		}
		if ip == nil {
			continue
		}
		if n < whole {
			return errCut
		}
		if err := each(packet{time.Unix(int64(order.Uint32(h[:])), int64(order.Uint32(h[4:]))*int64(unit)), ip}); err != nil {
			return err
		}
	}
}

// stripLink returns the IP packet in a frame, nil if there is none.
func stripLink(link uint32, b []byte) ([]byte, error) {
	protocol, size := 0, 0
	switch link {
	case linkRaw:
		return b, nil
	case linkEthernet:
		if size = 14; len(b) < size {
			return nil, nil
		}
		protocol = int(be.Uint16(b[12:]))
		for (protocol == unix.ETH_P_8021Q || protocol == unix.ETH_P_8021AD) && len(b) >= size+4 {
			protocol = int(be.Uint16(b[size+2:]))
			size += 4
		}
	case linkCooked:
		if size = 16; len(b) < size {
			return nil, nil
		}
		protocol = int(be.Uint16(b[14:]))
	case linkCooked2:
		if size = 20; len(b) < size {
			return nil, nil
		}
		protocol = int(be.Uint16(b))
	default:
		return nil, fmt.Errorf("the capture is of link type %d; Ethernet, Linux cooked and raw IP are understood", link)
	}
	if protocol != unix.ETH_P_IP && protocol != unix.ETH_P_IPV6 {
		return nil, nil
	}
	return b[size:], nil
}

// listen calls each for the IP packets that pass a network interface, until
// ctx ends or more returns false. more is asked several times a second.
func listen(ctx context.Context, name string, more func() bool, each func(p packet) error) (err error) {
	iface, err := net.InterfaceByName(name)
	if err != nil {
		return fmt.Errorf("network interface %s: %w", name, err)
	}
	protocol := uint16(unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8) // in network byte order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(protocol))
	if err != nil {
		return fmt.Errorf("listen on %s: %w", name, err)
	}
	defer func() { _ = unix.Close(fd) }()
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: iface.Index}),
		// A boot reads faster than a busy machine may look.
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 256<<20),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 200_000}),
	)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", name, err)
	}
	buf, control := make([]byte, 1<<20), make([]byte, 256)
	for ctx.Err() == nil && more() {
		n, cn, flags, _, err := unix.Recvmsg(fd, buf, control, 0)
		switch {
		case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("listen on %s: %w", name, err)
		case flags&unix.MSG_TRUNC != 0:
			return errCut
		}
		if err := each(packet{timestamp(control[:cn]), buf[:n]}); err != nil {
			return err
		}
	}
	stats, err := unix.GetsockoptTpacketStats(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err == nil && stats.Drops > 0 {
		return fmt.Errorf("%w: %d packets went by unseen on %s", ErrLost, stats.Drops, name)
	}
	return nil
}

func timestamp(control []byte) time.Time {
	messages, err := unix.ParseSocketControlMessage(control)
	if err == nil {
		for _, m := range messages {
			if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16 {
				return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
			}
		}
	}
	return time.Now()
}
