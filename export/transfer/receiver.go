package transfer

import (
	"bufio"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/gofrs/flock"
	"github.com/sirupsen/logrus"

	"sidus/export/stream"
	"sidus/image"
	"sidus/image/store"
)

// Receiver takes what senders send. Fill in the fields, then call Serve for
// each connection.
type Receiver struct {
	Manager *image.Manager
	Store   store.Store
	Layout  image.Layout
	Program string             // for the other side: "sidus 1.2"
	Log     logrus.FieldLogger // required

	hello *hello  // what is said instead of the truth; for tests
	quiet silence // other than usual; for tests
}

// spaceCheck is how often the space that is left is looked at.
const spaceCheck = 500 * time.Millisecond

// Serve answers one sender, who must have been authenticated, until he says
// that he is done, the connection is cut or ctx ends; rw is closed then. peer
// names him in the log.
func (r *Receiver) Serve(ctx context.Context, rw io.ReadWriteCloser, peer string) (err error) {
	conn := &watched{ReadWriteCloser: rw, limit: r.quiet.idleLimit()}
	s := &receiving{Receiver: r, conn: conn, c: newWire(conn), log: r.Log.WithField("peer", peer)}
	ctx, cancel := context.WithCancel(ctx)
	defer func() {
		cancel()
		err = errors.Join(err, ignoreClosed(rw.Close()))
		s.keeper.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { _ = rw.Close() })
	defer stop()
	if err = s.serve(ctx); err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, os.ErrClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// receiving is one connection.
type receiving struct {
	*Receiver
	conn  *watched
	c     *wire
	log   logrus.FieldLogger
	mode  Mode
	other hello
	lock  *flock.Flock // of Layout.IncomingLock, while something is taken

	keeper sync.WaitGroup // keeps the connection alive
}

func (s *receiving) serve(ctx context.Context) error {
	if err := s.c.greet(); err != nil {
		return err
	}
	if err := s.c.meet(); err != nil {
		return err
	}
	first, err := s.c.message()
	if err != nil {
		return err
	}
	if first.Kind != msgHello {
		return fmt.Errorf("%w: it begins with %q", ErrProtocol, first.Kind)
	}
	if err := first.decode(&s.other); err != nil {
		return err
	}
	if !s.other.can(keepsAlive) {
		s.conn.limit = 0
	}
	reply, err := s.answerHello(ctx)
	defer s.unlock()
	if err != nil {
		return s.refuse(err)
	}
	if err := s.c.send(msgHello, reply); err != nil {
		return err
	}
	if s.other.can(keepsAlive) && reply.can(answersAlive) {
		s.keeper.Go(func() { s.c.keepAlive(ctx, s.quiet.aliveEvery()) })
	}
	for {
		m, err := s.c.message()
		if err != nil {
			return err
		}
		if m.Kind == msgBye {
			return nil
		}
		if err := s.answer(ctx, m); err != nil {
			return err
		}
	}
}

// refuse says what is wrong and returns it: the connection ends.
func (s *receiving) refuse(err error) error {
	s.say(err)
	return err
}

// say says what is wrong.
func (s *receiving) say(err error) {
	e := remote(err)
	if e.Code == codeSuperseded {
		if site, err := s.Manager.Site(context.Background()); err == nil {
			e.Epoch = site.Epoch
		}
	}
	if sendErr := s.c.send(msgError, e); sendErr != nil {
		s.log.WithError(sendErr).Debug("the sender does not hear why it was refused")
	}
}

// answerHello decides whether a sender may send.
func (s *receiving) answerHello(ctx context.Context) (mine hello, err error) {
	site, err := s.Manager.Site(ctx)
	if err != nil {
		return mine, err
	}
	mine = hello{Min: minVersion, Max: maxVersion, Program: s.Program, Host: hostname(), Site: site.ID, Epoch: site.Epoch, Role: site.Role,
		Can: []string{takesRecipes, keepsAlive, answersAlive}}
	if s.hello != nil {
		mine.Min, mine.Max, mine.Can = s.hello.Min, s.hello.Max, s.hello.Can
	}
	if receiver, ok := s.Store.(store.NativeReceiver); ok {
		if sender, ok := receiver.(store.NativeSender); ok {
			mine.Kinds = append(mine.Kinds, stream.Kind(sender.SendKind()))
		}
	}
	if _, err := version(s.other, mine); err != nil {
		return mine, err
	}
	s.mode = s.other.Mode
	s.log.Infof("%s (%s) begins to %s", s.other.Host, s.other.Program, s.mode)
	switch s.mode {
	case Send:
		if err := s.Manager.Writable(ctx); err != nil {
			return mine, err
		}
	case Replicate:
		if err := s.follow(ctx, site); err != nil {
			return mine, err
		}
	default:
		return mine, fmt.Errorf("%w: it wants to %q", ErrProtocol, s.other.Mode)
	}
	site, err = s.Manager.Site(ctx)
	mine.Site, mine.Epoch, mine.Role = site.ID, site.Epoch, site.Role
	return mine, err
}

// follow lets a primary bring its state here, if it is the right one.
func (s *receiving) follow(ctx context.Context, site image.Site) error {
	if s.other.Role != image.Primary {
		return fmt.Errorf("%w: only a primary replicates, and %s is a %s", ErrProtocol, s.other.Host, s.other.Role)
	}
	if site.ID == s.other.Site && s.other.Epoch < site.Epoch {
		who := "this server"
		if site.Role != image.Primary {
			who = site.Host
		}
		return fmt.Errorf("%w: %s is the primary of the site, since epoch %d (yours is %d); `sidus demote` on %s makes a replica of it",
			ErrSuperseded, who, site.Epoch, s.other.Epoch, s.other.Host)
	}
	if site.ID == s.other.Site && s.other.Epoch > site.Epoch {
		if err := s.Manager.Supersede(ctx, s.other.Host, s.other.Epoch); err != nil {
			return err
		}
	}
	if site.ID == s.other.Site && site.Role == image.Primary && s.other.Epoch > site.Epoch {
		s.log.Warnf("%s has taken over from this server", s.other.Host)
		return fmt.Errorf("%s was the primary until now, and may hold what %s does not know: %w; `sidus demote` there makes it a replica",
			hostname(), s.other.Host, store.ErrInUse)
	}
	if err := s.take(ctx); err != nil {
		return err
	}
	return s.Manager.Follow(ctx, s.other.Site, s.other.Epoch, s.other.Host, s.other.Channels)
}

// take takes the right to change what replication changes: one transfer at a
// time comes in.
func (s *receiving) take(ctx context.Context) error {
	if s.lock != nil {
		return nil
	}
	if err := os.MkdirAll(s.Layout.Incoming(), 0o700); err != nil {
		return err
	}
	lock := flock.New(s.Layout.IncomingLock(), flock.SetPermissions(0o600))
	mine, err := lock.TryLock()
	if err != nil {
		return errors.Join(err, lock.Close())
	}
	if !mine {
		return errors.Join(fmt.Errorf("%s: %w: another transfer comes in right now; try again when it is done", hostname(), store.ErrInUse), lock.Close())
	}
	s.lock = lock
	// What a transfer has left that was cut.
	if err := os.RemoveAll(s.Layout.IncomingState()); err != nil {
		return err
	}
	return s.Manager.SettleDead(ctx, "import", "replicate")
}

func (s *receiving) unlock() {
	if s.lock != nil {
		_ = s.lock.Close() // the end of the process would unlock it, too
		s.lock = nil
	}
}

// answer does what a message asks for. It returns an error if the connection
// is of no use any more; what else goes wrong is said to the sender.
func (s *receiving) answer(ctx context.Context, m envelope) error {
	var reply any = struct{}{}
	kind, err := msgDone, error(nil)
	switch m.Kind {
	case msgInventory:
		kind = msgInventory
		reply, err = s.Manager.Inventory(ctx)
	case msgSnapshot:
		return s.snapshot(ctx, m)
	case msgDrop:
		var d drop
		if err = m.decode(&d); err == nil {
			err = s.drop(ctx, d)
		}
	case msgState:
		return s.state(ctx, m)
	default:
		return s.refuse(fmt.Errorf("%w: the message %q", ErrProtocol, m.Kind))
	}
	if err != nil {
		s.say(err)
		return nil
	}
	return s.c.send(kind, reply)
}

func (s *receiving) drop(ctx context.Context, d drop) error {
	if s.mode != Replicate {
		return fmt.Errorf("%w: drop", ErrProtocol)
	}
	return s.Manager.DropDiverged(ctx, image.Diverged(d))
}

// snapshot takes one snapshot.
func (s *receiving) snapshot(ctx context.Context, m envelope) error {
	var o offer
	if err := m.decode(&o); err != nil {
		return s.refuse(err)
	}
	if err := o.Manifest.Validate(); err != nil {
		s.say(err)
		return nil
	}
	if lost, err := s.Manager.IsLost(ctx, o.Manifest.Snapshot); err == nil && !lost {
		s.log.Debugf("%s is here already", o.Manifest.Snapshot)
		return s.c.send(msgSnapshot, offerReply{Have: true})
	} else if err != nil && !errors.Is(err, store.ErrNotFound) {
		s.say(err)
		return nil
	}
	if base := o.Manifest.Base; base != "" {
		if _, err := s.Manager.SnapshotByID(ctx, base); err != nil {
			s.say(fmt.Errorf("the base: %w", err))
			return nil
		}
	}
	if err := s.take(ctx); err != nil {
		s.say(err)
		return nil
	}
	spool, err := openSpool(s.Layout, o.Manifest, s.log)
	if err != nil {
		s.say(err)
		return nil
	}
	defer spool.close()
	reply := offerReply{}
	for _, u := range spool.units {
		reply.Units = append(reply.Units, hex.EncodeToString(u.Sum[:]))
	}
	if err := s.c.send(msgSnapshot, reply); err != nil {
		return err
	}
	next, err := s.c.message()
	if err != nil {
		return err
	}
	if next.Kind != msgResume {
		return s.refuse(fmt.Errorf("%w: %q instead of data", ErrProtocol, next.Kind))
	}
	var from resume
	if err := next.decode(&from); err != nil {
		return s.refuse(err)
	}
	if from.From < 0 || from.From > len(spool.units) {
		return s.refuse(fmt.Errorf("%w: it goes on at part %d of %d", ErrProtocol, from.From, len(spool.units)))
	}
	data := &dataReader{c: s.c}
	reader := &gate{}
	received, err := s.receive(ctx, o, spool, from.From, data, reader)
	// Whoever still reads has not met the end of the data.
	going := reader.close() || data.err == nil || errors.Is(data.err, io.EOF) || errors.Is(data.err, errAborted)
	if err != nil && going {
		s.log.WithError(err).Warn("a snapshot was not taken")
		// The sender stops when he hears of it; he may have stopped before.
		s.say(err)
	}
	reader.wait()
	if err != nil {
		spool.failed(err)
		if going {
			return data.drain()
		}
		return err
	}
	spool.remove()
	s.log.Infof("took %s (%s)", received.Ref(), received.ID)
	return s.c.send(msgSnapshot, stored{Ref: received.Ref()})
}

// receive takes the stream of a snapshot, which it reads through the gate.
func (s *receiving) receive(ctx context.Context, o offer, spool *spool, from int, data *dataReader, reader *gate) (image.Snapshot, error) {
	var err error
	if reader.r, err = spool.resume(from, data); err != nil {
		return image.Snapshot{}, err
	}
	r, err := stream.Open(bufio.NewReaderSize(reader, maxData), stream.ReaderOptions{})
	if err != nil {
		return image.Snapshot{}, err
	}
	m := r.Manifest()
	if m.Snapshot != o.Manifest.Snapshot || m.Base != o.Manifest.Base || m.Kind != o.Manifest.Kind || m.TreeID != o.Manifest.TreeID {
		return image.Snapshot{}, fmt.Errorf("%w: the stream is of snapshot %s, and %s was announced", ErrProtocol, m.Snapshot, o.Manifest.Snapshot)
	}
	ctx, stop := store.GuardSpace(ctx, s.Store, spaceCheck)
	defer stop()
	snapshot, err := s.Manager.Receive(ctx, image.ReceiveOptions{
		Snapshot: SnapshotOf(m), Tree: o.Tree, Base: m.Base, Source: s.other.Host, Replicated: s.mode == Replicate,
		Take: func(ctx context.Context, scratch store.VolumeID) error {
			return stream.Import(ctx, s.Store, r, stream.ImportOptions{Volume: scratch, Log: s.log})
		},
	})
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return snapshot, cause
	}
	return snapshot, err
}

// state takes the primary's catalog and secrets.
func (s *receiving) state(ctx context.Context, m envelope) error {
	var st state
	if err := m.decode(&st); err != nil {
		return s.refuse(err)
	}
	data := &dataReader{c: s.c}
	err := fmt.Errorf("%w: state", ErrProtocol)
	if s.mode == Replicate {
		err = s.takeState(ctx, st, data)
	}
	if drainErr := data.drain(); drainErr != nil {
		return drainErr
	}
	if err != nil {
		s.log.WithError(err).Warn("the primary's catalog was not taken over")
		s.say(err)
		return nil
	}
	return s.c.send(msgDone, struct{}{})
}

func (s *receiving) takeState(ctx context.Context, st state, data io.Reader) (err error) {
	dir := s.Layout.IncomingState()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := unpackState(data, dir, st.SHA256); err != nil {
		return err
	}
	copied, err := openCopy(ctx, image.Layout{Dir: dir}.Catalog())
	if err != nil {
		return err
	}
	if err := copied.Close(); err != nil {
		return err
	}
	from := image.Layout{Dir: dir}
	return s.Manager.Adopt(ctx, image.AdoptOptions{
		Catalog: from.Catalog(), Epoch: s.other.Epoch, Host: s.other.Host, AsOf: st.AsOf, Properties: st.Properties,
		Install: func() error {
			if st.Recipes {
				if err := image.TakeRecipes(from, s.Layout); err != nil {
					return err
				}
			}
			return installSecrets(from, s.Layout)
		},
	})
}

func hostname() string {
	name, err := os.Hostname()
	if err != nil {
		return "a server without a name"
	}
	return name
}

// takes tells whether a receiver takes a kind of stream.
func (h hello) takes(kind stream.Kind) bool {
	return kind == stream.Portable || slices.Contains(h.Kinds, kind)
}
