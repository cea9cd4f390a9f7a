package node

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"sidus/boot/pxe"
	"sidus/image/store"
)

const (
	followQueue = 4096            // steps that wait to be written
	followEvery = time.Minute     // between two batches of signs of life
	followGrace = 5 * time.Second // to write what is left at the end
)

// Follower notes what servers see of boots, without keeping them waiting: Run
// writes it to the Registry, and advances the served clock. It implements
// pxe.Stepper.
type Follower struct {
	registry *Registry
	steps    chan pxe.Progress

	mu    sync.Mutex
	heard map[reader]time.Time
	lost  int // steps that found the queue full
}

type reader struct {
	client   netip.Addr
	snapshot store.SnapshotID
}

// NewFollower makes a Follower that writes to r.
func NewFollower(r *Registry) *Follower {
	return &Follower{registry: r, steps: make(chan pxe.Progress, followQueue), heard: map[reader]time.Time{}}
}

// Step implements pxe.Stepper. It returns at once.
func (f *Follower) Step(_ context.Context, p pxe.Progress) {
	select {
	case f.steps <- p:
	default:
		f.mu.Lock()
		f.lost++
		f.mu.Unlock()
	}
}

// Heard notes that client has just read from a snapshot. It returns at once,
// and allocates nothing for a client that was heard before in this minute.
func (f *Follower) Heard(client netip.Addr, snapshot store.SnapshotID) {
	now := f.registry.now()
	f.mu.Lock()
	f.heard[reader{client.Unmap(), snapshot}] = now
	f.mu.Unlock()
}

// Run writes until ctx ends, and then what is left. Failures are logged; what
// could not be written of signs of life is kept for the next time.
func (f *Follower) Run(ctx context.Context) error {
	timer := time.NewTicker(followEvery)
	defer timer.Stop()
	f.round(ctx)
	for {
		select {
		case p := <-f.steps:
			f.step(ctx, p)
		case <-timer.C:
			f.round(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), followGrace)
			defer cancel()
			for len(f.steps) > 0 && last.Err() == nil {
				f.step(last, <-f.steps)
			}
			f.round(last)
			return nil
		}
	}
}

func (f *Follower) step(ctx context.Context, p pxe.Progress) {
	err := f.registry.Step(ctx, p)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		f.Step(ctx, p) // for the end of Run
		return
	}
	if err != nil {
		f.registry.log.WithField("step", string(p.Step)).WithError(err).Error("cannot note the step of a boot")
	}
}

// round advances the clock and writes the signs of life.
func (f *Follower) round(ctx context.Context) {
	f.mu.Lock()
	heard, lost := f.heard, f.lost
	f.heard, f.lost = map[reader]time.Time{}, 0
	f.mu.Unlock()
	if lost > 0 {
		f.registry.log.WithField("steps", lost).Warn("steps of boots came faster than they can be written; some are not shown")
	}
	signs := make([]Sign, 0, len(heard))
	for who, at := range heard {
		signs = append(signs, Sign{Client: who.client, Snapshot: who.snapshot, At: at})
	}
	// Signs of life first: they may keep a session from ending.
	if err := f.registry.Heard(ctx, signs); err != nil {
		f.registry.log.WithError(err).Error("cannot note who reads")
		f.mu.Lock()
		for who, at := range heard {
			if f.heard[who].Before(at) {
				f.heard[who] = at
			}
		}
		f.mu.Unlock()
	}
	if err := f.registry.Tick(ctx); err != nil {
		f.registry.log.WithError(err).Error("cannot advance the served clock")
	}
}
