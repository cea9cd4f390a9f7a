package nfs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// Server serves snapshots by NFS version 3 and MOUNT. Fill in the fields
// before the first call of a method; they must not change afterwards.
type Server struct {
	// Key is the site's key, KeySize bytes. All servers that have the same
	// accept each other's handles.
	Key []byte
	// Source gives the snapshots.
	Source Source
	// Allow decides who may use the server. Nil allows source ports below 1024
	// (PrivilegedPort). It is asked once per connection. Who is refused gets
	// an authentication error in answer to each call but NULL.
	Allow func(client netip.AddrPort) bool
	// OnMount is called when a client has mounted a snapshot. It may be nil.
	OnMount func(client netip.AddrPort, id store.SnapshotID)
	// Logger is where to log. Nil discards.
	Logger logrus.FieldLogger
	// Limits bound what clients can use up.
	Limits Limits

	once       sync.Once
	startErr   error
	key        handleKey
	source     Source
	limits     Limits
	log        logrus.FieldLogger
	onMount    func(netip.AddrPort, store.SnapshotID)
	ctx        context.Context
	cancel     context.CancelFunc
	background sync.WaitGroup // snapshots that are being opened

	snapshots snapshots
	files     *files
	small     smallFiles
	clients   clients
	mounts    mounts
	stats     stats
	turns     turns
	disk      chan struct{} // a place for each read that waits for a disk
	inputs    sync.Pool     // *[]byte of inputSize
	outputs   sync.Pool     // *[]byte of outputSize
	scratch   sync.Pool     // *[]byte for reading into the page cache
	calls     sync.Pool     // *deferredCall

	mu        sync.Mutex
	closing   bool
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	serving   sync.WaitGroup // goroutines of connections

	lastReadError struct {
		sync.Mutex
		at time.Time
	}
}

// Limits bound what clients can use up. Zero fields have the default named.
type Limits struct {
	Connections          int           // of all clients; 8192
	ConnectionsPerClient int           // of one address; 1024
	WaitingPerConnection int           // calls that wait for a disk or a snapshot; 64
	WaitingPerClient     int           // the same, of one address; 64
	DiskReads            int           // in flight, of all clients; 256
	OpenFiles            int           // kept open; 32768, or half of RLIMIT_NOFILE if that is less
	SmallFiles           int           // bytes of the contents of small files, kept in memory; 128 MiB
	Record               int           // bytes of one request; 128 KiB
	OpenTimeout          time.Duration // waiting for Source.Open before NFS3ERR_JUKEBOX is answered; 20 s
	StallTimeout         time.Duration // a client that reads no reply, or stops within a request; 60 s
}

func (l *Limits) setDefaults() {
	set := func(p *int, v int) {
		if *p <= 0 {
			*p = v
		}
	}
	set(&l.Connections, 8192)
	set(&l.ConnectionsPerClient, 1024)
	set(&l.WaitingPerConnection, 64)
	set(&l.WaitingPerClient, 64)
	set(&l.DiskReads, 256)
	set(&l.OpenFiles, 32768)
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err == nil {
		l.OpenFiles = int(min(uint64(l.OpenFiles), files.Cur/2))
	}
	set(&l.SmallFiles, 128<<20)
	set(&l.Record, 128<<10)
	if l.OpenTimeout <= 0 {
		l.OpenTimeout = 20 * time.Second
	}
	if l.StallTimeout <= 0 {
		l.StallTimeout = time.Minute
	}
}

// PrivilegedPort reports whether a client's port is below 1024, which on
// Unix only the superuser can bind.
func PrivilegedPort(client netip.AddrPort) bool { return client.Port() < 1024 }

// ErrServerClosed is returned by Serve after Shutdown.
var ErrServerClosed = errors.New("nfs: server closed")

func (s *Server) start() {
	s.once.Do(func() {
		if len(s.Key) != KeySize {
			s.startErr = fmt.Errorf("nfs: the key has %d bytes, not %d", len(s.Key), KeySize)
		}
		s.key = newHandleKey(s.Key)
		s.source, s.onMount = s.Source, s.OnMount
		s.limits = s.Limits
		s.limits.setDefaults()
		s.log = s.Logger
		if s.log == nil {
			discard := logrus.New()
			discard.SetOutput(io.Discard)
			s.log = discard
		}
		s.ctx, s.cancel = context.WithCancel(context.Background())
		s.snapshots = snapshots{server: s, slots: map[[16]byte]*slot{}}
		s.files = newFiles(s.limits.OpenFiles)
		s.small.init(s.limits.SmallFiles)
		s.clients.all = map[netip.Addr]*client{}
		s.disk = make(chan struct{}, s.limits.DiskReads)
		if err := shortSlices(); err != nil {
			s.log.WithError(err).Debug("the kernel's time slices are as long as usual")
		}
		s.turns.free, s.turns.clients = turnsAtOnce(), &s.clients
		s.inputs.New = func() any { b := make([]byte, inputSize); return &b }
		s.outputs.New = func() any { b := make([]byte, 0, outputSize); return &b }
		s.scratch.New = func() any { b := make([]byte, 64<<10); return &b }
		s.calls.New = func() any { return new(deferredCall) }
		s.listeners = map[net.Listener]struct{}{}
		s.conns = map[*conn]struct{}{}
	})
}

// Serve accepts connections on a TCP listener until it fails or Shutdown is
// called, and then returns ErrServerClosed. It closes the listener.
func (s *Server) Serve(l net.Listener) error {
	s.start()
	defer func() { _ = l.Close() }()
	if s.startErr != nil {
		return s.startErr
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return ErrServerClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	pause := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err != nil {
			if s.ctx.Err() != nil || s.isClosing() {
				return ErrServerClosed
			}
			var temporary interface{ Temporary() bool }
			if !errors.As(err, &temporary) || !temporary.Temporary() {
				return fmt.Errorf("nfs: %w", err)
			}
			// Such as EMFILE: wait until connections were closed.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			s.log.WithError(err).Warn("no connection can be accepted")
			select {
			case <-time.After(pause):
			case <-s.ctx.Done():
			}
			continue
		}
		pause = 0
		tcp, ok := nc.(*net.TCPConn)
		if !ok {
			_ = nc.Close()
			return fmt.Errorf("nfs: %s is no TCP listener", l.Addr())
		}
		s.accept(tcp)
	}
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// accept starts serving a connection.
func (s *Server) accept(tcp *net.TCPConn) {
	peer := tcp.RemoteAddr().(*net.TCPAddr).AddrPort()
	peer = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port())
	p, ok := s.clients.enter(peer.Addr(), &s.limits)
	if !ok {
		s.refuse(p, peer, "too many connections")
		_ = tcp.Close()
		return
	}
	allow := s.Allow
	if allow == nil {
		allow = PrivilegedPort
	}
	c, err := newConn(s, tcp, peer, p)
	if err != nil {
		s.clients.leave(p)
		_ = tcp.Close()
		return
	}
	if !allow(peer) {
		c.call.refused = true
		s.refuse(p, peer, "client is not allowed")
		_ = tcp.SetReadDeadline(time.Now().Add(refusedLife))
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		s.clients.leave(p)
		_ = tcp.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.serving.Add(1)
	s.mu.Unlock()
	go func() {
		defer s.serving.Done()
		c.serve()
		s.clients.leave(p)
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
}

// refusedLife is how long a connection is kept whose calls are all refused.
const refusedLife = 10 * time.Second

// refuse counts a refusal, and logs it if it is the client's first.
func (s *Server) refuse(p *client, peer netip.AddrPort, reason string) {
	s.stats.refused.Add(1)
	if !p.refused.Swap(true) {
		s.log.WithField("client", peer).WithField("reason", reason).Warn("NFS client refused (said once)")
	}
}

// Shutdown stops the server: no new connections and no new calls; calls that
// are being answered are ended. When ctx is done it stops waiting for them and
// closes their connections. Then all snapshots are given back.
func (s *Server) Shutdown(ctx context.Context) error {
	s.start()
	s.mu.Lock()
	s.closing = true
	for l := range s.listeners {
		_ = l.Close()
	}
	for c := range s.conns {
		c.stop()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.serving.Wait()
		close(done)
	}()
	var err error
	select {
	case <-done:
	case <-ctx.Done():
		err = ctx.Err()
		s.cancel()
		s.mu.Lock()
		for c := range s.conns {
			_ = c.tcp.Close()
		}
		s.mu.Unlock()
		<-done
	}
	s.cancel()
	s.background.Wait()
	s.snapshots.forget(nil)
	s.small.free()
	return err
}

// Forget drops an open snapshot, since it is about to be deleted or unmounted.
// Its files are closed and its Close called as soon as the calls that use it
// have ended. The next call for it asks the Source again.
func (s *Server) Forget(id store.SnapshotID) {
	s.start()
	raw := id.Bytes()
	s.snapshots.forget(&raw)
}

// logReadError logs that file data could not be read: at most once a second,
// since clients try again.
func (s *Server) logReadError(o *object, err error) {
	s.lastReadError.Lock()
	now := time.Now()
	quiet := now.Sub(s.lastReadError.at) < time.Second
	if !quiet {
		s.lastReadError.at = now
	}
	s.lastReadError.Unlock()
	if quiet {
		return
	}
	path, _ := o.snap.index.AppendPath([]byte("/"), o.id)
	s.log.WithError(err).WithField("snapshot", o.snap.name).WithField("path", string(path)).Error("file cannot be read")
}
