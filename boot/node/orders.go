package node

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"time"

	"sidus/boot/protocol"
	"sidus/image/catalog"
)

// ordersEvery is how often the catalog is looked into for new orders.
const ordersEvery = 250 * time.Millisecond

// Orders hands orders to the agents that wait for them. One look into the
// catalog at a time serves all of them: Run does it.
type Orders struct {
	registry *Registry

	mu      sync.Mutex
	newest  int64                            // number of the newest order that was seen
	waiting map[protocol.SessionID]*listener // agents
}

// listener is a session whose agent asks.
type listener struct {
	agents int // how many calls wait: one, unless a connection broke
	wake   chan struct{}
}

// NewOrders makes an Orders of what r knows.
func NewOrders(r *Registry) *Orders {
	return &Orders{registry: r, waiting: map[protocol.SessionID]*listener{}}
}

// Run wakes agents whose orders have come, until ctx ends.
func (o *Orders) Run(ctx context.Context) error {
	ticker := time.NewTicker(ordersEvery)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		err := o.look(ctx)
		if err != nil && ctx.Err() == nil && !failing {
			o.registry.log.WithError(err).Error("cannot look for orders to nodes")
		}
		failing = err != nil
	}
}

// look wakes those for whom there are new orders.
func (o *Orders) look(ctx context.Context) error {
	o.mu.Lock()
	newest := o.newest
	o.mu.Unlock()
	seen := newest
	var sessions []protocol.SessionID
	err := o.registry.catalog.View(ctx, func(tx *sql.Tx) error {
		if err := tx.QueryRow(`SELECT COALESCE(MAX(id), 0) FROM live_update`).Scan(&seen); err != nil {
			return fmt.Errorf("catalog: %w", err)
		}
		if seen == newest {
			return nil
		}
		var err error
		sessions, err = collect(tx, func(rows *sql.Rows) (id protocol.SessionID, err error) { return id, rows.Scan(&id) },
			`SELECT DISTINCT session FROM live_update WHERE id > ? AND state IN ('ordered', 'taken')`, newest)
		return err
	})
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.newest = seen
	for _, session := range sessions {
		if l := o.waiting[session]; l != nil {
			close(l.wake)
			l.wake = make(chan struct{})
		}
	}
	return nil
}

// Orders waits until there are orders for a session with a number greater than
// after, or until ctx is done: no orders are no error. It implements
// boot/http's Orderer. The error wraps protocol.ErrUnknownSession if there is
// no such session, or it has ended.
func (o *Orders) Orders(ctx context.Context, session protocol.SessionID, after int64) ([]protocol.Order, error) {
	listener := o.join(session)
	defer o.leave(session)
	for {
		// First: an order that comes after the look into the catalog wakes.
		o.mu.Lock()
		wake := listener.wake
		o.mu.Unlock()
		orders, err := o.registry.takeOrders(ctx, session, after)
		if ctx.Err() != nil {
			return nil, nil
		}
		if err != nil || len(orders) > 0 {
			return orders, err
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return nil, nil
		}
	}
}

func (o *Orders) join(session protocol.SessionID) *listener {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.waiting[session]
	if l == nil {
		l = &listener{wake: make(chan struct{})}
		o.waiting[session] = l
	}
	l.agents++
	return l
}

func (o *Orders) leave(session protocol.SessionID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l := o.waiting[session]
	if l.agents--; l.agents == 0 {
		delete(o.waiting, session)
	}
}

// takeOrders returns the open orders of a session, and notes that its agent
// has them. An answer that is lost on the way is given again.
func (r *Registry) takeOrders(ctx context.Context, session protocol.SessionID, after int64) ([]protocol.Order, error) {
	var open []Update
	news := false
	look := func(tx *sql.Tx) error {
		var live, asks bool
		err := tx.QueryRow(`SELECT ended IS NULL, asks FROM session WHERE id = ?`, string(session)).Scan(&live, &asks)
		switch {
		case err == sql.ErrNoRows || err == nil && !live:
			return fmt.Errorf("session %.40s: %w", session, protocol.ErrUnknownSession)
		case err != nil:
			return fmt.Errorf("catalog: %w", err)
		}
		open, err = collect(tx, scanUpdate, selectUpdate+` WHERE u.session = ? AND u.id > ? AND u.state IN ('ordered', 'taken') ORDER BY u.id`,
			string(session), after)
		news = !asks
		for _, u := range open {
			news = news || u.State == UpdateOrdered
		}
		return err
	}
	err := r.catalog.View(ctx, look)
	if err == nil && news {
		err = r.catalog.Update(ctx, func(tx *sql.Tx) error {
			if err := look(tx); err != nil {
				return err
			}
			if err := write(tx, `UPDATE session SET asks = 1 WHERE id = ?`, string(session)); err != nil {
				return err
			}
			return write(tx, `UPDATE live_update SET state = 'taken', taken = ? WHERE session = ? AND id > ? AND state = 'ordered'`,
				catalog.Millis(r.now()), string(session), after)
		})
	}
	if err != nil {
		return nil, err
	}
	var orders []protocol.Order
	for _, u := range open {
		orders = append(orders, protocol.Order{Number: u.Order, Action: protocol.ActionUpdate, Snapshot: u.Snapshot.ID})
	}
	return orders, nil
}
