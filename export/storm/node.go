package storm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"sync"
	"time"

	"sidus/export/internal/xdr"
)

// plan is what all nodes of a storm share: the recording, prepared.
type plan struct {
	*Recording
	target  Target
	procs   []uint32
	waiting [][]int32 // of each call: the calls that wait for its reply
	first   []int32   // calls that wait for none
	names   map[child]int
	think   float64 // factor of the times of thinking
	result  *collector
	learnt  []learnt // of READ, if contents are learnt
	learn   bool
	dialer  *dialer
}

// learnt is what the first node was answered.
type learnt struct {
	sync.Mutex
	known bool
	crc   uint32
}

func newPlan(r *Recording) *plan {
	p := &plan{Recording: r, procs: make([]uint32, len(r.Calls)), waiting: make([][]int32, len(r.Calls)), names: map[child]int{}}
	for i, c := range r.Calls {
		p.procs[i] = procByName[c.Proc]
		if c.After >= 0 {
			p.waiting[c.After] = append(p.waiting[c.After], int32(i))
		}
		if c.Needs >= 0 && c.Needs != c.After {
			p.waiting[c.Needs] = append(p.waiting[c.Needs], int32(i))
		}
		if c.After < 0 && c.Needs < 0 {
			p.first = append(p.first, int32(i))
		}
	}
	for i, o := range r.Objects[1:] {
		p.names[child{o.Parent, string(o.Name)}] = i + 1
	}
	return p
}

// node is a virtual machine that boots.
type node struct {
	*plan
	number int
	conn   net.Conn
	in     *bufio.Reader

	mu      sync.Mutex
	wake    chan struct{} // has a token when there is something to send
	ready   []message
	pending []uint8       // of each call: the replies that it waits for
	handles [][]byte      // of each object
	lists   map[int]*list // by call
	flying  map[uint32]message
	timers  map[*time.Timer]struct{}
	xid     uint32
	left    int // calls whose reply has not come
	bytes   uint64
}

// message is a call to be sent: one of the recording, or, with look, a LOOKUP
// of an object whose handle the node did not get.
type message struct {
	call int
	look int    // object, 0: none
	done uint32 // READ: bytes that have come
	crc  uint32
}

// list is a directory that is being read.
type list struct {
	cookie   uint64
	verifier uint64
	sum      uint64
}

// boot makes all calls, and returns when the last is answered.
func (n *node) boot(ctx context.Context, nfs, mountAt net.Addr, start <-chan struct{}) error {
	select {
	case <-start:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := n.connect(ctx, nfs, mountAt); err != nil {
		return err
	}
	defer func() { _ = n.conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = n.conn.Close() })
	defer stop()

	n.wake = make(chan struct{}, 1)
	n.pending = make([]uint8, len(n.Calls))
	for i, c := range n.Calls {
		if c.After >= 0 {
			n.pending[i]++
		}
		if c.Needs >= 0 && c.Needs != c.After {
			n.pending[i]++
		}
	}
	n.lists, n.flying, n.timers = map[int]*list{}, map[uint32]message{}, map[*time.Timer]struct{}{}
	n.left = len(n.Calls)
	n.mu.Lock()
	for _, i := range n.first {
		n.later(int(i))
	}
	n.mu.Unlock()

	ctx, cancel := context.WithCancel(ctx)
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		n.send(ctx)
	}()
	n.in = bufio.NewReaderSize(n.conn, 64<<10)
	var err error
	for err == nil && n.left > 0 {
		err = n.receive()
	}
	cancel()
	_ = n.conn.Close()
	<-sent
	n.mu.Lock()
	for t := range n.timers {
		t.Stop()
	}
	n.timers = nil
	n.mu.Unlock()
	if err != nil && n.left > 0 {
		return fmt.Errorf("after %d of %d calls: %w", len(n.Calls)-n.left, len(n.Calls), err)
	}
	return nil
}

// connect connects and mounts.
func (n *node) connect(ctx context.Context, nfs, mountAt net.Addr) error {
	var err error
	if n.conn, err = n.dialer.dial(ctx, n.number, nfs.(*net.TCPAddr).AddrPort()); err != nil {
		return err
	}
	asked := n.conn
	if nfs.String() != mountAt.String() {
		if asked, err = n.dialer.dial(ctx, n.number, mountAt.(*net.TCPAddr).AddrPort()); err != nil {
			_ = n.conn.Close()
			return err
		}
		defer func() { _ = asked.Close() }()
	}
	handle, err := mount(asked, n.target.Path)
	if err != nil {
		_ = n.conn.Close()
		return err
	}
	n.xid = askXID
	n.handles = make([][]byte, len(n.Objects))
	n.handles[0] = append([]byte(nil), handle...)
	return nil
}

// later makes a call after the time of thinking. The caller holds mu.
func (n *node) later(call int) {
	think := time.Duration(float64(n.Calls[call].Think) * n.think)
	if think < 50*time.Microsecond { // less than a timer can tell
		n.now(message{call: call})
		return
	}
	var t *time.Timer
	t = time.AfterFunc(think, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.timers != nil {
			delete(n.timers, t)
			n.now(message{call: call})
		}
	})
	n.timers[t] = struct{}{}
}

// now queues a call. The caller holds mu.
func (n *node) now(m message) {
	n.ready = append(n.ready, m)
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// send sends what is ready.
func (n *node) send(ctx context.Context) {
	var out []byte
	for {
		select {
		case <-n.wake:
		case <-ctx.Done():
			return
		}
		out = out[:0]
		n.mu.Lock()
		for i := 0; i < len(n.ready); i++ {
			out = n.encode(out, n.ready[i])
		}
		n.ready = n.ready[:0]
		n.mu.Unlock()
		if _, err := n.conn.Write(out); err != nil {
			return // the receiver says why
		}
	}
}

// encode appends a call. The caller holds mu.
func (n *node) encode(out []byte, m message) []byte {
	c := &n.Calls[m.call]
	proc, object := n.procs[m.call], c.Object
	// The reply that was to give the handle did not: look for it.
	m.look = 0
	for object > 0 && n.handles[object] == nil {
		m.look = object
		object = n.Objects[object].Parent
	}
	if m.look > 0 {
		proc = procLookup
	}
	start := len(out)
	n.xid++
	out = appendCall(out, n.xid, nfsProgram, version, proc, c.UID, c.GID)
	out = xdr.AppendOpaque(out, n.handles[object])
	switch proc {
	case procLookup:
		name := c.Name
		if m.look > 0 {
			name = n.Objects[m.look].Name
		}
		out = xdr.AppendOpaque(out, []byte(name))
	case procAccess:
		out = be.AppendUint32(out, c.Bits)
	case procRead:
		out = be.AppendUint64(out, c.Offset+uint64(m.done))
		out = be.AppendUint32(out, c.Count-m.done)
	case procReaddir, procReaddirplus:
		l := n.lists[m.call]
		if l == nil {
			l = &list{}
			n.lists[m.call] = l
		}
		out = be.AppendUint64(out, l.cookie)
		out = be.AppendUint64(out, l.verifier)
		out = be.AppendUint32(out, max(c.Count, 1024))
		if proc == procReaddirplus {
			out = be.AppendUint32(out, max(c.Count, 4096))
		}
	}
	be.PutUint32(out[start:], lastFragment|uint32(len(out)-start-4))
	n.flying[n.xid] = m
	return out
}

// receive takes a reply.
func (n *node) receive() error {
	var mark [4]byte
	if _, err := io.ReadFull(n.in, mark[:]); err != nil {
		return err
	}
	size := int(be.Uint32(mark[:]) &^ lastFragment)
	if be.Uint32(mark[:])&lastFragment == 0 || size > maxRecord {
		return errors.New("the server sends a record in fragments, or too long a one")
	}
	// The head of a reply to READ, credentials included, is shorter than this.
	head, err := n.in.Peek(min(size, 512))
	if err != nil {
		return err
	}
	d := xdr.Decoder{Data: head}
	xid := d.Uint32()
	n.mu.Lock()
	m, ok := n.flying[xid]
	delete(n.flying, xid)
	n.mu.Unlock()
	if !ok {
		return fmt.Errorf("a reply to no call (%d)", xid)
	}
	if err := replyHead(&d); err != nil {
		return fmt.Errorf("%s: %w", n.Calls[m.call].Proc, err)
	}
	if m.look == 0 && n.procs[m.call] == procRead {
		return n.received(m, n.readReply(&m, size, head, d))
	}
	record := head
	if size > len(head) {
		record = make([]byte, size)
		if _, err := io.ReadFull(n.in, record); err != nil {
			return err
		}
		d.Data = record[len(head)-len(d.Data):]
		size = 0
	}
	n.mu.Lock()
	again, wrong := n.check(&m, &d)
	n.mu.Unlock()
	if size > 0 {
		_, _ = n.in.Discard(size) // all of it is in memory
	}
	if again {
		return nil
	}
	return n.received(m, readResult{wrong: wrong})
}

// readResult is what became of a reply.
type readResult struct {
	err   error  // the connection is of no use any more
	wrong string // what is wrong with the answer
	again bool   // the answer was short: the rest is asked for
}

// received ends a call, and makes the calls that waited for it.
func (n *node) received(m message, r readResult) error {
	if r.err != nil || r.again {
		return r.err
	}
	if r.wrong != "" {
		c := &n.Calls[m.call]
		n.result.wrong(fmt.Sprintf("%s of /%s: %s", c.Proc, n.path(c.Object), r.wrong))
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left--
	n.result.calls.Add(1)
	for _, i := range n.waiting[m.call] {
		if n.pending[i]--; n.pending[i] == 0 {
			n.later(int(i))
		}
	}
	return nil
}

// readReply takes a reply to READ: its data is not kept.
func (n *node) readReply(m *message, size int, head []byte, d xdr.Decoder) (r readResult) {
	c := &n.Calls[m.call]
	status := d.Uint32()
	var attr Object
	attr.setPostOp(&d)
	var length uint32
	eof := false
	if status == 0 {
		length = d.Uint32()
		eof = d.Bool()
		if d.Uint32() != length {
			d.Fail()
		}
	}
	if used := len(head) - len(d.Data); d.Bad || size-used != int(length+3)&^3 {
		return readResult{err: errors.New("READ: malformed reply")}
	}
	if _, r.err = n.in.Discard(len(head) - len(d.Data)); r.err != nil {
		return r
	}
	for left := int(length); left > 0; {
		b, err := n.in.Peek(min(left, max(1, n.in.Buffered())))
		if err != nil {
			return readResult{err: err}
		}
		m.crc = crc32.Update(m.crc, castagnoli, b)
		left -= len(b)
		_, _ = n.in.Discard(len(b)) // it was just seen
	}
	if _, r.err = n.in.Discard(-int(length) & 3); r.err != nil {
		return r
	}
	m.done += length
	n.bytes += uint64(length)
	n.result.bytes.Add(uint64(length))
	switch {
	case status != c.Status:
		r.wrong = statusText(status, c.Status)
	case status != 0:
	case m.done < c.Length && length > 0 && !eof:
		n.mu.Lock()
		n.now(*m)
		n.mu.Unlock()
		r.again = true
	case m.done != c.Length:
		r.wrong = fmt.Sprintf("%d bytes instead of %d at %d", m.done, c.Length, c.Offset)
	case !n.rightData(m):
		r.wrong = fmt.Sprintf("other data than was recorded, at %d", c.Offset)
	case !n.Objects[c.Object].sameAttr(&attr):
		r.wrong = "other attributes than were recorded"
	}
	return r
}

func (n *node) rightData(m *message) bool {
	if !n.learn {
		return m.crc == n.Calls[m.call].CRC
	}
	l := &n.learnt[m.call]
	l.Lock()
	defer l.Unlock()
	if !l.known {
		l.known, l.crc = true, m.crc
	}
	return l.crc == m.crc
}

func statusText(got, wanted uint32) string {
	return fmt.Sprintf("status %d instead of %d", got, wanted)
}

// check takes the results of all calls but READ, and compares them with what
// was recorded. again is true if the call goes on. The caller holds mu.
func (n *node) check(m *message, d *xdr.Decoder) (again bool, wrong string) {
	c := &n.Calls[m.call]
	status := d.Uint32()
	if m.look > 0 {
		if status != 0 {
			return false, fmt.Sprintf("LOOKUP of /%s: status %d", n.path(m.look), status)
		}
		n.learnHandle(m.look, d.Opaque(maxHandle))
		n.result.extra.Add(1)
		n.now(*m)
		return true, ""
	}
	if status != c.Status {
		return false, statusText(status, c.Status)
	}
	if status != 0 {
		return false, ""
	}
	o := &n.Objects[c.Object]
	var attr Object
	switch n.procs[m.call] {
	case procGetattr:
		attr.setAttr(d)
	case procLookup:
		handle := d.Opaque(maxHandle)
		attr.setPostOp(d)
		o = &n.Objects[c.Gives]
		if c.Gives == 0 {
			attr = Object{}
		} else {
			n.learnHandle(c.Gives, handle)
		}
	case procAccess:
		attr.setPostOp(d)
		if grant := d.Uint32() & accessReading; grant != c.Grant {
			return false, fmt.Sprintf("access %#x instead of %#x", grant, c.Grant)
		}
	case procReadlink:
		attr.setPostOp(d)
		if target := FileName(d.Opaque(maxPath)); target != o.Target {
			return false, fmt.Sprintf("it points to %q instead of %q", target, o.Target)
		}
	case procReaddir, procReaddirplus:
		attr.setPostOp(d)
		return n.checkListing(m, d)
	case procFsinfo, procFsstat, procPathconf:
		attr.setPostOp(d)
	}
	if d.Bad {
		return false, "malformed reply"
	}
	if !o.sameAttr(&attr) {
		return false, fmt.Sprintf("other attributes than were recorded (%s)", attrDifference(o, &attr))
	}
	return false, ""
}

func attrDifference(a, b *Object) string {
	text := func(o *Object) string {
		return fmt.Sprintf("type %d mode %o links %d owner %d:%d size %d device %d:%d time %d.%09d", o.Type, o.Mode, o.Links, o.UID, o.GID, o.Size, o.Major, o.Minor, o.Sec, o.Nsec)
	}
	return text(b) + ", not " + text(a)
}

// checkListing takes a part of a directory, and asks for the next.
func (n *node) checkListing(m *message, d *xdr.Decoder) (again bool, wrong string) {
	c := &n.Calls[m.call]
	l := n.lists[m.call]
	l.verifier = d.Uint64()
	eof := entries(d, n.procs[m.call] == procReaddirplus, func(e *entry) {
		l.cookie = e.cookie
		l.sum += listing(e.name)
		if object, ok := n.names[child{c.Object, string(e.name)}]; ok && len(e.handle) > 0 {
			n.learnHandle(object, e.handle)
		}
	})
	switch {
	case d.Bad:
		return false, "malformed reply"
	case !eof:
		n.now(*m)
		return true, ""
	}
	if want := n.Objects[c.Object].Listing; want != 0 && l.sum != want {
		wrong = "other names than were recorded"
	}
	delete(n.lists, m.call)
	return false, wrong
}

func (n *node) learnHandle(object int, handle []byte) {
	if n.handles[object] == nil && len(handle) > 0 {
		n.handles[object] = append([]byte(nil), handle...)
	}
}
