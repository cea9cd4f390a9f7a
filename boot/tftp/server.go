package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"sync"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
)

// Server is a TFTP server. Its fields must not be changed after Serve was
// called.
type Server struct {
	// Loaders holds the boot loaders; nil means that there are none.
	Loaders fs.FS
	// Boot decides what a machine boots; nil means that no machine has a
	// configuration here.
	Boot pxe.Booter
	// Files opens kernels and initrds; nil means that there are none.
	Files pxe.BootFiles
	// Steps is told how far boots have got; nil means nobody.
	Steps pxe.Stepper
	// Log is written to; nil means nowhere.
	Log logrus.FieldLogger

	// MaxTransfers is the number of transfers at the same time; 0 means 2,000.
	MaxTransfers int
	// MaxPerClient is the same for one IP address; 0 means 32.
	MaxPerClient int
	// Timeout is how long an acknowledgement is waited for before a block is
	// sent again; 0 means 1 s.
	Timeout time.Duration
	// Retries is how often a block is sent again before a transfer is given up
	// and the client told so; 0 means usualRetries, which takes two minutes (see
	// pause). A client may hear nothing for long: the port of a switch that waits
	// for its spanning tree (30 s), a virtual machine that is paused. PXELINUX,
	// which then finds an error where it waits for its configuration, boots nothing
	// for five minutes.
	Retries int
	// NoMTU lets a client choose blocks that are larger than what fits into a
	// packet of the interface.
	NoMTU bool
}

// ListenAndServe serves on the UDP address ("10.0.0.1:69"; the port may not
// be left out) until ctx ends.
func (s *Server) ListenAndServe(ctx context.Context, address string) error {
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(ctx, "udp4", address)
	if err != nil {
		return fmt.Errorf("tftp: %w", err)
	}
	return s.Serve(ctx, conn)
}

// Serve answers what arrives on conn until ctx ends, and closes conn. It
// returns nil then, after the transfers under way have been cut: those whose
// clients still answer. Where one has gone, the transfer lets go of its file at
// once, and ends by itself when it has sent its block for the last time.
func (s *Server) Serve(ctx context.Context, conn net.PacketConn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	h := s.handler(ctx)
	server := pin.NewServer(h.read, nil)
	timeout := or(s.Timeout, time.Second)
	server.SetTimeout(timeout)
	server.SetRetries(or(s.Retries, usualRetries))
	server.SetBackoff(func(attempt int) time.Duration { return pause(attempt, timeout) })
	server.SetBlockSizeNegotiation(!s.NoMTU)
	server.SetHook(hook{h})

	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		<-ctx.Done()
		_ = conn.Close()
		server.Shutdown()
	}()
	err := server.Serve(conn)
	cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-stopped
		server.Shutdown() // a request may have begun while the first one waited
	}()
	select {
	case <-ended:
	case <-time.After(2 * timeout):
		h.log.Debug("tftp: clients that do not answer are not waited for")
	}
	if err != nil {
		return fmt.Errorf("tftp: %w", err)
	}
	return nil
}

// usualRetries make two minutes with pause and a timeout of a second.
const usualRetries = 44

// pause is for how long a transfer waits, after the timeout, before it sends a
// block again: not at all at first, when packets may have been lost, then for
// two timeouts. Who was started again meanwhile hears few packets that he did
// not ask for. It is no longer since nothing is heard in a pause: a machine that
// goes on would give up, and boot nothing for five minutes.
func pause(attempt int, timeout time.Duration) time.Duration {
	if attempt < 8 {
		return 0
	}
	return 2 * timeout
}

func (s *Server) handler(ctx context.Context) *handler {
	log := s.Log
	if log == nil {
		discard := logrus.New()
		discard.SetOutput(io.Discard)
		log = discard
	}
	return &handler{
		server:  s,
		ctx:     ctx,
		log:     log,
		slots:   newSlots(or(s.MaxTransfers, 2000), or(s.MaxPerClient, 32)),
		loaders: newMemory(4096),
		repeats: newRepeats(),
	}
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// handler is the state of one call of Serve.
type handler struct {
	server  *Server
	ctx     context.Context
	log     logrus.FieldLogger
	slots   *slots
	loaders *memory
	repeats *repeats
}

// The texts that clients are sent. What lies behind is logged, not told.
var (
	errMissing = errors.New("file not found")
	errBusy    = errors.New("too many transfers, try again")
	errFailed  = errors.New("cannot be read for now, try again")
)

// errBrokenOff says that a transfer has begun and did not get to its end.
var errBrokenOff = errors.New("broken off")

// read answers one read request.
func (h *handler) read(raw string, to io.ReaderFrom) error {
	transfer, ok := to.(pin.OutgoingTransfer)
	if !ok {
		return errFailed
	}
	remote := transfer.RemoteAddr()
	client, _ := netip.AddrFromSlice(remote.IP)
	client = client.Unmap()
	log := h.log.WithFields(logrus.Fields{"client": client, "file": shorten(raw)})

	request := asked{netip.AddrPortFrom(client, uint16(remote.Port)), raw}
	state := h.repeats.begin(request, time.Now())
	if state == nil {
		log.Debug("tftp: asked again, and answered already")
		return nil // says nothing; the socket is closed when it is collected
	}
	err := h.answer(raw, to, transfer, client, state, log)
	if errors.Is(err, errBrokenOff) {
		h.repeats.forget(request, state)
		return nil // ReadFrom has told the client
	}
	h.repeats.answered(state, time.Now())
	return err
}

// answer answers a request that is no repeat. The error is told to the client,
// unless it is errBrokenOff.
func (h *handler) answer(raw string, to io.ReaderFrom, transfer pin.OutgoingTransfer, client netip.Addr, state *answering, log logrus.FieldLogger) error {
	r, err := parse(raw)
	if err != nil {
		log.WithError(err).Warn("tftp: refused")
		return errRefused
	}
	release, ok := h.slots.take(client)
	if !ok {
		log.Warn("tftp: too many transfers at the same time")
		return errBusy
	}
	defer release()

	content, done, err := h.open(r, client)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if r.kind == kindMissing || r.kind == kindLoader {
			log.Debug("tftp: no such file")
		} else {
			log.WithError(err).Warn("tftp: no such file")
		}
		return errMissing
	case err != nil:
		log.WithError(err).Error("tftp: cannot open")
		return errFailed
	}
	// A client that has gone may keep this transfer from ending for long.
	letGo := sync.OnceFunc(func() { _ = content.Close() })
	defer letGo()
	defer context.AfterFunc(h.ctx, letGo)()
	size, err := content.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = content.Seek(0, io.SeekStart)
	}
	if err != nil {
		log.WithError(err).Error("tftp: cannot read")
		return errFailed
	}
	transfer.SetSize(size)
	done()

	begun := time.Now()
	h.repeats.sends(state, begun)
	source := &source{ctx: h.ctx, from: content, heard: func() { h.repeats.hears(state, time.Now()) }}
	sent, err := to.ReadFrom(source)
	log = log.WithFields(logrus.Fields{"bytes": sent, "ms": time.Since(begun).Milliseconds()})
	switch {
	case source.err != nil:
		log.WithError(source.err).Error("tftp: cannot read")
		return errBrokenOff
	case err != nil:
		// Usual: firmware asks for the size first and breaks off.
		log.WithError(err).Debug("tftp: broken off")
		return errBrokenOff
	}
	log.Info("tftp: sent")
	return nil
}

// open returns what r asks for, and what is to be called when its transfer
// begins.
func (h *handler) open(r request, client netip.Addr) (io.ReadSeekCloser, func(), error) {
	s, nothing := h.server, func() {}
	// A machine waits for its configuration for some seconds only.
	ctx, cancel := context.WithTimeout(h.ctx, 20*time.Second)
	defer cancel()
	switch r.kind {
	case kindLoader:
		if s.Loaders == nil {
			break
		}
		f, err := s.Loaders.Open(r.name)
		if err != nil {
			return nil, nil, err
		}
		seeker, ok := f.(io.ReadSeekCloser)
		if !ok {
			_ = f.Close()
			return nil, nil, fmt.Errorf("%s: no file that can be sent", r.name)
		}
		h.remember(r.name, client)
		return seeker, nothing, nil
	case kindConfig:
		if s.Boot == nil {
			break
		}
		text, done, err := h.config(ctx, r, client)
		return nopCloser{bytes.NewReader(text)}, done, err
	case kindBoot:
		if s.Files == nil {
			break
		}
		f, err := s.Files.OpenBootFile(ctx, r.snapshot, r.file)
		return f, func() { h.step(pxe.Progress{Step: r.file.Step(), Snapshot: r.snapshot, Client: client}) }, err
	}
	return nil, nil, fmt.Errorf("%s: %w", r.name, fs.ErrNotExist)
}

// config renders the configuration of one machine.
func (h *handler) config(ctx context.Context, r request, client netip.Addr) (text []byte, done func(), err error) {
	loader := r.loader
	if loader == pxe.PXELINUX {
		loader = h.loaders.get(client, pxe.PXELINUX)
	}
	c, err := h.server.Boot.Boot(ctx, r.mac, client, loader)
	if err == nil {
		if text, err = pxe.Render(loader, c); err == nil {
			return text, func() {
				h.step(pxe.Progress{Step: protocol.StepConfig, Session: c.Session, MAC: r.mac, Snapshot: c.Snapshot, Client: client})
			}, nil
		}
	}
	nothing := pxe.AsNothing(err)
	log := h.log.WithFields(logrus.Fields{"client": client, "mac": r.mac})
	if errors.Is(err, nothing) {
		log.Infof("tftp: nothing to boot: %s", nothing.Reason)
	} else {
		log.WithError(err).Error("tftp: cannot tell what to boot")
	}
	text, err = pxe.RenderNothing(loader, r.mac.String(), r.name, nothing)
	return text, func() {}, err
}

func (h *handler) step(p pxe.Progress) {
	if h.server.Steps != nil {
		h.server.Steps.Step(h.ctx, p)
	}
}

// remember notes which PXELINUX a machine has loaded, for only one of the two
// can read by HTTP and both ask for the same configuration.
func (h *handler) remember(name string, client netip.Addr) {
	switch name {
	case "lpxelinux.0":
		h.loaders.set(client, pxe.LPXELINUX)
	case "pxelinux.0":
		h.loaders.set(client, pxe.PXELINUX)
	}
}

func shorten(name string) string {
	if len(name) > 80 {
		name = name[:80] + "…"
	}
	return fmt.Sprintf("%q", name)
}

// source ends a transfer when the server stops, and tells its own failures
// from those of the wire.
type source struct {
	ctx   context.Context
	from  io.Reader
	begun bool   // a block was read
	heard func() // called when the client has acknowledged a block
	err   error
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, errors.New("the server stops, try again")
	}
	// A block is read when the client has the one before.
	if s.begun {
		s.heard()
	}
	s.begun = true
	n, err := s.from.Read(p)
	if err != nil && err != io.EOF {
		if s.ctx.Err() == nil {
			s.err = err
		}
		err = errFailed
	}
	return n, err
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// hook logs the requests that never reach the handler.
type hook struct{ h *handler }

func (hook) OnSuccess(pin.TransferStats) {}

func (k hook) OnFailure(stats pin.TransferStats, err error) {
	if stats.RemoteAddr == nil {
		k.h.log.WithError(err).Debug("tftp: malformed packet dropped")
	}
}
