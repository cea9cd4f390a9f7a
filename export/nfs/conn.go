package nfs

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	// inputSize is what is read from a socket at once.
	inputSize = 32 << 10
	// flushSize is how many bytes of replies are gathered before they are
	// written, even if more requests are waiting.
	flushSize = 64 << 10
	// unsentSize is how many bytes of replies the socket of a busy connection
	// takes before the client is ready for them (tcp(7), TCP_NOTSENT_LOWAT). What it has taken, the
	// kernel sends in one go as soon as the client makes room, before anything
	// else that the processor has to do: megabytes would delay other clients.
	unsentSize = 256 << 10
	// outputSize has room for what is gathered and the largest reply after it.
	outputSize = flushSize + maxDirectoryReply + 1<<10
)

// conn is a connection of a client. Its goroutine reads requests, and answers
// those that need no waiting. It holds no buffer while it waits for a request.
type conn struct {
	s      *Server
	tcp    *net.TCPConn
	raw    syscall.RawConn
	peer   netip.AddrPort
	client *client
	call   call
	count  counter
	heard  *atomic.Int64 // when the client last used heardID
	whose  [16]byte

	worker worker // the goroutine of the connection

	// Requests: in[r:w] is not taken yet. The record being taken has
	// fragments, of which length bytes from base on are together; next is
	// where the header of the next fragment begins.
	input              *[]byte
	in                 []byte
	r, w               int
	base, length, next int
	readFn             func(fd uintptr) bool
	readErr            error
	stopping           atomic.Bool
	deadline           bool        // a deadline for reading is set
	asked              bool        // the socket had nothing: it was waited for
	limited            atomic.Bool // the socket takes no more than unsentSize

	output *[]byte

	// The state of a write; mu is held by who writes.
	mu       sync.Mutex
	writeFn  func(fd uintptr) bool
	buf      []byte
	file     int
	offset   int64
	left     int
	writeErr error
	broken   bool
	armed    bool // a deadline for writing is set
	writer   *worker
	full     bool // the socket took no more: it was waited for

	slots    chan struct{} // places of deferred calls
	deferred sync.WaitGroup
}

func newConn(s *Server, tcp *net.TCPConn, peer netip.AddrPort, p *client) (*conn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	c := &conn{s: s, tcp: tcp, raw: raw, peer: peer, client: p}
	c.call.s, c.call.conn = s, c
	c.worker.turns, c.worker.client = &s.turns, p
	c.readFn, c.writeFn = c.readSome, c.writeSome
	return c, nil
}

// stop makes serve return after the calls that have been read.
func (c *conn) stop() {
	c.stopping.Store(true)
	_ = c.tcp.SetReadDeadline(time.Unix(1, 0))
}

// serve answers requests until the connection ends.
func (c *conn) serve() {
	// An I/O error under the mapped index is a signal, which Go turns into a
	// panic when it is asked to; it must end this connection only.
	debug.SetPanicOnFault(true)
	defer func() {
		if p := recover(); p != nil {
			c.s.log.WithField("client", c.peer).Errorf("fault while answering: %v\n%s", p, debug.Stack())
		}
		c.worker.pause()
		c.call.release()
		_ = c.tcp.Close()
		c.deferred.Wait()
		c.dropInput()
	}()
	c.s.stats.accepted.Add(1)
	for {
		if err := c.fillInput(); err != nil {
			c.logEnd(err)
			return
		}
		err := c.answerAll()
		if errFlush := c.flush(); err == nil {
			err = errFlush
		}
		c.batchEnd()
		if err != nil {
			c.logEnd(err)
			return
		}
	}
}

var (
	errRecord = errors.New("malformed or too long a record")
	errStall  = errors.New("client stalls")
)

func (c *conn) logEnd(err error) {
	if c.call.refused || errors.Is(err, io.EOF) || c.stopping.Load() || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		return
	}
	c.s.log.WithError(err).WithField("client", c.peer).Info("NFS connection ended")
}

// answerAll answers the requests that are in memory.
func (c *conn) answerAll() error {
	k := &c.call
	began := c.s.stats.now()
	for {
		if c.worker.over() {
			// Nothing that is answered is held back meanwhile.
			if err := c.flushKeep(); err != nil {
				return err
			}
			c.limit()
			c.worker.yield()
			began = c.s.stats.now()
		}
		record, err := c.nextRecord()
		if err != nil || record == nil {
			return err
		}
		if k.out == nil {
			c.output = c.s.outputs.Get().(*[]byte)
			k.out = (*c.output)[:0]
		}
		before := len(k.out)
		c.worker.cost++
		result := k.run(record)
		switch result {
		case deferred:
			if err := c.deferCall(record); err != nil {
				return err
			}
			began = c.s.stats.now()
			continue
		case streamed:
			k.stat.bytes = k.length
			err := c.stream(k, &c.worker)
			k.out = k.out[:0]
			if err != nil {
				return err
			}
			before = 0
		case broken:
			return errRecord
		case answered:
			if len(k.out) >= flushSize {
				if err := c.flushKeep(); err != nil {
					return err
				}
				k.stat.bytes = 0
				before = 0
			}
		}
		if reply := len(k.out) - before; reply > 0 {
			k.stat.bytes += reply
			c.worker.cost += reply / costBytes
		}
		now := c.s.stats.now()
		c.note(k, now-began)
		began = now
	}
}

// limit is called when the connection has been busy for the length of a turn.
// If there are other clients, its socket takes less from now on. (It takes some
// of the speed of large reads, so a client that is alone is spared.)
func (c *conn) limit() {
	if c.limited.Load() || !c.s.clients.others(c.client) {
		return
	}
	c.limited.Store(true)
	_ = c.raw.Control(func(fd uintptr) {
		// A kernel that does not know it takes more at once.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsentSize)
	})
}

// flush writes what has been answered, and gives the buffer back.
func (c *conn) flush() error {
	if c.call.out == nil {
		return nil
	}
	err := c.flushKeep()
	if cap(c.call.out) == outputSize {
		*c.output = c.call.out[:0]
		c.s.outputs.Put(c.output)
	}
	c.call.out, c.output = nil, nil
	return err
}

// flushKeep writes what has been answered.
func (c *conn) flushKeep() error {
	if len(c.call.out) == 0 {
		return nil
	}
	c.lockWrite(&c.worker)
	err := c.write(c.call.out, nil, 0, 0)
	c.mu.Unlock()
	c.call.out = c.call.out[:0]
	return err
}

// lockWrite locks mu for a worker.
func (c *conn) lockWrite(w *worker) {
	if !c.mu.TryLock() {
		w.pause() // who has a turn waits for nobody
		c.mu.Lock()
	}
	c.writer = w
	w.resume()
}

// stream writes the replies gathered in a call, and then file data with its
// padding. It gives the file back.
func (c *conn) stream(k *call, w *worker) error {
	c.lockWrite(w)
	err := c.write(k.out, k.file, k.offset, k.length)
	if pad := -k.length & 3; err == nil && pad > 0 {
		err = c.write(zeros[:pad], nil, 0, 0)
	}
	c.mu.Unlock()
	c.s.files.release(k.file)
	k.file = nil
	return err
}

// batchEnd is called before the connection waits for more requests.
func (c *conn) batchEnd() {
	k := &c.call
	if k.cur != nil {
		if c.heard == nil || c.whose != k.cur.id {
			c.whose = k.cur.id
			c.heard = c.client.clock(c.whose)
		}
		c.heard.Store(time.Now().UnixMilli())
	}
	k.release()
	c.count.flush(c)
}

// dropInput gives the buffer for requests back.
func (c *conn) dropInput() {
	if c.input != nil {
		c.s.inputs.Put(c.input)
	}
	c.input, c.in = nil, nil
	c.r, c.w, c.base, c.length, c.next = 0, 0, 0, 0, 0
}

// fillInput waits for requests.
func (c *conn) fillInput() error {
	switch {
	case c.r == c.w:
		if len(c.in) != inputSize {
			c.dropInput() // it had to grow
		}
		c.r, c.w, c.base, c.length, c.next = 0, 0, 0, 0, 0
	case c.w == len(c.in):
		c.makeRoom()
	}
	c.readErr = nil
	if err := c.raw.Read(c.readFn); err != nil {
		if c.deadline && !c.stopping.Load() && errors.Is(err, unix.ETIMEDOUT) || isTimeout(err) && !c.stopping.Load() {
			return errStall
		}
		return err
	}
	if c.deadline && !c.call.refused {
		c.deadline = false
		_ = c.tcp.SetReadDeadline(time.Time{})
		if c.stopping.Load() {
			c.stop()
		}
	}
	return c.readErr
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// makeRoom makes room behind a request that is not complete.
func (c *conn) makeRoom() {
	start := c.r
	if start > 0 {
		copy(c.in, c.in[start:c.w])
	} else {
		grown := make([]byte, min(4*len(c.in), c.s.limits.Record+2*inputSize))
		copy(grown, c.in[:c.w])
		if c.input != nil {
			c.s.inputs.Put(c.input)
			c.input = nil
		}
		c.in = grown
	}
	c.r, c.w, c.base, c.next = 0, c.w-start, c.base-start, c.next-start
}

// readSome reads what the socket has. It returns false if that is nothing.
func (c *conn) readSome(fd uintptr) bool {
	if c.asked {
		c.asked = false
		c.worker.resume()
	}
	if c.in == nil {
		c.input = c.s.inputs.Get().(*[]byte)
		c.in = *c.input
	}
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, fd, uintptr(unsafe.Pointer(&c.in[c.w])), uintptr(len(c.in)-c.w))
		switch {
		case errno == 0 && n == 0:
			c.readErr = io.EOF
			return true
		case errno == 0:
			c.w += int(n)
			return true
		case errno == unix.EINTR:
		case errno == unix.EAGAIN:
			c.worker.pause()
			c.worker.busy = false
			c.asked = true
			if c.w == 0 {
				c.dropInput()
			} else if !c.call.refused && !c.stopping.Load() {
				c.deadline = true
				_ = c.tcp.SetReadDeadline(time.Now().Add(c.s.limits.StallTimeout))
			}
			return false
		default:
			c.readErr = errno
			return true
		}
	}
}

// nextRecord takes the next request from the buffer (RFC 5531, section 11:
// record marking). It returns nil if it is not complete yet. The record is
// valid until the buffer is filled again.
func (c *conn) nextRecord() ([]byte, error) {
	for {
		if c.w-c.next < 4 {
			return nil, c.checkRoom()
		}
		header := be.Uint32(c.in[c.next:])
		size := int(header &^ lastFragment)
		if size > c.s.limits.Record-c.length {
			return nil, errRecord
		}
		begin := c.next + 4
		if c.w-begin < size {
			return nil, c.checkRoom()
		}
		if c.length == 0 {
			c.base = begin
		} else {
			copy(c.in[c.base+c.length:], c.in[begin:begin+size])
		}
		c.length += size
		c.next = begin + size
		if header&lastFragment != 0 {
			record := c.in[c.base : c.base+c.length : c.base+c.length]
			c.r, c.base, c.length = c.next, c.next, 0
			return record, nil
		}
	}
}

// checkRoom refuses a record whose fragments, mostly headers, fill the largest
// buffer.
func (c *conn) checkRoom() error {
	if c.r == 0 && c.w >= c.s.limits.Record+2*inputSize {
		return errRecord
	}
	return nil
}

// write sends b and then length bytes of a file. The caller holds mu.
func (c *conn) write(b []byte, f *openFile, offset int64, length int) error {
	if c.broken {
		return unix.EPIPE
	}
	c.buf, c.left, c.writeErr = b, length, nil
	if f != nil {
		c.file, c.offset = f.fd, offset
	}
	err := c.raw.Write(c.writeFn)
	if err == nil {
		err = c.writeErr
	}
	c.buf = nil
	if c.armed {
		c.armed = false
		_ = c.tcp.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		// A reply may have been sent in part: nothing can follow it.
		c.broken = true
		_ = c.tcp.Close()
		if isTimeout(err) {
			err = errStall
		}
	}
	return err
}

// writeSome writes what the socket takes. It returns false if there is more.
func (c *conn) writeSome(fd uintptr) bool {
	if c.full {
		c.full = false
		c.writer.resume()
	}
	for len(c.buf) > 0 || c.left > 0 {
		var n int
		var err error
		if len(c.buf) > 0 {
			flags := unix.MSG_NOSIGNAL
			if c.left > 0 {
				flags |= unix.MSG_MORE
			}
			r, _, errno := unix.Syscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&c.buf[0])), uintptr(len(c.buf)),
				uintptr(flags), 0, 0)
			if n = int(r); errno != 0 {
				err = errno
			}
		} else {
			if c.writer.over() {
				c.limit()
				c.writer.yield()
			}
			n, err = unix.Sendfile(int(fd), c.file, &c.offset, min(c.left, pieceSize))
			if n == 0 && err == nil {
				err = errShort
			}
		}
		switch {
		case err == nil && len(c.buf) > 0:
			c.buf = c.buf[n:]
		case err == nil:
			c.left -= n
			c.writer.cost += 1 + n/costBytes
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			c.writer.pause()
			c.full = true
			c.armed = true
			_ = c.tcp.SetWriteDeadline(time.Now().Add(c.s.limits.StallTimeout))
			return false
		default:
			c.writeErr = fmt.Errorf("send: %w", err)
			return true
		}
	}
	return true
}
