package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// A Report is the body of a POST request that a machine sent.
type Report struct {
	Time time.Time
	From string // address and port of the sender
	Path string
	Body []byte
}

// Reports is an HTTP server in the lab that keeps what is posted to it.
type Reports struct {
	server *http.Server

	mu      sync.Mutex
	reports []Report
	status  int
	answer  string
	change  chan struct{}
}

// Reports starts a server that takes POST requests of any path at a numeric
// address, such as "10.77.0.1:8081". It answers 200 and
// {"protocol":1,"heartbeat_seconds":3600} until Answer says otherwise.
func (l *Lab) Reports(address string) (*Reports, error) {
	listener, err := l.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	r := &Reports{
		status: http.StatusOK,
		answer: `{"protocol":1,"heartbeat_seconds":3600}`,
		change: make(chan struct{}),
	}
	r.server = &http.Server{Handler: r, ReadHeaderTimeout: time.Minute}
	go func() { _ = r.server.Serve(listener) }()
	return r, l.own(r)
}

// Answer sets the status and the body that requests are answered with.
func (r *Reports) Answer(status int, body string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.answer = status, body
}

// ServeHTTP takes one report.
func (r *Reports) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(io.LimitReader(req.Body, 1<<20))
	if err != nil || req.Method != http.MethodPost {
		http.Error(w, "only POST is taken here", http.StatusMethodNotAllowed)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, Report{Time: time.Now(), From: req.RemoteAddr, Path: req.URL.Path, Body: body})
	close(r.change)
	r.change = make(chan struct{})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(r.status)
	_, _ = io.WriteString(w, r.answer)
}

// All are the reports so far.
func (r *Reports) All() []Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Report(nil), r.reports...)
}

// Wait waits for the first report that is wanted, those that are already
// there included.
func (r *Reports) Wait(ctx context.Context, wanted func(Report) bool) (Report, error) {
	seen := 0
	for {
		r.mu.Lock()
		reports, change := r.reports, r.change
		r.mu.Unlock()
		for ; seen < len(reports); seen++ {
			if wanted(reports[seen]) {
				return reports[seen], nil
			}
		}
		select {
		case <-change:
		case <-ctx.Done():
			return Report{}, fmt.Errorf("waiting for a report, of %d none was the one: %w", seen, context.Cause(ctx))
		}
	}
}

// Close stops the server.
func (r *Reports) Close() error {
	if err := r.server.Close(); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
