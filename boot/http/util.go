package http

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"

	"github.com/sirupsen/logrus"
)

// clientOf is the IP address that r came from.
func clientOf(r *http.Request) netip.Addr {
	a, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return a.Addr().Unmap()
}

// baseOf is this server's address as the client of r has reached it. The Host
// header is not used, since anything may stand in it.
func baseOf(r *http.Request) string {
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		return "http://" + a.String()
	}
	return "http://" + r.Host
}

func plain(w http.ResponseWriter, text []byte) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(text)
}

func clip(text string, n int) string {
	if len(text) > n {
		return text[:n]
	}
	return text
}

func or[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// counter counts what is sent. It passes ReadFrom on, so that files are still
// sent by the kernel.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
	err    error
}

func (c *counter) WriteHeader(status int) {
	c.status = status
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.ResponseWriter.Write(p)
	c.note(int64(n), err)
	return n, err
}

func (c *counter) ReadFrom(from io.Reader) (int64, error) {
	n, err := io.Copy(c.ResponseWriter, from)
	c.note(n, err)
	return n, err
}

func (c *counter) note(n int64, err error) {
	c.bytes += n
	if err != nil && c.err == nil {
		c.err = err
	}
}

func (s *Server) logger() logrus.FieldLogger {
	if s.Log != nil {
		return s.Log
	}
	l := logrus.New()
	l.SetOutput(io.Discard)
	return l
}

// errorLog carries what net/http has to say (a broken TLS greeting, a panic
// in a handler) to the server's log.
type errorLog struct{ to logrus.FieldLogger }

func (e errorLog) Write(p []byte) (int, error) {
	e.to.Warnf("http: %s", clip(string(p), 2000))
	return len(p), nil
}

func (s *Server) errorLog() *log.Logger { return log.New(errorLog{s.logger()}, "", 0) }
