package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sort"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Protocol is what a captured packet is counted as.
type Protocol string

// The protocols that are told apart. HTTP and NFS are recognized by what is
// said, not by port numbers; MOUNT and NFSACL calls count as NFS.
const (
	DHCP  Protocol = "DHCP"
	TFTP  Protocol = "TFTP"
	HTTP  Protocol = "HTTP"
	NFS   Protocol = "NFS"
	ARP   Protocol = "ARP"
	Other Protocol = "other"
)

// Count is the traffic of one protocol, in both directions.
type Count struct {
	// Packets as the capturing end sees them: the kernel may hand over several
	// TCP segments as one.
	Packets int64
	// Bytes, Ethernet headers included.
	Bytes int64
	// Requests are the packets of DHCP and TFTP clients, HTTP requests, and
	// RPC calls.
	Requests int64
	// RoundTrips is how often a client had to wait for the wire: a request
	// that was sent after an answer had come, and each TCP handshake. Requests
	// that are sent together count once.
	RoundTrips int64
	// Ahead is the most that a server had sent of a TCP connection and its
	// client had not acknowledged, in bytes.
	Ahead int64
}

// Capture counts the traffic between a bridge's machines and the lab itself.
// (What machines say to each other is not seen.)
type Capture struct {
	fd     int
	done   chan struct{}
	closed sync.Once

	mu     sync.Mutex
	counts map[Protocol]*Count
	flows  map[flow]*flowState
	tftp   map[endpoint]bool // client ends of transfers
}

type endpoint struct {
	address [16]byte
	port    uint16
}

// flow is a TCP connection; the client is the end that sent SYN.
type flow struct{ client, server endpoint }

type flowState struct {
	protocol Protocol
	answered bool // the server spoke last
	pending  Count
	next     uint32 // sequence number that is expected from the client
	acked    uint32 // what the client has acknowledged
	hasAcked bool
	record   int // bytes of the current RPC record that are still to come
}

// Capture starts counting on a bridge.
func (l *Lab) Capture(bridge string) (*Capture, error) {
	c := &Capture{
		done:   make(chan struct{}),
		counts: map[Protocol]*Count{},
		flows:  map[flow]*flowState{},
		tftp:   map[endpoint]bool{},
	}
	err := l.Do(func() error {
		device, err := net.InterfaceByName(bridge)
		if err != nil {
			return err
		}
		all := int(binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL)))
		c.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		// Room for what comes while this program has no processor.
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		_ = unix.SetsockoptTimeval(c.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000})
		return unix.Bind(c.fd, &unix.SockaddrLinklayer{Protocol: uint16(all), Ifindex: device.Index})
	})
	if err != nil {
		if c.fd > 0 {
			_ = unix.Close(c.fd)
		}
		return nil, fmt.Errorf("lab %s: capture on %s: %w", l.name, bridge, err)
	}
	stop := make(chan struct{})
	go c.read(stop)
	return c, l.own(closeFunc(func() error {
		c.closed.Do(func() { close(stop) })
		<-c.done
		return nil
	}))
}

type closeFunc func() error

func (f closeFunc) Close() error { return f() }

func (c *Capture) read(stop <-chan struct{}) {
	defer close(c.done)
	defer unix.Close(c.fd)
	packet := make([]byte, 1<<17)
	for {
		select {
		case <-stop:
			return
		default:
		}
		n, _, err := unix.Recvfrom(c.fd, packet, 0)
		switch {
		case err == nil:
			c.mu.Lock()
			c.count(packet[:n])
			c.mu.Unlock()
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR), errors.Is(err, unix.ENETDOWN):
		default:
			return
		}
	}
}

// Counts is the traffic so far.
func (c *Capture) Counts() map[Protocol]Count {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := map[Protocol]Count{}
	for p, n := range c.counts {
		counts[p] = *n
	}
	return counts
}

// Lost is how many packets were not counted since the last call, because the
// capture could not keep up.
func (c *Capture) Lost() int {
	stats, err := unix.GetsockoptTpacketStats(c.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		return 0
	}
	return int(stats.Drops)
}

// Wait waits until the counts are as wanted, looking every tenth of a second.
func (c *Capture) Wait(ctx context.Context, wanted func(map[Protocol]Count) bool) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for !wanted(c.Counts()) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for traffic: %w; so far:\n%s", context.Cause(ctx), c)
		}
	}
	return nil
}

// String is a table of the counts.
func (c *Capture) String() string {
	counts := c.Counts()
	names := make([]string, 0, len(counts))
	for p := range counts {
		names = append(names, string(p))
	}
	sort.Strings(names)
	var b strings.Builder
	fmt.Fprintf(&b, "%-9s %12s %9s %9s %11s %11s\n", "protocol", "bytes", "packets", "requests", "round trips", "bytes ahead")
	for _, name := range names {
		n := counts[Protocol(name)]
		fmt.Fprintf(&b, "%-9s %12d %9d %9d %11d %11d\n", name, n.Bytes, n.Packets, n.Requests, n.RoundTrips, n.Ahead)
	}
	return b.String()
}

func (c *Capture) add(p Protocol, n Count) {
	total := c.counts[p]
	if total == nil {
		total = &Count{}
		c.counts[p] = total
	}
	total.Packets += n.Packets
	total.Bytes += n.Bytes
	total.Requests += n.Requests
	total.RoundTrips += n.RoundTrips
	total.Ahead = max(total.Ahead, n.Ahead)
}

// count looks at one Ethernet frame.
func (c *Capture) count(frame []byte) {
	one := Count{Packets: 1, Bytes: int64(len(frame))}
	if len(frame) < 14 {
		c.add(Other, one)
		return
	}
	var source, target endpoint
	var transport byte
	var payload []byte
	switch body := frame[14:]; binary.BigEndian.Uint16(frame[12:]) {
	case unix.ETH_P_ARP:
		c.add(ARP, one)
		return
	case unix.ETH_P_IP:
		if len(body) < 20 || len(body) < int(body[0]&15)*4 || binary.BigEndian.Uint16(body[6:])&0x1fff != 0 {
			c.add(Other, one)
			return
		}
		copy(source.address[:], body[12:16])
		copy(target.address[:], body[16:20])
		transport = body[9]
		// A length of 0 is a segment that the kernel has yet to cut.
		if total := int(binary.BigEndian.Uint16(body[2:])); total >= 20 && total < len(body) {
			body = body[:total]
		}
		payload = body[int(body[0]&15)*4:]
	case unix.ETH_P_IPV6:
		if len(body) < 40 {
			c.add(Other, one)
			return
		}
		copy(source.address[:], body[8:24])
		copy(target.address[:], body[24:40])
		transport, payload = body[6], body[40:]
	}
	switch {
	case transport == unix.IPPROTO_UDP && len(payload) >= 8:
		source.port, target.port = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
		c.udp(source, target, payload[8:], one)
	case transport == unix.IPPROTO_TCP && len(payload) >= 20 && len(payload) >= int(payload[12]>>4)*4:
		source.port, target.port = binary.BigEndian.Uint16(payload), binary.BigEndian.Uint16(payload[2:])
		c.tcp(source, target, payload, one)
	default:
		c.add(Other, one)
	}
}

func (c *Capture) udp(source, target endpoint, payload []byte, one Count) {
	asked := func(yes bool) Count {
		if yes {
			one.Requests, one.RoundTrips = 1, 1
		}
		return one
	}
	switch {
	case target.port == 67 || target.port == 4011:
		c.add(DHCP, asked(true))
	case target.port == 68 || source.port == 67 || source.port == 4011:
		c.add(DHCP, one)
	case target.port == 69 && len(payload) > 1 && payload[1] == 1:
		c.tftp[source] = true
		c.add(TFTP, asked(true))
	case c.tftp[source]:
		c.add(TFTP, asked(true))
	case c.tftp[target]:
		c.add(TFTP, one)
	default:
		c.add(Other, one)
	}
}

func (c *Capture) tcp(source, target endpoint, segment []byte, one Count) {
	const syn, ack = 2, 16
	flags := segment[13]
	sequence := binary.BigEndian.Uint32(segment[4:])
	payload := segment[int(segment[12]>>4)*4:]
	if flags&(syn|ack) == syn {
		one.RoundTrips = 1
		c.flows[flow{source, target}] = &flowState{pending: one, answered: true, next: sequence + 1}
		return
	}
	state, fromClient := c.flows[flow{source, target}], true
	if state == nil {
		if state, fromClient = c.flows[flow{target, source}], false; state == nil {
			c.add(Other, one)
			return
		}
	}
	if fromClient && flags&ack != 0 {
		state.acked, state.hasAcked = binary.BigEndian.Uint32(segment[8:]), true
	}
	switch {
	case len(payload) == 0:
	case !fromClient:
		state.answered = true
		// What is less than nothing was sent again.
		if ahead := int32(sequence + uint32(len(payload)) - state.acked); state.hasAcked {
			one.Ahead = int64(ahead)
		}
	case sequence-state.next < 1<<31: // not a repetition
		if sequence != state.next {
			state.record = 0 // something was not seen: take this as a beginning
		}
		state.next = sequence + uint32(len(payload))
		if state.protocol == "" {
			state.protocol = recognize(payload)
			c.add(state.protocol, state.pending)
		}
		if state.answered {
			state.answered = false
			one.RoundTrips = 1
		}
		one.Requests = state.requests(payload)
	}
	if state.protocol == "" {
		state.pending.Packets += one.Packets
		state.pending.Bytes += one.Bytes
		state.pending.Ahead = max(state.pending.Ahead, one.Ahead)
		return
	}
	c.add(state.protocol, one)
}

// recognize tells a connection's protocol from the first words of its client.
func recognize(payload []byte) Protocol {
	switch {
	case isHTTP(payload):
		return HTTP
	case isCall(payload):
		return NFS
	}
	return Other
}

func isHTTP(payload []byte) bool {
	for _, method := range []string{"GET ", "HEAD ", "POST "} {
		if strings.HasPrefix(string(payload[:min(len(payload), 5)]), method) {
			return true
		}
	}
	return false
}

// isCall reports whether a record of an ONC RPC call begins here (RFC 5531).
func isCall(p []byte) bool {
	if len(p) < 20 || binary.BigEndian.Uint32(p[8:]) != 0 || binary.BigEndian.Uint32(p[12:]) != 2 {
		return false
	}
	switch binary.BigEndian.Uint32(p[16:]) {
	case 100003, 100005, 100227: // NFS, MOUNT, NFSACL
		return true
	}
	return false
}

// requests counts the requests that begin in a client's segment.
func (s *flowState) requests(payload []byte) int64 {
	switch s.protocol {
	case HTTP:
		if isHTTP(payload) {
			return 1
		}
	case NFS:
		var n int64
		for len(payload) > 0 {
			if s.record == 0 {
				if len(payload) < 4 {
					return n
				}
				s.record = 4 + int(binary.BigEndian.Uint32(payload)&0x7fffffff)
				n++
			}
			step := min(s.record, len(payload))
			payload = payload[step:]
			s.record -= step
		}
		return n
	}
	return 0
}
