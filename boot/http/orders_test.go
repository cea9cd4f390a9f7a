package http

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"sidus/boot/protocol"
)

// orderer gives what is sent to it, or err.
type orderer struct {
	orders chan []protocol.Order
	err    error
}

func (o *orderer) Orders(ctx context.Context, id protocol.SessionID, after int64) ([]protocol.Order, error) {
	if o.err != nil {
		return nil, o.err
	}
	select {
	case orders := <-o.orders:
		if id != session || after != 4 {
			return nil, fmt.Errorf("session %s, after %d", id, after)
		}
		return orders, nil
	case <-ctx.Done():
		return nil, nil
	}
}

func TestOrders(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := &orderer{orders: make(chan []protocol.Order)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- (&Server{Orders: o}).Serve(ctx, l) }()
	client := protocol.Client{Base: "http://" + l.Addr().String(), Session: session}

	want := protocol.Order{Number: 5, Action: protocol.ActionUpdate, Snapshot: snapshot}
	type answer struct {
		orders []protocol.Order
		err    error
	}
	answers := make(chan answer)
	ask := func(after int64) {
		orders, err := client.Orders(t.Context(), after)
		answers <- answer{orders, err}
	}
	go ask(4)
	select {
	case a := <-answers:
		t.Fatalf("the server does not wait: %+v", a)
	case o.orders <- []protocol.Order{want, {Number: 6, Action: "of the future"}}:
	}
	if a := <-answers; a.err != nil || len(a.orders) != 1 || a.orders[0] != want {
		t.Errorf("%+v", a)
	}

	// Who waits does not keep the server from stopping.
	go ask(4)
	o.orders <- nil // it waits no more: the next one does
	<-answers
	begun := time.Now()
	go ask(4)
	time.AfterFunc(100*time.Millisecond, cancel)
	if a := <-answers; len(a.orders) > 0 {
		t.Errorf("%+v", a)
	}
	if err := <-ended; err != nil || time.Since(begun) > 2*time.Second {
		t.Errorf("the server stopped after %s: %v", time.Since(begun), err)
	}
}

func serveHandler(t *testing.T, h http.Handler) string {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	return server.URL
}

func TestOrdersRefused(t *testing.T) {
	for err, want := range map[error]error{
		fmt.Errorf("gone: %w", protocol.ErrUnknownSession): protocol.ErrUnknownSession,
		errors.New("the disk is full"):                     nil,
	} {
		s := &Server{Orders: &orderer{err: err}}
		base := serveHandler(t, s.Handler())
		_, got := protocol.Client{Base: base, Session: session}.Orders(t.Context(), 0)
		if got == nil || want != nil && !errors.Is(got, want) {
			t.Errorf("%v: %v", err, got)
		}
	}
	// A server that gives no orders at all is one that is too old.
	base := serveHandler(t, (&Server{}).Handler())
	if _, err := (protocol.Client{Base: base, Session: session}).Orders(t.Context(), 0); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("an old server: %v", err)
	}
	base = serveHandler(t, (&Server{Orders: &orderer{}}).Handler())
	for path, want := range map[string]int{
		"/v1/sessions/x/orders":                        http.StatusNotFound,
		"/v1/sessions/" + session + "/orders?after=x":  http.StatusBadRequest,
		"/v1/sessions/" + session + "/orders?after=-1": http.StatusBadRequest,
	} {
		response, err := http.Get(base + path)
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}
