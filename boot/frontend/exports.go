package frontend

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"sidus/boot/node"
	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/export/nfs"
	"sidus/image"
	"sidus/image/store"
)

// exports gives the NFS server the snapshots of the catalog.
type exports struct{ manager *image.Manager }

// Open implements nfs.Source.
func (e exports) Open(ctx context.Context, id store.SnapshotID) (*nfs.Snapshot, error) {
	record, err := e.manager.SnapshotRecord(ctx, id)
	if err != nil {
		return nil, err
	}
	if !record.Deleted.IsZero() {
		return nil, fmt.Errorf("snapshot %s: %w", record.Ref(), nfs.ErrDeleted)
	}
	x, err := e.manager.OpenIndex(ctx, id)
	if err != nil {
		return nil, err
	}
	mount, err := e.manager.MountSnapshot(ctx, id)
	if err != nil {
		return nil, errors.Join(err, x.Close())
	}
	return &nfs.Snapshot{Index: x, Root: mount.Path(), Close: func() error { return mount.Unmount(context.Background()) }}, nil
}

// Channel implements nfs.Source.
func (e exports) Channel(ctx context.Context, name string) (store.SnapshotID, error) {
	channel, err := e.manager.Channel(ctx, name)
	return channel.Snapshot.ID, err
}

// Exports implements nfs.Source: the channels, whose snapshots anybody who is
// served may mount.
func (e exports) Exports(ctx context.Context) ([]nfs.Export, error) {
	channels, err := e.manager.Channels(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]nfs.Export, len(channels))
	for i, channel := range channels {
		list[i] = nfs.Export{Path: "/channel/" + channel.Name}
	}
	return list, nil
}

func (s *Server) nfsServer(follower *node.Follower) *nfs.Server {
	return &nfs.Server{
		Key:    s.SiteKey[:],
		Source: exports{s.Manager},
		// An ordinary user on a node must not read what only root may: he
		// cannot bind a port below 1024.
		Allow: func(client netip.AddrPort) bool {
			return nfs.PrivilegedPort(client) && s.allowed(client.Addr())
		},
		OnMount: func(client netip.AddrPort, id store.SnapshotID) {
			follower.Step(context.Background(), pxe.Progress{Step: protocol.StepRoot, Snapshot: id, Client: client.Addr()})
		},
		Logger: s.Log,
	}
}

// allowed tells who is served: this machine, and the networks of the catalog.
func (s *Server) allowed(client netip.Addr) bool {
	return client.IsLoopback() || s.Registry.Allowed(client)
}

const (
	watchEvery = 500 * time.Millisecond // for deleted snapshots
	heardEvery = 20 * time.Second       // for signs of life
)

// watch, until ctx ends, lets go of snapshots that are deleted and notes which
// clients are heard.
func (s *Server) watch(ctx context.Context, server *nfs.Server, follower *node.Follower) {
	deleted, heard := time.NewTicker(watchEvery), time.NewTicker(heardEvery)
	defer deleted.Stop()
	defer heard.Stop()
	noted := map[nfs.ClientSnapshot]time.Time{}
	for {
		select {
		case <-deleted.C:
			s.forgetDeleted(ctx, server)
		case <-heard.C:
			for who, at := range server.LastHeard() {
				if at.After(noted[who]) {
					noted[who] = at
					follower.Heard(who.Client, who.Snapshot)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

func (s *Server) forgetDeleted(ctx context.Context, server *nfs.Server) {
	for _, id := range server.Opened() {
		record, err := s.Manager.SnapshotRecord(ctx, id)
		if err == nil && !record.Deleted.IsZero() {
			s.Log.Infof("%s is deleted: it is served no more", record.Ref())
			server.Forget(id)
		}
	}
}
