package storm

import (
	"errors"
	"net/netip"
	"time"
)

// ErrLost is wrapped by errors that say that packets are missing.
var ErrLost = errors.New("packets were lost by the capture")

// segment is a TCP segment.
type segment struct {
	at       time.Time
	src, dst netip.AddrPort
	seq      uint32
	syn, ack bool
	data     []byte
}

// parseTCP takes a TCP segment out of an IP packet. It returns false for what
// is none; fragments of packets are none.
func parseTCP(p packet) (s segment, ok bool, err error) {
	b := p.ip
	if len(b) < 20 {
		return s, false, nil
	}
	var src, dst netip.Addr
	switch b[0] >> 4 {
	case 4:
		size, total := int(b[0]&15)*4, int(be.Uint16(b[2:]))
		if b[9] != 6 || be.Uint16(b[6:])&0x3fff != 0 || size < 20 || len(b) < size {
			return s, false, nil
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
		if total > len(b) {
			return s, false, errCut
		}
		if total > 0 { // 0: segmentation is left to the network card
			b = b[:total]
		}
		b = b[min(size, len(b)):]
	case 6:
		if len(b) < 40 || b[6] != 6 {
			return s, false, nil
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
		total := int(be.Uint16(b[4:]))
		b = b[40:]
		if total > len(b) {
			return s, false, errCut
		}
		if total > 0 {
			b = b[:total]
		}
	default:
		return s, false, nil
	}
	if len(b) < 20 {
		return s, false, nil
	}
	offset := int(b[12]>>4) * 4
	if offset < 20 || offset > len(b) {
		return s, false, nil
	}
	return segment{
		at:  p.at,
		src: netip.AddrPortFrom(src, be.Uint16(b)), dst: netip.AddrPortFrom(dst, be.Uint16(b[2:])),
		seq: be.Uint32(b[4:]), syn: b[13]&0x02 != 0, ack: b[13]&0x10 != 0,
		data: b[offset:],
	}, true, nil
}

// half is one direction of a TCP connection: it puts segments into order and
// takes RPC records (RFC 5531, section 11) from them.
type half struct {
	synced bool
	next   uint32 // the sequence number that comes next
	held   []segment
	size   int    // of what is held
	buf    []byte // what is not a whole record yet
}

// maxHeld bounds what is kept of a connection in the hope that a segment
// before it comes.
const maxHeld = 64 << 20

// add takes a segment, and calls each with the records that are complete.
func (h *half) add(s segment, each func(at time.Time, record []byte) error) error {
	if s.syn {
		h.synced, h.next = true, s.seq+1
		h.held, h.size, h.buf = nil, 0, nil
		return nil
	}
	if !h.synced || len(s.data) == 0 {
		return nil
	}
	if ahead := int32(s.seq - h.next); ahead > 0 {
		if h.size += len(s.data); h.size > maxHeld {
			return ErrLost
		}
		s.data = append([]byte(nil), s.data...)
		h.held = append(h.held, s)
		return nil
	}
	if err := h.deliver(s, each); err != nil {
		return err
	}
	for again := true; again && len(h.held) > 0; {
		again = false
		for i, s := range h.held {
			if int32(s.seq-h.next) <= 0 {
				h.held = append(h.held[:i], h.held[i+1:]...)
				h.size -= len(s.data)
				if err := h.deliver(s, each); err != nil {
					return err
				}
				again = true
				break
			}
		}
	}
	return nil
}

// deliver takes a segment that does not begin after what comes next.
func (h *half) deliver(s segment, each func(at time.Time, record []byte) error) error {
	seen := int(h.next - s.seq)
	if seen >= len(s.data) {
		return nil // sent again
	}
	h.next += uint32(len(s.data) - seen)
	h.buf = append(h.buf, s.data[seen:]...)
	taken := 0
	for {
		record, used, err := takeRecord(h.buf[taken:])
		if err != nil {
			return err
		}
		if used == 0 {
			break
		}
		taken += used
		if err := each(s.at, record); err != nil {
			return err
		}
	}
	h.buf = append(h.buf[:0], h.buf[taken:]...)
	return nil
}

// errNoRPC says that a connection is no ONC RPC.
var errNoRPC = errors.New("no RPC")

// takeRecord takes a record from a stream. used is 0 if it is not complete.
func takeRecord(b []byte) (record []byte, used int, err error) {
	for last := false; !last; {
		if len(b)-used < 4 {
			return nil, 0, nil
		}
		mark := be.Uint32(b[used:])
		last = mark&lastFragment != 0
		size := int(mark &^ lastFragment)
		if size+len(record) > maxRecord {
			return nil, 0, errNoRPC
		}
		if used += 4; len(b)-used < size {
			return nil, 0, nil
		}
		if record == nil {
			record = b[used : used+size : used+size]
		} else {
			record = append(record, b[used:used+size]...)
		}
		used += size
	}
	return record, used, nil
}
