package frontend

import (
	"context"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"sidus/boot/node"
	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
	"sidus/image/store/memstore"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// site is a catalog with the fake store, and what a front end needs of both.
type site struct {
	*image.Manager
	registry *node.Registry
	store    *memstore.Store
	log      *logrus.Logger
	t        *testing.T
}

var by = node.By{Actor: catalog.Actor{User: "ada", Command: "sidus test"}}

func newSite(t *testing.T) *site {
	t.Helper()
	layout := image.Layout{Dir: t.TempDir()}
	if err := layout.Make(); err != nil {
		t.Fatal(err)
	}
	cat, err := catalog.Create(t.Context(), layout.Catalog())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cat.Close(); err != nil {
			t.Error(err)
		}
	})
	s := &site{t: t, log: logrus.New(), store: memstore.New(t.TempDir())}
	s.log.SetOutput(io.Discard)
	s.Manager = image.New(image.Options{Layout: layout, Catalog: cat, Store: s.store, Actor: by.Actor, Logger: s.log})
	s.registry = node.New(cat, node.Options{Log: s.log, SiteKey: [32]byte{1}})
	return s
}

// tree imports a tree with these files.
func (s *site) tree(name string, files map[string]string) image.Snapshot {
	s.t.Helper()
	snapshot, err := s.Import(s.t.Context(), name, image.ImportOptions{Source: "a test", Fill: func(_ context.Context, root string, _ func(int64) error) error {
		for path, text := range files {
			path = filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	return snapshot
}

// bootable is what a tree has that boots.
var bootable = map[string]string{"boot/vmlinuz-6": "the kernel", "boot/initrd.img-6": "the initrd", "etc/motd": "hello\n"}

func (s *site) promote(id store.SnapshotID, channel string) {
	s.t.Helper()
	if _, _, err := s.Promote(s.t.Context(), id, channel, ""); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) network(name, subnet string) {
	s.t.Helper()
	prefix, mode := netip.MustParsePrefix(subnet), node.ModeOff
	if _, err := s.registry.AddNetwork(s.t.Context(), by, name, node.NetworkChange{Subnet: &prefix, Mode: &mode}); err != nil {
		s.t.Fatal(err)
	}
}

// noMounts fails the test if a mount is held.
func (s *site) noMounts() {
	s.t.Helper()
	if n := s.store.Mounts(); n != 0 {
		s.t.Errorf("%d mounts are held", n)
	}
}
