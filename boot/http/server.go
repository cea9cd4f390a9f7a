package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
)

// Reporter takes the reports of agents. The error wraps
// protocol.ErrUnknownSession if there is no such session; any other error
// makes the agent try again later. A zero Reply means the usual: a heartbeat
// each hour.
type Reporter interface {
	Report(ctx context.Context, session protocol.SessionID, client netip.Addr, r protocol.Report) (protocol.Reply, error)
}

// Orderer gives orders to agents. Orders waits until there are orders for a
// session with a number greater than after, or until ctx is done: no orders
// are no error. The error wraps protocol.ErrUnknownSession if there is no such
// session.
type Orderer interface {
	Orders(ctx context.Context, session protocol.SessionID, after int64) ([]protocol.Order, error)
}

// Server is the HTTP server of machines that boot. What it lacks (a nil
// field) is answered with 404. Its fields must not be changed once it serves.
type Server struct {
	// Boot decides what a machine boots.
	Boot pxe.Booter
	// Files opens kernels and initrds.
	Files pxe.BootFiles
	// Loaders holds boot loaders.
	Loaders fs.FS
	// Reports takes the reports of agents.
	Reports Reporter
	// Orders gives orders to agents.
	Orders Orderer
	// Steps is told how far boots have got; nil means nobody.
	Steps pxe.Stepper
	// Healthy says what keeps the server from working; nil means nothing does.
	Healthy func(context.Context) error
	// Metrics writes figures in Prometheus' text form.
	Metrics func(io.Writer) error
	// Log is written to; nil means nowhere.
	Log logrus.FieldLogger
	// SendTimeout is the longest time that sending one file may take;
	// 0 means 30 min.
	SendTimeout time.Duration
}

const (
	headerTimeout = 10 * time.Second // for a request's header
	bodyTimeout   = 30 * time.Second // for a request's body, and for small answers
	idleTimeout   = 60 * time.Second
	maxHeader     = 16 << 10 // bytes
	heartbeat     = 3600     // seconds
)

// ListenAndServe serves on the TCP address ("10.0.0.1:8080") until ctx ends.
func (s *Server) ListenAndServe(ctx context.Context, address string) error {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", address)
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	return s.Serve(ctx, l)
}

// Serve answers on l until ctx ends, and closes l. It returns nil then, after
// requests under way had some seconds to end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           s.Handler(),
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       bodyTimeout,
		WriteTimeout:      or(s.SendTimeout, 30*time.Minute),
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnContext:       withConn,
		ErrorLog:          s.errorLog(),
	}
	stopped := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case <-ended:
		case <-ctx.Done():
		}
		grace, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if server.Shutdown(grace) != nil {
			_ = server.Close()
		}
	}()
	err := server.Serve(listener{l})
	close(ended)
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("http: %w", err)
}

// Handler returns the server's routes, to be used under a server of one's own.
func (s *Server) Handler() http.Handler {
	h := &handler{Server: s, log: s.logger()}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", h.healthz)
	if s.Metrics != nil {
		mux.HandleFunc("GET /metrics", h.metrics)
	}
	if s.Files != nil {
		mux.HandleFunc("GET /v1/boot/{snapshot}/{file}", h.bootFile)
	}
	if s.Boot != nil {
		mux.HandleFunc("GET /v1/ipxe", h.who)
		mux.HandleFunc("GET /v1/ipxe/{mac}", h.script)
	}
	if s.Loaders != nil {
		mux.HandleFunc("GET /v1/loader/{name}", h.loader)
	}
	if s.Reports != nil {
		mux.HandleFunc("POST /v1/sessions/{session}/report", h.report)
	}
	if s.Orders != nil {
		mux.HandleFunc("GET /v1/sessions/{session}/orders", h.orders)
	}
	return mux
}

type handler struct {
	*Server
	log logrus.FieldLogger
}

func (h *handler) bootFile(w http.ResponseWriter, r *http.Request) {
	snapshot, file, err := protocol.ParseBootFile(r.PathValue("snapshot"), r.PathValue("file"))
	if err != nil {
		http.Error(w, "no such file", http.StatusNotFound)
		return
	}
	client := clientOf(r)
	log := h.log.WithFields(logrus.Fields{"client": client, "snapshot": snapshot, "file": file})
	content, err := h.Files.OpenBootFile(r.Context(), snapshot, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		log.WithError(err).Warn("http: no such file")
		http.Error(w, "no such file", http.StatusNotFound)
		return
	case err != nil:
		log.WithError(err).Error("http: cannot open")
		w.Header().Set("Retry-After", "5")
		http.Error(w, "cannot be read for now", http.StatusServiceUnavailable)
		return
	}
	defer content.Close()

	if r.Method == http.MethodGet && h.Steps != nil {
		session, err := protocol.ParseSessionID(r.URL.Query().Get("session"))
		if err != nil {
			session = ""
		}
		h.Steps.Step(r.Context(), pxe.Progress{Step: file.Step(), Session: session, Snapshot: snapshot, Client: client})
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	// A snapshot never changes, so its ID names the content for ever.
	w.Header().Set("ETag", `"`+string(snapshot)+`"`)
	w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	begun := time.Now()
	counted := &counter{ResponseWriter: w}
	spare(r)
	http.ServeContent(counted, r, "", time.Time{}, content)
	log = log.WithFields(logrus.Fields{"bytes": counted.bytes, "ms": time.Since(begun).Milliseconds(), "status": counted.status})
	if counted.err != nil {
		log.WithError(counted.err).Warn("http: broken off")
		return
	}
	log.Info("http: sent")
}

func (h *handler) script(w http.ResponseWriter, r *http.Request) {
	mac, err := net.ParseMAC(r.PathValue("mac"))
	if err != nil || len(mac) != 6 {
		http.Error(w, "no hardware address", http.StatusNotFound)
		return
	}
	client := clientOf(r)
	log := h.log.WithFields(logrus.Fields{"client": client, "mac": mac})
	var text []byte
	c, err := h.Boot.Boot(r.Context(), mac, client, pxe.IPXE)
	if err == nil {
		text, err = pxe.Render(pxe.IPXE, c)
	}
	if err != nil {
		nothing := pxe.AsNothing(err)
		if errors.Is(err, nothing) {
			log.Infof("http: nothing to boot: %s", nothing.Reason)
		} else {
			log.WithError(err).Error("http: cannot tell what to boot")
		}
		if text, err = pxe.RenderNothing(pxe.IPXE, mac.String(), pxe.ScriptURL(baseOf(r), mac), nothing); err != nil {
			log.WithError(err).Error("http: cannot render")
			http.Error(w, "cannot be rendered", http.StatusInternalServerError)
			return
		}
	} else if h.Steps != nil {
		h.Steps.Step(r.Context(), pxe.Progress{Step: protocol.StepConfig, Session: c.Session, MAC: mac, Snapshot: c.Snapshot, Client: client})
	}
	plain(w, text)
}

func (h *handler) who(w http.ResponseWriter, r *http.Request) {
	text, err := pxe.RenderWho(baseOf(r))
	if err != nil {
		http.Error(w, "cannot be rendered", http.StatusInternalServerError)
		return
	}
	plain(w, text)
}

func (h *handler) loader(w http.ResponseWriter, r *http.Request) {
	f, err := h.Loaders.Open(r.PathValue("name"))
	if err != nil {
		http.Error(w, "no such boot loader", http.StatusNotFound)
		return
	}
	defer f.Close()
	content, ok := f.(io.ReadSeeker)
	info, err := f.Stat()
	if err != nil || !ok || !info.Mode().IsRegular() {
		http.Error(w, "no such boot loader", http.StatusNotFound)
		return
	}
	// UEFI HTTP boot takes a .efi file for what it is by this type.
	w.Header().Set("Content-Type", "application/efi")
	http.ServeContent(w, r, "", info.ModTime(), content)
}

func (h *handler) report(w http.ResponseWriter, r *http.Request) {
	log := h.log.WithField("client", clientOf(r))
	session, err := protocol.ParseSessionID(r.PathValue("session"))
	if err != nil {
		http.Error(w, "unknown session", http.StatusNotFound)
		return
	}
	report, err := protocol.DecodeReport(http.MaxBytesReader(w, r.Body, protocol.MaxReport+1))
	if err != nil {
		log.WithError(err).Warn("http: report refused")
		http.Error(w, clip(err.Error(), 200), refusal(err))
		return
	}
	reply, err := h.Reports.Report(r.Context(), session, clientOf(r), report)
	switch {
	case errors.Is(err, protocol.ErrUnknownSession):
		log.WithField("session", session).Warn("http: report of an unknown session")
		http.Error(w, "unknown session", http.StatusNotFound)
		return
	case err != nil:
		log.WithField("session", session).WithError(err).Error("http: report not taken")
		w.Header().Set("Retry-After", "30")
		http.Error(w, "cannot be taken for now", http.StatusServiceUnavailable)
		return
	}
	// The reply is in the protocol that the agent speaks.
	reply.Protocol = or(reply.Protocol, report.Protocol)
	reply.HeartbeatSeconds = or(reply.HeartbeatSeconds, heartbeat)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(reply)
}

func refusal(err error) int {
	switch {
	case errors.Is(err, protocol.ErrTooLarge):
		return http.StatusRequestEntityTooLarge
	case errors.Is(err, protocol.ErrTooNew):
		return http.StatusUpgradeRequired
	}
	return http.StatusBadRequest
}

func (h *handler) healthz(w http.ResponseWriter, r *http.Request) {
	if h.Healthy != nil {
		if err := h.Healthy(r.Context()); err != nil {
			h.log.WithError(err).Warn("http: not healthy")
			http.Error(w, clip(err.Error(), 200), http.StatusServiceUnavailable)
			return
		}
	}
	plain(w, []byte("ok\n"))
}

func (h *handler) metrics(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	if err := h.Metrics(w); err != nil {
		h.log.WithError(err).Warn("http: metrics")
	}
}
