package transfer

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// preface is the first line that each side writes. What stands before it was
// written by a login shell.
const preface = "sidus-transfer\n"

// maxNoise bounds what may stand before the preface, in bytes.
const maxNoise = 16 << 10

// The types of frames. A frame is its type, the length of its content in four
// bytes, big-endian, and the content.
const (
	frameMessage = 'M' // a message, JSON
	frameData    = 'D' // bytes of what a message has announced
	frameEnd     = 'E' // all of it was sent
	frameAbort   = 'X' // the rest does not come; the content says why
	frameAlive   = 'K' // nothing: the sender is still there
)

const (
	maxMessage = 64 << 20 // an inventory of 100,000 snapshots has 40 MB
	maxData    = 256 << 10
)

var (
	// ErrCut is returned if the other side, or the connection, went away.
	ErrCut = errors.New("the connection was cut")
	// ErrProtocol is returned if the other side breaks the protocol.
	ErrProtocol = errors.New("the other side does not speak this protocol")
	// ErrVersion is returned if the two have no version of the protocol in
	// common.
	ErrVersion = errors.New("the two versions of sidus have no transfer protocol in common")
)

// wire is one side of a connection.
type wire struct {
	r        *bufio.Reader
	mu       sync.Mutex // of w
	w        io.Writer
	sent     atomic.Int64 // bytes
	received atomic.Int64 // bytes
}

func newWire(rw io.ReadWriter) *wire {
	c := &wire{w: rw}
	c.r = bufio.NewReaderSize(countingReader{rw, &c.received}, maxData)
	return c
}

type countingReader struct {
	r io.Reader
	n *atomic.Int64
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n.Add(int64(n))
	return n, err
}

func (c *wire) write(p []byte) error {
	n, err := c.w.Write(p)
	c.sent.Add(int64(n))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCut, err)
	}
	return nil
}

// silence is what both sides keep to. The zero value stands for what is usual.
type silence struct{ alive, idle time.Duration }

// aliveEvery is after how long something is said. It is well below idleLimit.
func (q silence) aliveEvery() time.Duration { return cmp.Or(q.alive, 15*time.Second) }

// idleLimit is how long nothing may come of the other side, if it keeps the
// connection alive; any sender says what he wants within that time.
func (q silence) idleLimit() time.Duration { return cmp.Or(q.idle, 2*time.Minute) }

// keepAlive writes something at least once in an interval, until ctx ends or the
// connection does.
func (c *wire) keepAlive(ctx context.Context, every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for before := int64(0); ; before = c.sent.Load() {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if c.sent.Load() != before {
			continue
		}
		if err := c.frame(frameAlive, nil); err != nil {
			return // whoever says something next meets it, too
		}
	}
}

// watched is a connection that is closed when nothing comes for too long while
// somebody waits: a machine that lost its power does not say so.
type watched struct {
	io.ReadWriteCloser
	limit time.Duration // 0: none
	dead  atomic.Bool
}

func (w *watched) Read(p []byte) (int, error) {
	if w.limit <= 0 {
		return w.ReadWriteCloser.Read(p)
	}
	timer := time.AfterFunc(w.limit, func() {
		w.dead.Store(true)
		_ = w.Close()
	})
	defer timer.Stop()
	n, err := w.ReadWriteCloser.Read(p)
	return n, w.explain(err)
}

func (w *watched) Write(p []byte) (int, error) {
	n, err := w.ReadWriteCloser.Write(p)
	return n, w.explain(err)
}

// explain says why the connection was closed.
func (w *watched) explain(err error) error {
	if err != nil && w.dead.Load() {
		return fmt.Errorf("nothing was heard of the other side for %s", w.limit)
	}
	return err
}

// greet writes the preface.
func (c *wire) greet() error { return c.write([]byte(preface)) }

// meet reads the other side's preface.
func (c *wire) meet() error {
	var noise strings.Builder
	for noise.Len() < maxNoise {
		line, err := c.r.ReadString('\n')
		if line == preface {
			return nil
		}
		noise.WriteString(line)
		if err != nil {
			if text := strings.TrimSpace(noise.String()); text != "" {
				return fmt.Errorf("%w; it said: %.300q", ErrProtocol, text)
			}
			if err == io.EOF { // not what wraps it and says more
				return fmt.Errorf("%w before it said anything", ErrCut)
			}
			return fmt.Errorf("%w: %w", ErrCut, err)
		}
	}
	return fmt.Errorf("%w; it said: %.300q, …", ErrProtocol, strings.TrimSpace(noise.String()))
}

// frame writes one frame.
func (c *wire) frame(kind byte, content []byte) error {
	b := make([]byte, 5, 5+len(content))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(len(content)))
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.write(append(b, content...))
}

// next reads one frame that says something.
func (c *wire) next() (kind byte, content []byte, err error) {
	var head [5]byte
	for head[0] == 0 || head == [5]byte{frameAlive} {
		if _, err := io.ReadFull(c.r, head[:]); err != nil {
			return 0, nil, cutError(err)
		}
	}
	limit := uint32(maxData)
	if head[0] == frameMessage {
		limit = maxMessage
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > limit || !bytes.ContainsRune([]byte{frameMessage, frameData, frameEnd, frameAbort}, rune(head[0])) {
		return 0, nil, fmt.Errorf("%w: a frame of type %q with %d bytes", ErrProtocol, head[0], n)
	}
	content = make([]byte, n)
	if _, err := io.ReadFull(c.r, content); err != nil {
		return 0, nil, cutError(err)
	}
	return head[0], content, nil
}

func cutError(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF { // not what wraps it and says more
		return ErrCut
	}
	return fmt.Errorf("%w: %w", ErrCut, err)
}

// envelope is the JSON of a message.
type envelope struct {
	Kind string          `json:"kind"`
	Body json.RawMessage `json:"body,omitempty"`
}

// send writes a message.
func (c *wire) send(kind string, body any) error {
	text, err := json.Marshal(body)
	if err == nil {
		text, err = json.Marshal(envelope{kind, text})
	}
	if err != nil {
		return err
	}
	return c.frame(frameMessage, text)
}

// message reads a message.
func (c *wire) message() (envelope, error) {
	kind, content, err := c.next()
	if err != nil {
		return envelope{}, err
	}
	return decodeMessage(kind, content)
}

func decodeMessage(kind byte, content []byte) (e envelope, err error) {
	if kind != frameMessage {
		return e, fmt.Errorf("%w: a frame of type %q where a message belongs", ErrProtocol, kind)
	}
	if err := json.Unmarshal(content, &e); err != nil {
		return e, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return e, nil
}

func (e envelope) decode(into any) error {
	if err := json.Unmarshal(e.Body, into); err != nil {
		return fmt.Errorf("%w: the message %q: %w", ErrProtocol, e.Kind, err)
	}
	return nil
}

// gate is a reader that can be shut: a store that gives up may leave somebody
// behind who reads.
type gate struct {
	mu   sync.Mutex // held while somebody reads
	r    io.Reader
	shut atomic.Bool
}

var errShut = errors.New("nobody wants this any more")

func (g *gate) Read(p []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut.Load() {
		return 0, errShut
	}
	return g.r.Read(p)
}

// close lets nobody begin to read. busy tells that somebody still does; wait
// returns when he has ended.
func (g *gate) close() (busy bool) {
	g.shut.Store(true)
	if !g.mu.TryLock() {
		return true
	}
	g.mu.Unlock()
	return false
}

func (g *gate) wait() {
	g.mu.Lock()
	defer g.mu.Unlock()
}

// dataReader yields the data frames up to the end. Each other frame is an error
// that stays.
type dataReader struct {
	c    *wire
	rest []byte
	err  error
}

func (d *dataReader) Read(p []byte) (int, error) {
	for len(d.rest) == 0 && d.err == nil {
		kind, content, err := d.c.next()
		switch {
		case err != nil:
			d.err = err
		case kind == frameData:
			d.rest = content
		case kind == frameEnd:
			d.err = io.EOF
		case kind == frameAbort:
			d.err = fmt.Errorf("%w: %w: %.1000q", ErrCut, errAborted, content)
		default:
			d.err = fmt.Errorf("%w: a frame of type %q between data", ErrProtocol, kind)
		}
	}
	n := copy(p, d.rest)
	d.rest = d.rest[n:]
	if n > 0 {
		return n, nil
	}
	return 0, d.err
}

// errAborted says that the sender took back what it was sending; the
// connection goes on.
var errAborted = errors.New("the sender stopped")

// drain reads what is left, so that the next message can be read. It returns
// an error if the connection is of no use any more.
func (d *dataReader) drain() error {
	_, err := io.Copy(io.Discard, d)
	if errors.Is(err, errAborted) {
		return nil
	}
	return err
}
