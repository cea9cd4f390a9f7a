package frontend

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

	"sidus/image"
)

// roleEvery is how often the role of the server is looked at.
const roleEvery = 2 * time.Second

// booting runs what boots machines, as long as this server is the primary: the
// leases and sessions of another one would be lost, and two servers would
// answer one machine.
type booting struct {
	server *Server
	group  *errgroup.Group
	ctx    context.Context // ends with the role, or with the group
	cancel context.CancelFunc
}

// newBooting begins to look at the role.
func newBooting(ctx context.Context, s *Server, group *errgroup.Group) *booting {
	b := &booting{server: s, group: group}
	b.ctx, b.cancel = context.WithCancel(ctx)
	if s.Boots() {
		group.Go(b.watchRole)
		group.Go(b.keepCatalog)
	}
	return b
}

// run runs a service of the group.
func (b *booting) run(serve func(ctx context.Context) error) {
	b.group.Go(func() error {
		err := serve(b.ctx)
		if b.ctx.Err() != nil {
			return nil // the end of the group has its own reason
		}
		return err
	})
}

// watchRole ends the services when the server is no primary any more. It
// returns an *image.ReadOnlyError if nothing is left to be served then.
func (b *booting) watchRole() error {
	tick := time.NewTicker(roleEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			return nil
		case <-tick.C:
		}
		var readOnly *image.ReadOnlyError
		err := b.server.Manager.Writable(b.ctx)
		if !errors.As(err, &readOnly) {
			continue
		}
		b.cancel()
		if !b.server.runs(NFS) {
			return err
		}
		b.server.Log.WithError(err).Warn("no machine boots from here any more; NFS goes on for those that run. `sidus takeover` and a new start of serve change that")
		return nil
	}
}

// keepEvery is how often the store gets a copy of sessions and leases that have
// changed. What machines have booted since the last one is not known to a server
// that takes over with the store alone.
const keepEvery = 20 * time.Second

// keepCatalog leaves copies of the catalog in the store, the last one at the end.
func (b *booting) keepCatalog() error {
	ctx := context.WithoutCancel(b.ctx)
	if err := b.server.Manager.NoteCatalog(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	for {
		select {
		case <-b.ctx.Done():
			b.server.Manager.KeepChanges(ctx)
			return nil
		case <-tick.C:
			b.server.Manager.KeepChanges(ctx)
		}
	}
}
