package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

// Booter is the pxe.Booter of a Registry: it adds to what a machine boots
// where the servers are, and the snapshot's boot entry. All its fields but
// Root are needed.
type Booter struct {
	Registry *Registry
	// Entry returns the boot entry of a snapshot. It is called outside of any
	// transaction.
	Entry func(context.Context, store.SnapshotID) (protocol.BootEntry, error)
	// HTTP returns the base address of the HTTP server as a client reaches
	// it: "http://10.0.0.1:8080".
	HTTP func(client netip.Addr) string
	// NFS returns the address of the NFS server as a client reaches it.
	NFS func(client netip.Addr) netip.AddrPort
	// Root sees to it that a snapshot can be mounted, and returns the path and
	// further options with which. Nil: what package export/nfs serves.
	Root func(context.Context, store.SnapshotID) (path string, options []string, err error)
}

// Boot implements pxe.Booter.
func (b *Booter) Boot(ctx context.Context, hw net.HardwareAddr, client netip.Addr, loader pxe.Loader) (pxe.Config, error) {
	mac, err := MACOf(hw)
	if err != nil {
		return pxe.Config{}, &pxe.Nothing{Reason: err.Error(), Then: pxe.ThenLocal}
	}
	client = client.Unmap()
	boot, err := b.Registry.Boot(ctx, mac, client, string(loader))
	if nothing, ok := errors.AsType[*NothingError](err); ok {
		return pxe.Config{}, nothing.screen()
	}
	if err != nil {
		b.Registry.log.WithField("mac", mac.String()).WithError(err).Error("cannot tell what to boot")
		return pxe.Config{}, err
	}
	config, err := b.config(ctx, boot, client)
	if err != nil {
		b.Registry.logSession(boot.Session).WithError(err).Error("cannot tell how to boot")
	}
	return config, err
}

func (b *Booter) config(ctx context.Context, boot Boot, client netip.Addr) (pxe.Config, error) {
	s := boot.Session
	entry, err := b.Entry(ctx, s.Snapshot.ID)
	if err != nil {
		return pxe.Config{}, fmt.Errorf("snapshot %s: %w", s.Snapshot, err)
	}
	path, options := "", boot.Network.NFSOptions
	if b.Root != nil {
		var more []string
		if path, more, err = b.Root(ctx, s.Snapshot.ID); err != nil {
			return pxe.Config{}, fmt.Errorf("snapshot %s: %w", s.Snapshot, err)
		}
		options = slices.Concat(options, more)
	}
	base := b.HTTP(client)
	line, err := protocol.CommandLine{
		Session: s.ID, Snapshot: s.Snapshot.ID, NFS: b.NFS(client), NFSPath: path, HTTP: base, MachineID: boot.MachineID,
		Hostname: boot.Node.Name, NFSOptions: options, BootMAC: s.MAC.HardwareAddr(),
		Extra: entry.CmdLine + " " + boot.Args,
	}.Render()
	if err != nil {
		return pxe.Config{}, err
	}
	config := pxe.Config{
		MAC: s.MAC.HardwareAddr(), Node: boot.Node.Name, Title: s.Snapshot.String(),
		Session: s.ID, Snapshot: s.Snapshot.ID, CommandLine: line,
	}
	config.SetFiles(base)
	return config, nil
}

// screen is what the machine shows, and does then: one that is ours asks
// again, since it has nothing else to boot from; others go on with their disk.
func (e *NothingError) screen() *pxe.Nothing {
	nothing := &pxe.Nothing{Reason: e.Choice.Sentence(), Then: pxe.ThenRetry}
	switch e.Choice.Reason {
	case ReasonNotServed, ReasonUnknown:
		nothing.Then = pxe.ThenLocal
	}
	return nothing
}
