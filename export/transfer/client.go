package transfer

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"sidus/image"
)

// client is the sender's side of one connection. It is used by one goroutine.
type client struct {
	c     *wire
	mine  hello
	other hello
	end   func() error
}

// helloLimit is how long a receiver may take for its first words. Before them
// ssh may ask for a password.
const helloLimit = 5 * time.Minute

// connect greets a receiver. rw is closed by close, when ctx ends, and when a
// receiver that keeps the connection alive is silent.
func connect(ctx context.Context, rw io.ReadWriteCloser, mine hello, rate int64, quiet silence) (*client, error) {
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	keeping, stopKeeping := context.WithCancel(ctx)
	var keeper sync.WaitGroup
	conn := &watched{ReadWriteCloser: rw, limit: helloLimit}
	cl := &client{mine: mine, c: newWire(conn)}
	cl.end = func() error {
		stop()
		stopKeeping()
		err := ignoreClosed(rw.Close())
		keeper.Wait()
		return err
	}
	if rate > 0 {
		cl.c.w = &limited{ctx: ctx, w: conn, rate: rate}
	}
	if err := cl.hello(); err != nil {
		return nil, errors.Join(cl.failed(ctx, err), cl.end())
	}
	conn.limit = 0
	if mine.can(keepsAlive) && cl.other.can(answersAlive) {
		conn.limit = quiet.idleLimit()
	}
	if cl.other.can(keepsAlive) {
		keeper.Go(func() { cl.c.keepAlive(keeping, quiet.aliveEvery()) })
	}
	return cl, nil
}

func (cl *client) hello() error {
	// If nobody listens, what stands there instead says why.
	greetErr := cl.c.greet()
	if err := cl.c.meet(); err != nil {
		return err
	}
	if greetErr != nil {
		return greetErr
	}
	if err := cl.c.send(msgHello, cl.mine); err != nil {
		// He may have said why he does not listen.
		if _, answerErr := cl.reply(msgHello); answerErr != nil && !errors.Is(answerErr, ErrCut) {
			return answerErr
		}
		return err
	}
	answer, err := cl.reply(msgHello)
	if err != nil {
		return err
	}
	if err := answer.decode(&cl.other); err != nil {
		return err
	}
	_, err = version(cl.mine, cl.other)
	return err
}

// close says good-bye and ends the connection.
func (cl *client) close() error {
	_ = cl.c.send(msgBye, struct{}{}) // the end says it, too
	return cl.end()
}

// failed prefers the reason why ctx ended to what came of it.
func (cl *client) failed(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// reply reads a message of a kind. What the receiver says is wrong is a
// *RemoteError.
func (cl *client) reply(kind string) (envelope, error) {
	m, err := cl.c.message()
	if err != nil {
		return m, err
	}
	return m, cl.expect(m, kind)
}

func (cl *client) expect(m envelope, kind string) error {
	if m.Kind == msgError {
		e := &RemoteError{Host: "the receiver"}
		if err := m.decode(e); err != nil {
			return err
		}
		return e
	}
	if m.Kind != kind {
		return fmt.Errorf("%w: it answers %q instead of %q", ErrProtocol, m.Kind, kind)
	}
	return nil
}

// ask sends a message and reads the answer.
func (cl *client) ask(kind string, body any, answer string, into any) error {
	if err := cl.c.send(kind, body); err != nil {
		return err
	}
	m, err := cl.reply(answer)
	if err != nil {
		return err
	}
	return m.decode(into)
}

func (cl *client) inventory() (i image.Inventory, err error) {
	err = cl.ask(msgInventory, struct{}{}, msgInventory, &i)
	return i, err
}

// errRefused ends the making of a stream that the receiver does not want any
// more.
var errRefused = errors.New("the receiver stopped")

// snapshot sends one. begin makes the stream, once the receiver wants it. sent
// is false if he has it already.
func (cl *client) snapshot(ctx context.Context, o offer, begin func(ctx context.Context, w io.Writer) error) (sent bool, err error) {
	var reply offerReply
	if err := cl.ask(msgSnapshot, o, msgSnapshot, &reply); err != nil {
		return false, err
	}
	if reply.Have {
		return false, nil
	}
	w := &resuming{c: cl.c}
	for _, text := range reply.Units {
		var sum [sha256.Size]byte
		if n, err := hex.Decode(sum[:], []byte(text)); err != nil || n != len(sum) {
			return false, fmt.Errorf("%w: the digest %.100q", ErrProtocol, text)
		}
		w.have = append(w.have, sum)
	}
	// He may answer before all of it was sent.
	type answer struct {
		m   envelope
		err error
	}
	answers := make(chan answer, 1)
	making, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		m, err := cl.c.message()
		answers <- answer{m, err}
		if err != nil || m.Kind == msgError {
			cancel(errRefused)
		}
	}()
	err = begin(making, w)
	refused := errors.Is(context.Cause(making), errRefused)
	if err == nil {
		err = cl.c.frame(frameEnd, nil)
	} else if !errors.Is(err, ErrCut) {
		// The reason may name what is nobody's business there.
		err = errors.Join(err, w.start(), cl.c.frame(frameAbort, []byte("it could not be read to its end")))
	}
	a := <-answers
	switch {
	case a.err == nil && a.m.Kind == msgError && (err == nil || refused || errors.Is(err, ErrCut)):
		return false, cl.expect(a.m, msgSnapshot)
	case err != nil:
		return false, err
	case a.err != nil:
		return false, a.err
	}
	return true, cl.expect(a.m, msgSnapshot)
}

// resuming passes on a stream, unit by unit, but for those at its beginning
// that the receiver has. It relies on stream.Writer, which writes each unit in
// one call.
type resuming struct {
	c       *wire
	have    [][sha256.Size]byte
	unit    int
	begun   bool
	skipped int64 // bytes
}

func (r *resuming) Write(p []byte) (int, error) {
	if !r.begun && r.unit < len(r.have) && sha256.Sum256(p) == r.have[r.unit] {
		r.unit++
		r.skipped += int64(len(p))
		return len(p), nil
	}
	if err := r.start(); err != nil {
		return 0, err
	}
	for n := 0; n < len(p); {
		part := p[n:min(len(p), n+maxData)]
		if err := r.c.frame(frameData, part); err != nil {
			return n, err
		}
		n += len(part)
	}
	return len(p), nil
}

// start says where it goes on.
func (r *resuming) start() error {
	if r.begun {
		return nil
	}
	r.begun = true
	return r.c.send(msgResume, resume{From: r.unit})
}

// state sends catalog and secrets.
func (cl *client) state(s state, data io.Reader) error {
	if err := cl.c.send(msgState, s); err != nil {
		return err
	}
	buffer := make([]byte, maxData)
	for {
		n, err := io.ReadFull(data, buffer)
		if n > 0 {
			if err := cl.c.frame(frameData, buffer[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			break
		}
		if err != nil {
			return errors.Join(err, cl.c.frame(frameAbort, nil))
		}
	}
	if err := cl.c.frame(frameEnd, nil); err != nil {
		return err
	}
	_, err := cl.reply(msgDone)
	return err
}

// limited writes at most rate bytes per second, as a mean over a second.
type limited struct {
	ctx  context.Context
	w    io.Writer
	rate int64
	free time.Time // when what was written has had its time
}

func (l *limited) Write(p []byte) (n int, err error) {
	// Small pieces, so that a slow rate is an even one.
	piece := int(max(1, min(int64(maxData), l.rate/10)))
	for n < len(p) {
		now := time.Now()
		if l.free.Before(now) {
			l.free = now
		}
		select {
		case <-time.After(l.free.Sub(now)):
		case <-l.ctx.Done():
			return n, context.Cause(l.ctx)
		}
		part := p[n:min(len(p), n+piece)]
		k, err := l.w.Write(part)
		n += k
		if err != nil {
			return n, err
		}
		l.free = l.free.Add(time.Duration(float64(k) / float64(l.rate) * float64(time.Second)))
	}
	return n, nil
}
