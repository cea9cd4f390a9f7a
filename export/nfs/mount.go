package nfs

import (
	"errors"
	"slices"
	"strings"
	"sync"

	"sidus/export/internal/xdr"
	"sidus/image/index"
	"sidus/image/store"
)

// The numbers of the MOUNT protocol: version 3 (RFC 1813, appendix I), and
// versions 1 and 2 (RFC 1094, appendix A), which some tools use for listing.
const (
	mountProgram = 100005

	mountProcNull    = 0
	mountProcMnt     = 1
	mountProcDump    = 2
	mountProcUmnt    = 3
	mountProcUmntall = 4
	mountProcExport  = 5

	mountOK             = 0
	mountErrNoEnt       = 2
	mountErrAcces       = 13
	mountErrNotDir      = 20
	mountErrServerFault = 10006

	maxMountPath = 1024
)

// mount answers a call of the MOUNT program.
func (k *call) mount() outcome {
	if k.vers < 1 || k.vers > 3 {
		k.restart(acceptProgMismatch, 1, 3)
		return answered
	}
	switch k.proc {
	case mountProcNull:
	case mountProcMnt:
		if !k.wait {
			return deferred
		}
		path := k.in.Opaque(maxMountPath)
		switch {
		case k.in.Bad:
		case k.vers != 3:
			// Version 1 mounts for NFS version 2, which is not served.
			k.out = be.AppendUint32(k.out, mountErrAcces)
		default:
			k.mnt(path)
		}
	case mountProcDump:
		for _, m := range k.s.mounts.list() {
			k.out = be.AppendUint32(k.out, 1)
			k.out = xdr.AppendOpaque(k.out, []byte(m.client))
			k.out = xdr.AppendOpaque(k.out, []byte(m.path))
		}
		k.out = be.AppendUint32(k.out, 0)
	case mountProcUmnt:
		path := k.in.Opaque(maxMountPath)
		if !k.in.Bad {
			k.s.mounts.remove(mountEntry{k.conn.peer.Addr().String(), string(path)})
		}
	case mountProcUmntall:
		k.s.mounts.removeAll(k.conn.peer.Addr().String())
	case mountProcExport:
		if !k.wait {
			return deferred
		}
		k.exports()
	default:
		k.restart(acceptProcUnavail)
	}
	return answered
}

// mnt answers MNT: it finds the directory, and remembers who mounted it.
func (k *call) mnt(path []byte) {
	var dir object
	status := k.mountPoint(path, &dir)
	k.out = be.AppendUint32(k.out, status)
	if status != mountOK {
		k.s.log.WithField("client", k.conn.peer).WithField("path", string(path)).WithField("status", status).
			Warn("mount refused")
		return
	}
	var b []byte
	k.out, b = xdr.Extend(k.out, 4+handleSize)
	be.PutUint32(b, handleSize)
	k.s.key.put(b[4:], &dir.snap.id, dir.id)
	k.out = xdr.AppendUint32(k.out, 1, flavorSys)
	k.s.mounts.add(mountEntry{k.conn.peer.Addr().String(), string(path)})
	if k.s.onMount != nil {
		k.s.onMount(k.conn.peer, dir.snap.name)
	}
}

// mountPoint finds the directory of a path: /snapshot/ID or /channel/NAME,
// the snapshot to which the channel points now, and below these the path of a
// directory in the snapshot.
func (k *call) mountPoint(path []byte, dir *object) uint32 {
	parts := strings.FieldsFunc(string(path), func(r rune) bool { return r == '/' })
	if len(parts) < 2 || path[0] != '/' {
		return mountErrNoEnt
	}
	var id store.SnapshotID
	var err error
	switch parts[0] {
	case "snapshot":
		id, err = store.ParseSnapshotID(parts[1])
	case "channel":
		if id, err = k.s.source.Channel(k.s.ctx, parts[1]); err == nil {
			err = id.Validate()
		}
	default:
		return mountErrNoEnt
	}
	if err == nil {
		raw := id.Bytes()
		err = k.use(&raw)
	}
	switch {
	case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrBadName), errors.Is(err, ErrDeleted):
		return mountErrNoEnt
	case err != nil:
		return mountErrServerFault
	}
	dir.snap, dir.id = k.cur, index.Root
	for _, name := range parts[2:] {
		k.cur.index.Attr(dir.id, &dir.attr)
		next, status := k.find(dir, []byte(name))
		if status != nfsOK {
			return status // the numbers that find gives are those of mountstat3, too
		}
		dir.id = next
	}
	if k.cur.index.Attr(dir.id, &dir.attr); !dir.attr.IsDir() {
		return mountErrNotDir
	}
	return mountOK
}

// exports answers EXPORT.
func (k *call) exports() {
	all, err := k.s.source.Exports(k.s.ctx)
	if err != nil {
		k.s.log.WithError(err).Error("exports cannot be listed")
	}
	for _, e := range all {
		k.out = be.AppendUint32(k.out, 1)
		k.out = xdr.AppendOpaque(k.out, []byte(e.Path))
		for _, g := range e.Groups {
			k.out = be.AppendUint32(k.out, 1)
			k.out = xdr.AppendOpaque(k.out, []byte(g))
		}
		k.out = be.AppendUint32(k.out, 0)
	}
	k.out = be.AppendUint32(k.out, 0)
}

// mountEntry is a line of what DUMP tells.
type mountEntry struct{ client, path string }

// mounts remembers who mounted what. It is advisory (RFC 1813, section 5.2.2)
// and of limited length: the entries that were made first go first.
type mounts struct {
	mu      sync.Mutex
	entries []mountEntry
}

const maxMounts = 4096

func (m *mounts) add(e mountEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if slices.Contains(m.entries, e) {
		return
	}
	if len(m.entries) >= maxMounts {
		m.entries = slices.Delete(m.entries, 0, 1)
	}
	m.entries = append(m.entries, e)
}

func (m *mounts) remove(e mountEntry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = slices.DeleteFunc(m.entries, func(x mountEntry) bool { return x == e })
}

func (m *mounts) removeAll(client string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = slices.DeleteFunc(m.entries, func(x mountEntry) bool { return x.client == client })
}

func (m *mounts) list() []mountEntry {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}
