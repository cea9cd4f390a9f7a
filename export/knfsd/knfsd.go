// Package knfsd has the kernel's NFS server serve snapshots, for sites that
// want it in place of package export/nfs.
//
// Each snapshot is bind-mounted below one folder and exported with exportfs(8)
// to the networks that are served: read-only, without subtree checks, and with
// a file system ID that is made of the snapshot's. The NFS service must be
// running; it is never started, stopped or restarted, and exports that are not
// below the folder are never touched.
//
// What the kernel's server cannot do: its file handles are made of inode
// numbers, so no other server can take over the machines that run; and it does
// not tell who is alive.
package knfsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/export/portmap"
	"sidus/image/store"
	"sidus/image/tool"
)

// DefaultDir is where snapshots are mounted for the kernel's server.
const DefaultDir = "/run/sidus/nfsd"

// Server has the kernel's NFS server serve snapshots. Only one process may use
// the same Dir.
type Server struct {
	Dir string             // an absolute path; "" is DefaultDir
	Log logrus.FieldLogger // nil: logrus' standard logger

	mu      sync.Mutex
	exports map[store.SnapshotID][]netip.Prefix
}

// ErrNotRunning is wrapped by Start's error if the kernel serves no NFS.
var ErrNotRunning = errors.New("the kernel's NFS server does not run")

// ErrOwnMounts is wrapped by Start's error if this process has a view of the
// machine's mounts of its own: the kernel's server would not see what it mounts.
var ErrOwnMounts = errors.New("this process has a view of the mounts of its own")

const threadsFile = "/proc/fs/nfsd/threads"

// Start makes sure that the kernel's server runs, and takes over what an
// earlier process has exported: machines run from it. The error wraps ErrNotRunning, ErrOwnMounts or
// tool.ErrNotInstalled.
func (s *Server) Start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.Dir == "" {
		s.Dir = DefaultDir
	}
	if s.Log == nil {
		s.Log = logrus.StandardLogger()
	}
	threads, err := os.ReadFile(threadsFile)
	if err != nil || strings.TrimSpace(string(threads)) == "0" {
		return fmt.Errorf("%w: install nfs-kernel-server and `systemctl start nfs-server`", ErrNotRunning)
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	if first, err := os.Readlink("/proc/1/ns/mnt"); err == nil && first != own {
		return fmt.Errorf("%w, which the kernel's NFS server does not see: run it outside of namespaces (as a systemd service: without "+
			"ProtectSystem=, ProtectHome=, PrivateTmp= and the like)", ErrOwnMounts)
	}
	s.exports = map[store.SnapshotID][]netip.Prefix{}
	if err := os.MkdirAll(filepath.Join(s.Dir, "snapshot"), 0o755); err != nil {
		return err
	}
	return s.adopt(ctx)
}

// adopt takes over the exports below Dir that an earlier process has made:
// machines run from them. What is only half there is taken back.
func (s *Server) adopt(ctx context.Context) error {
	text, err := os.ReadFile("/var/lib/nfs/etab")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(filepath.Join(s.Dir, "snapshot"))
	if err != nil {
		return err
	}
	var errs []error
	for _, entry := range entries {
		id := store.SnapshotID(entry.Name())
		switch {
		case id.Validate() == nil && strings.Contains(string(mounts), " "+s.Path(id)+" "):
			s.exports[id] = nil
		default:
			errs = append(errs, os.Remove(filepath.Join(s.Dir, "snapshot", entry.Name())))
		}
	}
	for _, old := range parseEtab(string(text)) {
		if !strings.HasPrefix(old.path, s.Dir+"/") {
			continue
		}
		id := store.SnapshotID(filepath.Base(old.path))
		client, err := netip.ParsePrefix(old.client)
		if _, mounted := s.exports[id]; err == nil && mounted && s.Path(id) == old.path {
			s.exports[id] = append(s.exports[id], client)
			continue
		}
		errs = append(errs, s.exportfs(ctx, "-u", old.client+":"+old.path))
	}
	return errors.Join(errs...)
}

// Path is what clients mount for a snapshot.
func (s *Server) Path(id store.SnapshotID) string {
	return filepath.Join(s.Dir, "snapshot", string(id))
}

// Ports are the TCP ports of the kernel's server and of its MOUNT service.
type Ports struct{ NFS, Mount uint16 }

// Ports asks the port mapper of this machine.
func (s *Server) Ports(ctx context.Context) (p Ports, err error) {
	if p.NFS, err = portmap.Find(ctx, nfsProgram, 3); err != nil {
		return p, fmt.Errorf("the kernel's NFS server: %w", err)
	}
	if p.Mount, err = portmap.Find(ctx, mountProgram, 3); err != nil {
		return p, fmt.Errorf("rpc.mountd: %w", err)
	}
	return p, nil
}

// ONC RPC program numbers, RFC 1813.
const (
	nfsProgram   = 100003
	mountProgram = 100005
)

// Exported are the snapshots that are exported.
func (s *Server) Exported() []store.SnapshotID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.exports))
}

// Export has a snapshot that is mounted at root served to some networks. It
// must stay mounted until Unexport or Close. A snapshot that is exported
// already is exported to these networks from now on.
func (s *Server) Export(ctx context.Context, id store.SnapshotID, root string, clients []netip.Prefix) error {
	if err := id.Validate(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := s.Path(id)
	before, known := s.exports[id]
	if !known {
		if err := bind(root, path); err != nil {
			return err
		}
		s.exports[id] = nil // mounted, and to be exported
	}
	add, remove := difference(before, clients)
	for _, client := range add {
		if err := s.exportfs(ctx, "-o", options(id), client.String()+":"+path); err != nil {
			return errors.Join(err, s.unexport(ctx, id))
		}
		s.exports[id] = append(s.exports[id], client)
	}
	for _, client := range remove {
		if err := s.exportfs(ctx, "-u", client.String()+":"+path); err != nil {
			return err
		}
		s.exports[id] = slices.DeleteFunc(s.exports[id], func(p netip.Prefix) bool { return p == client })
	}
	return nil
}

// Unexport ends the export of a snapshot. Machines that have it mounted lose
// it.
func (s *Server) Unexport(ctx context.Context, id store.SnapshotID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unexport(ctx, id)
}

func (s *Server) unexport(ctx context.Context, id store.SnapshotID) error {
	clients, known := s.exports[id]
	if !known {
		return nil
	}
	var errs []error
	for _, client := range clients {
		errs = append(errs, s.exportfs(ctx, "-u", client.String()+":"+s.Path(id)))
	}
	errs = append(errs, s.flush(ctx), s.unmount(ctx, s.Path(id)))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	delete(s.exports, id)
	return nil
}

// Close ends all exports.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for id := range s.exports {
		errs = append(errs, s.unexport(ctx, id))
	}
	return errors.Join(errs...)
}

func (s *Server) exportfs(ctx context.Context, args ...string) error {
	return tool.Run(ctx, tool.Options{Log: s.Log}, "exportfs", args...)
}

// flush has the kernel forget which exports it was told of, so that it lets go
// of those that are gone. It asks again for the others.
func (s *Server) flush(ctx context.Context) error { return s.exportfs(ctx, "-f") }

// options are those of exports(5). no_root_squash: machines read their root as
// root. Ports below 1024 only is the default (secure).
func options(id store.SnapshotID) string {
	return "ro,secure,no_root_squash,no_subtree_check,fsid=" + fsid(id)
}

// fsid is a snapshot's ID as a UUID, by which the kernel's server knows a file
// system: so handles stay good when the server was started again.
func fsid(id store.SnapshotID) string {
	t := string(id)
	return strings.Join([]string{t[:8], t[8:12], t[12:16], t[16:20], t[20:]}, "-")
}

// difference tells which clients are new and which are gone.
func difference(before, after []netip.Prefix) (add, remove []netip.Prefix) {
	for _, p := range after {
		if !slices.Contains(before, p) && !slices.Contains(add, p) {
			add = append(add, p)
		}
	}
	for _, p := range before {
		if !slices.Contains(after, p) {
			remove = append(remove, p)
		}
	}
	return add, remove
}

// exported is a line of the table of exports.
type exported struct{ path, client string }

// parseEtab reads the table of exports that exportfs keeps: lines of a path, a
// tab, and a client with its options in brackets. Odd bytes of paths are \ooo.
func parseEtab(text string) []exported {
	var all []exported
	for line := range strings.Lines(text) {
		path, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		client, _, ok2 := strings.Cut(rest, "(")
		if ok && ok2 && client != "" && !strings.Contains(path, `\`) {
			all = append(all, exported{path, client})
		}
	}
	return all
}

// bind mounts root at path, read-only.
func bind(root, path string) error {
	err := os.Mkdir(path, 0o755)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.Mount(root, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", root, path, err)
	}
	flags := uintptr(unix.MS_BIND | unix.MS_REMOUNT | unix.MS_RDONLY | unix.MS_NOATIME)
	if err := unix.Mount("", path, "", flags, ""); err != nil {
		return errors.Join(fmt.Errorf("mount %s read-only: %w", path, err), unix.Unmount(path, 0), os.Remove(path))
	}
	return nil
}

// closeTime is how long to wait for the kernel's server to let go of what it
// has served. It looks every two seconds for files that are used no more, but
// may keep a file system for longer.
const closeTime = 5 * time.Second

// unmount ends a mount and removes its folder. A mount that the kernel's server
// keeps is taken out of sight; it goes when the server lets go of it, and until
// then the snapshot cannot be destroyed.
func (s *Server) unmount(ctx context.Context, path string) error {
	limit := time.Now().Add(closeTime)
	for {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) && time.Now().After(limit) {
			s.Log.WithField("path", path).Info("the kernel's NFS server still uses a mount: it goes later")
			err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: it was not mounted
			return os.Remove(path)
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("unmount %s: %w", path, ctx.Err())
		}
	}
}
