package dhcp

import (
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// packetSocket opens a packet(7) socket for one protocol on one interface. It
// reads and writes what follows the Ethernet header.
func packetSocket(ifi *net.Interface, protocol uint16) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket on %s: %w", ifi.Name, err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: ifi.Index}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("packet socket on %s: %w", ifi.Name, err)
	}
	return os.NewFile(uintptr(fd), "packet:"+ifi.Name), nil
}

// sendPacket broadcasts p.
func sendPacket(f *os.File, ifi *net.Interface, protocol uint16, p []byte) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	to := &unix.SockaddrLinklayer{Protocol: swap(protocol), Ifindex: ifi.Index, Halen: 6, Addr: [8]byte{255, 255, 255, 255, 255, 255}}
	var sent error
	err = raw.Write(func(fd uintptr) bool {
		sent = unix.Sendto(int(fd), p, 0, to)
		return sent != unix.EAGAIN
	})
	if err == nil {
		err = sent
	}
	if err != nil {
		return fmt.Errorf("sending on %s: %w", ifi.Name, err)
	}
	return nil
}

func swap(n uint16) uint16 { return n<<8 | n>>8 }
