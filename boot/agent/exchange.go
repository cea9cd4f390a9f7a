package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/sys/unix"
)

const (
	// A request is sent at once and again after these times.
	firstAgain, lastAgain = 2 * time.Second, 6 * time.Second
	// askFor is how long one asks before giving up, for now.
	askFor = 14 * time.Second
	// After a refusal, another server may still agree.
	afterRefusal = 2 * time.Second
)

// askOnDevice sends a request on the card, to one server or to all, and waits
// for an answer. The card has its address: plain UDP will do. The port is held
// for the time of one request only.
func (k *Keeper) askOnDevice(ctx context.Context, request *dhcpv4.DHCPv4, server netip.Addr) (*dhcpv4.DHCPv4, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if raw.Control(func(fd uintptr) {
			err = errors.Join(
				unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, k.Facts.Device),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
				unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
		}) != nil {
			return syscall.EBADF
		}
		return err
	}}
	conn, err := config.ListenPacket(ctx, "udp4", fmt.Sprintf(":%d", dhcpv4.ClientPort))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	target := &net.UDPAddr{IP: net.IPv4bcast, Port: dhcpv4.ServerPort}
	if server.IsValid() {
		target.IP = server.AsSlice()
	}
	return exchange(ctx, conn, target, request)
}

// exchange sends a request until an answer comes. The error wraps errRefused
// if a server said no and none said yes.
func exchange(ctx context.Context, conn net.PacketConn, target net.Addr, request *dhcpv4.DHCPv4) (*dhcpv4.DHCPv4, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var refused error
	buffer := make([]byte, 1500)
	for end, again := time.Now().Add(askFor), firstAgain; time.Now().Before(end); again = min(2*again, lastAgain) {
		if _, err := conn.WriteTo(request.ToBytes(), target); err != nil {
			return nil, err
		}
		next := time.Now().Add(again)
		for {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			_ = conn.SetReadDeadline(next)
			n, from, err := conn.ReadFrom(buffer)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			}
			if err != nil {
				return nil, err
			}
			answer, err := dhcpv4.FromBytes(buffer[:n])
			if err != nil || answer.OpCode != dhcpv4.OpcodeBootReply || answer.TransactionID != request.TransactionID ||
				!bytes.Equal(answer.ClientHWAddr, request.ClientHWAddr) {
				continue
			}
			switch answer.MessageType() {
			case dhcpv4.MessageTypeAck:
				return answer, nil
			case dhcpv4.MessageTypeNak:
				refused = fmt.Errorf("%w: %s says: %q", errRefused, from, answer.Message())
				if soon := time.Now().Add(afterRefusal); soon.Before(next) {
					next = soon
				}
			}
		}
		if refused != nil {
			return nil, refused
		}
	}
	return nil, fmt.Errorf("%s does not answer", target)
}
