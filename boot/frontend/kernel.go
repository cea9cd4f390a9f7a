package frontend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/boot/node"
	"sidus/export/knfsd"
	"sidus/image"
	"sidus/image/store"
)

// kernelEngine has the kernel's NFS server serve the roots.
type kernelEngine struct {
	manager  *image.Manager
	registry *node.Registry
	server   *knfsd.Server
	log      logrus.FieldLogger

	mu      sync.Mutex
	mounts  map[store.SnapshotID]store.Mount
	stopped bool
}

func newKernelEngine(s *Server) *kernelEngine {
	return &kernelEngine{
		manager: s.Manager, registry: s.Registry, server: &knfsd.Server{Log: s.Log}, log: s.Log,
		mounts: map[store.SnapshotID]store.Mount{},
	}
}

// start exports what machines run and may boot: before anything is answered.
func (k *kernelEngine) start(ctx context.Context) error {
	if err := k.server.Start(ctx); err != nil {
		return err
	}
	if _, err := k.server.Ports(ctx); err != nil {
		return err
	}
	k.log.Warn("the kernel's NFS server serves the roots: no other server can take over the machines that run, and their NFS calls are no signs of life")
	// What cannot be exported now is tried again while it serves.
	if err := errors.Join(k.forgetDeleted(ctx), k.exportAll(ctx)); err != nil {
		k.log.WithError(err).Error("not all snapshots could be exported")
	}
	return nil
}

// root exports a snapshot, and tells with which path and options it is mounted.
func (k *kernelEngine) root(ctx context.Context, id store.SnapshotID) (string, []string, error) {
	ports, err := k.server.Ports(ctx)
	if err != nil {
		return "", nil, err
	}
	clients, err := k.clients(ctx)
	if err != nil {
		return "", nil, err
	}
	return k.server.Path(id), []string{fmt.Sprintf("port=%d", ports.NFS), fmt.Sprintf("mountport=%d", ports.Mount)}, k.export(ctx, id, clients)
}

// clients are the networks that are served, and this machine.
func (k *kernelEngine) clients(ctx context.Context) ([]netip.Prefix, error) {
	networks, err := k.registry.Networks(ctx)
	if err != nil {
		return nil, err
	}
	clients := []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)}
	for _, n := range networks {
		clients = append(clients, n.Subnet)
	}
	return clients, nil
}

func (k *kernelEngine) export(ctx context.Context, id store.SnapshotID, clients []netip.Prefix) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.stopped {
		return errors.New("the server is being stopped")
	}
	mount := k.mounts[id]
	if mount == nil {
		record, err := k.manager.SnapshotRecord(ctx, id)
		if err != nil {
			return err
		}
		if !record.Deleted.IsZero() {
			return fmt.Errorf("snapshot %s is deleted: %w", record.Ref(), store.ErrNotFound)
		}
		if mount, err = k.manager.MountSnapshot(ctx, id); err != nil {
			return err
		}
		k.mounts[id] = mount
	}
	return k.server.Export(ctx, id, mount.Path(), clients)
}

// exportAll exports what a node needs and what a channel points to. The latter
// is for live updates: the agent mounts the new snapshot without asking first.
func (k *kernelEngine) exportAll(ctx context.Context) error {
	clients, err := k.clients(ctx)
	if err != nil {
		return err
	}
	needed, err := k.registry.SnapshotsInUse(ctx)
	if err != nil {
		return err
	}
	channels, err := k.manager.Channels(ctx)
	if err != nil {
		return err
	}
	for _, c := range channels {
		needed[c.Snapshot.ID] = nil
	}
	// And what is exported already: the networks may be others now.
	for _, id := range k.server.Exported() {
		needed[id] = nil
	}
	var errs []error
	for id := range needed {
		if err := k.export(ctx, id, clients); err != nil {
			errs = append(errs, fmt.Errorf("export snapshot %s: %w", id, err))
		}
	}
	return errors.Join(errs...)
}

// forgetDeleted ends the exports of snapshots that are deleted.
func (k *kernelEngine) forgetDeleted(ctx context.Context) error {
	var errs []error
	for _, id := range k.server.Exported() {
		record, err := k.manager.SnapshotRecord(ctx, id)
		if errors.Is(err, store.ErrNotFound) || err == nil && !record.Deleted.IsZero() {
			k.log.Infof("snapshot %s is deleted: it is served no more", id)
			errs = append(errs, k.unexport(ctx, id))
		}
	}
	return errors.Join(errs...)
}

func (k *kernelEngine) unexport(ctx context.Context, id store.SnapshotID) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.server.Unexport(ctx, id); err != nil {
		return err
	}
	mount := k.mounts[id]
	delete(k.mounts, id)
	if mount == nil {
		return nil
	}
	return mount.Unmount(ctx)
}

// stop gives the store's mounts back. The exports stay, and so do the mounts
// that the kernel's server has: machines run on.
func (k *kernelEngine) stop(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stopped = true
	for id, mount := range k.mounts {
		// In use: by the kernel's server, which keeps a volume's device busy.
		if err := mount.Unmount(ctx); err != nil && !errors.Is(err, store.ErrInUse) {
			k.log.WithError(err).WithField("snapshot_id", id).Error("a snapshot stays mounted")
		}
	}
	clear(k.mounts)
}

// run keeps the exports as the catalog wants them until ctx ends.
func (k *kernelEngine) run(ctx context.Context) error {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		err := errors.Join(k.forgetDeleted(ctx), k.exportAll(ctx))
		if ctx.Err() != nil {
			return nil
		}
		// Said once, not twice a second.
		text := ""
		if err != nil {
			text = err.Error()
		}
		if text != "" && text != said {
			k.log.WithError(err).Error("the exports are not as they should be")
		}
		said = text
	}
}

// Engines are the NFS engines that there are.
var Engines = []node.Engine{node.EngineOwn, node.EngineKernel}

// checkEngine refuses what cannot be served together.
func (s *Server) checkEngine(ctx context.Context) error {
	if s.Engine == "" {
		s.Engine = node.EngineOwn
	}
	if !slices.Contains(Engines, s.Engine) {
		return fmt.Errorf("there is no NFS engine %q", s.Engine)
	}
	if !s.runs(NFS) {
		return nil
	}
	return s.Registry.UseEngine(ctx, s.Engine)
}

// ownNFS tells whether package export/nfs serves the roots.
func (s *Server) ownNFS() bool { return s.runs(NFS) && s.Engine == node.EngineOwn }
