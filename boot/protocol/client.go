package protocol

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Client sends reports to a server. Its zero value lacks a server.
type Client struct {
	// Base is the address of the HTTP server: "http://10.0.0.1:8080".
	Base string
	// Session is the session that is reported on.
	Session SessionID
	// Timeout is the longest time that one report may take; 0 means 15 s.
	Timeout time.Duration
	// HTTP is used for requests; nil means a client of its own that uses no
	// proxy and follows no redirection.
	HTTP *http.Client
}

// Report sends r and returns the answer. A Protocol of 0 is replaced by
// Version. The error wraps ErrUnknownSession if the server knows no such
// session (the node has been booted anew, or the catalog was restored),
// ErrTooNew if the server is older than the agent, ErrMalformed if the server
// refuses the report or the answer cannot be understood. Other errors are
// those of the network and may pass: try again later.
func (c Client) Report(ctx context.Context, r Report) (Reply, error) {
	if r.Protocol == 0 {
		r.Protocol = Version
	}
	if r.FailedUnits == nil {
		r.FailedUnits = []string{}
	}
	if len(r.FailedUnits) > maxUnits {
		r.FailedUnits = r.FailedUnits[:maxUnits]
	}
	if err := r.Validate(); err != nil {
		return Reply{}, err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return Reply{}, fmt.Errorf("report: %w", err)
	}
	timeout := c.Timeout
	if timeout == 0 {
		timeout = 15 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, ReportURL(c.Base, c.Session), bytes.NewReader(body))
	if err != nil {
		return Reply{}, fmt.Errorf("report: %w", err)
	}
	request.Header.Set("Content-Type", "application/json")
	client := c.HTTP
	if client == nil {
		transport := &http.Transport{DisableKeepAlives: true}
		defer transport.CloseIdleConnections()
		client = &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	response, err := client.Do(request)
	if err != nil {
		return Reply{}, fmt.Errorf("report: %w", err)
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
		return DecodeReply(response.Body)
	case http.StatusNotFound:
		return Reply{}, fmt.Errorf("report: session %s: %w", c.Session, ErrUnknownSession)
	case http.StatusUpgradeRequired:
		return Reply{}, fmt.Errorf("report: %w", ErrTooNew)
	}
	said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
	text := strings.TrimSpace(string(said))
	if response.StatusCode == http.StatusBadRequest || response.StatusCode == http.StatusRequestEntityTooLarge {
		return Reply{}, fmt.Errorf("report: %w: the server says %s: %q", ErrMalformed, response.Status, text)
	}
	return Reply{}, fmt.Errorf("report: the server says %s: %q", response.Status, text)
}
