package transfer

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/memstore"
)

// testSite is a server with a store in memory.
type testSite struct {
	t       *testing.T
	name    string
	layout  image.Layout
	catalog *catalog.Catalog
	memory  *memstore.Store
	store   store.Store
	manager *image.Manager
	logged  *lockedBuffer
	log     *logrus.Logger
}

// newSite makes one; native tells whether its store has native streams.
func newSite(t *testing.T, name string, native bool) *testSite {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: the store in memory keeps owners: it needs root")
	}
	s := &testSite{t: t, name: name, layout: image.Layout{Dir: filepath.Join(t.TempDir(), name)}, logged: &lockedBuffer{}, log: logrus.New()}
	s.log.SetOutput(s.logged)
	s.log.SetLevel(logrus.DebugLevel)
	must(t, s.layout.Make())
	var err error
	s.catalog, err = catalog.Create(t.Context(), s.layout.Catalog())
	must(t, err)
	t.Cleanup(func() { must(t, s.catalog.Close()) })
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	must(t, os.WriteFile(s.layout.SiteKey(), key, 0o600))
	s.memory = memstore.New(t.TempDir())
	s.store = s.memory
	if native {
		s.store = nativeStore{s.memory}
	}
	s.manager = image.New(image.Options{Layout: s.layout, Catalog: s.catalog, Store: s.store, Logger: s.log, Actor: catalog.Actor{User: name, Command: "test"}})
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// lockedBuffer is a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// tree makes a tree with an empty head.
func (s *testSite) tree(name string) {
	s.t.Helper()
	_, err := s.manager.CreateTree(s.t.Context(), name)
	must(s.t, err)
}

// snapshot writes random bytes into a file of the head, and takes a snapshot.
func (s *testSite) snapshot(tree, file string, size int) image.Snapshot {
	s.t.Helper()
	ctx := s.t.Context()
	lock, err := s.manager.LockHead(ctx, tree, false)
	must(s.t, err)
	mount, err := s.manager.MountHead(ctx, lock)
	must(s.t, err)
	text := make([]byte, size)
	_, _ = rand.Read(text)
	must(s.t, os.WriteFile(filepath.Join(mount.Path(), file), text, 0o644))
	must(s.t, mount.Unmount(ctx))
	must(s.t, lock.Release())
	snapshot, err := s.manager.Snapshot(ctx, tree, nil, false, image.SnapshotOptions{Complete: true})
	must(s.t, err)
	return snapshot
}

func (s *testSite) promote(id store.SnapshotID, channel string) {
	s.t.Helper()
	_, _, err := s.manager.Promote(s.t.Context(), id, channel, "")
	must(s.t, err)
}

func (s *testSite) receiver() *Receiver {
	return &Receiver{Manager: s.manager, Store: s.store, Layout: s.layout, Program: "sidus test", Log: s.log}
}

func (s *testSite) sender() *Sender {
	return &Sender{Manager: s.manager, Store: s.store, Layout: s.layout, Program: "sidus test", Log: s.log}
}

// dial connects to a receiver in this process. cut, if it is positive, is after
// how many bytes from the sender the connection goes away.
func dial(r *Receiver, cut int64, alter func(p []byte)) (Dial, func() error) {
	ended := make(chan error, 1)
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		here, there, err := connection()
		if err != nil {
			return nil, err
		}
		go func() { ended <- r.Serve(context.Background(), there, "test") }()
		return &faulty{Conn: here, left: cut, limited: cut > 0, alter: alter}, nil
	}, func() error { return <-ended }
}

// connection returns both ends of one.
func connection() (here, there net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "connection")
		ends[i], err = net.FileConn(file)
		if err = errors.Join(err, file.Close()); err != nil {
			return nil, nil, err
		}
	}
	return ends[0], ends[1], nil
}

// faulty is a connection that goes away, or alters what passes.
type faulty struct {
	net.Conn
	limited bool
	left    int64
	alter   func(p []byte)
}

func (f *faulty) Write(p []byte) (int, error) {
	if f.alter != nil {
		p = bytes.Clone(p)
		f.alter(p)
	}
	if f.limited && int64(len(p)) > f.left {
		n, _ := f.Conn.Write(p[:f.left])
		f.left = 0
		_ = f.Conn.Close()
		return n, net.ErrClosed
	}
	f.left -= int64(len(p))
	return f.Conn.Write(p)
}

// replicate brings to a replica what a primary has.
func replicateTo(from, to *testSite) (Report, error) {
	connect, ended := dial(to.receiver(), 0, nil)
	report, err := from.sender().Replicate(from.t.Context(), connect)
	_ = ended()
	return report, err
}

// view is all that must be the same on both sides.
func (s *testSite) view() string {
	s.t.Helper()
	i, err := s.manager.Inventory(s.t.Context())
	must(s.t, err)
	var b strings.Builder
	for _, t := range i.Trees {
		fmt.Fprintf(&b, "tree %s %s base %s\n", t.ID, t.Name, t.Base)
	}
	for _, snapshot := range i.Snapshots {
		fmt.Fprintf(&b, "snapshot %s %s %q complete %v deleted %d", snapshot.ID, snapshot.Ref(), snapshot.Name, snapshot.Complete, snapshot.Deleted.UnixMilli())
		if snapshot.Deleted.IsZero() {
			fmt.Fprintf(&b, " holds %x", s.content(snapshot.ID))
		}
		b.WriteByte('\n')
	}
	for _, channel := range []string{"default", "canary", "other"} {
		if id := i.Channels[channel]; id != "" {
			fmt.Fprintf(&b, "channel %s %s\n", channel, id)
		}
	}
	key, err := os.ReadFile(s.layout.SiteKey())
	must(s.t, err)
	fmt.Fprintf(&b, "key %x\n", key)
	return b.String()
}

// content is a text that says what a snapshot holds.
func (s *testSite) content(id store.SnapshotID) string {
	s.t.Helper()
	mount, err := s.manager.MountSnapshot(s.t.Context(), id)
	must(s.t, err)
	defer func() { must(s.t, mount.Unmount(context.Background())) }()
	var b strings.Builder
	must(s.t, filepath.WalkDir(mount.Path(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %d %.16x;", entry.Name(), len(text), text)
		return err
	}))
	return b.String()
}

// sound checks that catalog and store agree and nothing is left over.
func (s *testSite) sound() {
	s.t.Helper()
	findings, err := s.manager.Check(s.t.Context())
	must(s.t, err)
	for _, f := range findings {
		s.t.Errorf("%s: check finds: %s", s.name, f.Text)
	}
	if n := s.memory.Mounts(); n != 0 {
		s.t.Errorf("%s: %d mounts are left", s.name, n)
	}
}

// nativeStore is a store with native streams of its own: an archive of the
// files that the base does not have, or has otherwise.
type nativeStore struct{ *memstore.Store }

func (n nativeStore) SendKind() string { return "btrfs" }

func (n nativeStore) Send(ctx context.Context, snap, base store.SnapshotID) (io.ReadCloser, error) {
	top, err := n.MountSnapshot(ctx, snap)
	if err != nil {
		return nil, err
	}
	defer func() { _ = top.Unmount(ctx) }()
	old := ""
	if base != "" {
		mount, err := n.MountSnapshot(ctx, base)
		if err != nil {
			return nil, err
		}
		defer func() { _ = mount.Unmount(ctx) }()
		old = mount.Path()
	}
	var b bytes.Buffer
	out := tar.NewWriter(&b)
	err = filepath.WalkDir(top.Path(), func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		name, _ := filepath.Rel(top.Path(), path)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if before, err := os.ReadFile(filepath.Join(old, name)); old != "" && err == nil && bytes.Equal(before, text) {
			return nil
		}
		return errors.Join(out.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text)), Typeflag: tar.TypeReg}), second(out.Write(text)))
	})
	return io.NopCloser(&b), errors.Join(err, out.Close())
}

func second(_ int, err error) error { return err }

func (n nativeStore) Receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) (err error) {
	if kind != n.SendKind() {
		return store.ErrUnsupported
	}
	v := store.NewVolumeID()
	if base != "" {
		err = n.Clone(ctx, base, v)
	} else {
		err = n.CreateVolume(ctx, v)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.DestroyVolume(context.WithoutCancel(ctx), v)) }()
	mount, err := n.MountVolume(ctx, v)
	if err != nil {
		return err
	}
	err = unpackFiles(r, mount.Path())
	if err := errors.Join(err, mount.Unmount(ctx)); err != nil {
		return err
	}
	return n.Snapshot(ctx, v, snap)
}

func unpackFiles(r io.Reader, dir string) error {
	in := tar.NewReader(r)
	for {
		header, err := in.Next()
		if errors.Is(err, io.EOF) {
			_, err = io.Copy(io.Discard, r)
			return err
		}
		if err != nil {
			return err
		}
		file, err := os.Create(filepath.Join(dir, header.Name))
		if err != nil {
			return err
		}
		_, err = io.Copy(file, in)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
}
