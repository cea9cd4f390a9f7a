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

// Client sends reports to a server, and asks it for orders. Its zero value lacks a server.
type Client struct {
	// Base is the address of the HTTP server: "http://10.0.0.1:8080".
	Base string
	// Session is the session that is reported on.
	Session SessionID
	// Timeout is the longest time that one request may take, apart from the
	// time that the server holds it; 0 means 15 s.
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
	response, err := c.do(ctx, http.MethodPost, ReportURL(c.Base, c.Session), body, or(c.Timeout, 15*time.Second))
	if err != nil {
		return Reply{}, fmt.Errorf("report: %w", err)
	}
	defer response.Body.Close()
	if err := c.refusal(response); err != nil {
		return Reply{}, fmt.Errorf("report: %w", err)
	}
	return DecodeReply(response.Body)
}

// HoldOrders is the longest time that a server keeps an agent waiting that
// asks for orders.
const HoldOrders = 50 * time.Second

// Orders asks for orders with a number greater than after. The server holds
// the answer until there are some, or for HoldOrders: no orders are no error.
// The error wraps ErrUnknownSession if the server knows no such session, or
// gives no orders because it is older than the agent; others are those of
// Report.
func (c Client) Orders(ctx context.Context, after int64) ([]Order, error) {
	response, err := c.do(ctx, http.MethodGet, OrdersURL(c.Base, c.Session, after), nil, HoldOrders+or(c.Timeout, 15*time.Second))
	if err != nil {
		return nil, fmt.Errorf("orders: %w", err)
	}
	defer response.Body.Close()
	if err := c.refusal(response); err != nil {
		return nil, fmt.Errorf("orders: %w", err)
	}
	orders, err := DecodeOrders(response.Body)
	return orders.Orders, err
}

// do puts one request. The limit counts until the response's body is closed.
func (c Client) do(ctx context.Context, method, url string, body []byte, limit time.Duration) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	request, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		cancel()
		return nil, err
	}
	if body != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	client := c.HTTP
	end := cancel
	if client == nil {
		transport := &http.Transport{DisableKeepAlives: true}
		end = func() { cancel(); transport.CloseIdleConnections() }
		client = &http.Client{
			Transport:     transport,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}
	}
	response, err := client.Do(request)
	if err != nil {
		end()
		return nil, err
	}
	response.Body = &ending{response.Body, end}
	return response, nil
}

// ending calls end when the body is closed.
type ending struct {
	io.ReadCloser
	end func()
}

func (e *ending) Close() error {
	err := e.ReadCloser.Close()
	e.end()
	return err
}

// refusal is the error that a status other than 200 stands for.
func (c Client) refusal(response *http.Response) error {
	switch response.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return fmt.Errorf("session %s: %w", c.Session, ErrUnknownSession)
	case http.StatusUpgradeRequired:
		return ErrTooNew
	}
	said, _ := io.ReadAll(io.LimitReader(response.Body, 300))
	text := strings.TrimSpace(string(said))
	if response.StatusCode == http.StatusBadRequest || response.StatusCode == http.StatusRequestEntityTooLarge {
		return fmt.Errorf("%w: the server says %s: %q", ErrMalformed, response.Status, text)
	}
	return fmt.Errorf("the server says %s: %q", response.Status, text)
}

func or(d, otherwise time.Duration) time.Duration {
	if d == 0 {
		return otherwise
	}
	return d
}
