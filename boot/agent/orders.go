package agent

import (
	"context"
	"errors"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/protocol"
)

// An Obeyer asks the server for orders, for as long as it runs, and carries
// them out one after the other.
type Obeyer struct {
	// Ask waits for orders with a number greater than after:
	// protocol.Client.Orders.
	Ask func(ctx context.Context, after int64) ([]protocol.Order, error)
	// Update carries out an order for a live update. It may be called again
	// for an order that it has carried out.
	Update func(ctx context.Context, order protocol.Order) protocol.Outcome
	// Report tells the server what became of an order.
	Report func(ctx context.Context, outcome protocol.Outcome) error
	// Log is told of orders and of trouble; nil means logrus' standard logger.
	Log logrus.FieldLogger
}

const (
	// A server that cannot be reached is asked again soon: it is being
	// restarted, or so is all that is between.
	firstAsk, lastAsk = time.Second, 30 * time.Second
	// One that gives no orders, because it is too old or knows the session no
	// more, may do so another time.
	firstDeafAsk, lastDeafAsk = 20 * time.Second, 15 * time.Minute
)

// Run obeys until ctx ends.
func (o *Obeyer) Run(ctx context.Context) error {
	log := o.Log
	if log == nil {
		log = logrus.StandardLogger()
	}
	var after int64
	again, deaf := firstAsk, firstDeafAsk
	for {
		orders, err := o.Ask(ctx, after)
		wait := time.Duration(0)
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			again, deaf = firstAsk, firstDeafAsk
		case errors.Is(err, protocol.ErrUnknownSession), errors.Is(err, protocol.ErrTooNew), errors.Is(err, protocol.ErrMalformed):
			if deaf == firstDeafAsk {
				log.WithError(err).Info("the server gives no orders; it is asked again now and then")
			}
			wait, deaf = jitter(deaf), min(2*deaf, lastDeafAsk)
		default:
			wait, again = jitter(again), min(2*again, lastAsk)
		}
		for _, order := range orders {
			if order.Number <= after {
				continue
			}
			if !o.obey(ctx, log, order) {
				break // the server gives the order again
			}
			after = order.Number
		}
		// A server that answers at once, always, is not asked without pause.
		if err == nil && len(orders) == 0 {
			wait = jitter(firstAsk)
		}
		if !sleep(ctx, wait) {
			return nil
		}
	}
}

// obey carries out an order and tells the server. It returns false if the
// server could not be told before ctx ended, or will not hear it.
func (o *Obeyer) obey(ctx context.Context, log logrus.FieldLogger, order protocol.Order) bool {
	log = log.WithFields(logrus.Fields{"order": order.Number, "snapshot": string(order.Snapshot)})
	log.Info("live update: begins")
	outcome := o.Update(ctx, order).Clip()
	for _, note := range outcome.Notes {
		log.Info("live update: " + note)
	}
	if outcome.Reason != "" {
		log.WithField("reason", outcome.Reason).Error("live update: failed")
	} else {
		log.Info("live update: done")
	}
	for again := firstAsk; ; again = min(2*again, lastAsk) {
		err := o.Report(ctx, outcome)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		log.WithError(err).Warn("live update: the server cannot be told")
		if errors.Is(err, protocol.ErrMalformed) || errors.Is(err, protocol.ErrTooNew) || errors.Is(err, protocol.ErrUnknownSession) {
			return true // saying it again will not help
		}
		if !sleep(ctx, jitter(again)) {
			return false
		}
	}
}
