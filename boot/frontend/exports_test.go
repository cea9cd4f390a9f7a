package frontend

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"sidus/export/nfs"
	"sidus/image/store"
)

func TestExports(t *testing.T) {
	s := newSite(t)
	one, two := s.tree("one", bootable), s.tree("two", bootable)
	s.promote(one.ID, "default")
	s.promote(two.ID, "next")
	e := exports{s.Manager}
	list, err := e.Exports(t.Context())
	if err != nil || len(list) != 2 || list[0].Path != "/channel/default" || list[1].Path != "/channel/next" {
		t.Errorf("%v, %v", list, err)
	}
	if id, err := e.Channel(t.Context(), "next"); err != nil || id != two.ID {
		t.Errorf("channel next is %s, %v", id, err)
	}
	if _, err := e.Channel(t.Context(), "none"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("channel none: %v", err)
	}

	snapshot, err := e.Open(t.Context(), one.ID)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(snapshot.Root, "etc/motd"))
	if err != nil || string(text) != "hello\n" {
		t.Errorf("%q, %v", text, err)
	}
	if n := snapshot.Index.Len(); n != 6 { // /, boot, etc, and three files
		t.Errorf("the index has %d inodes", n)
	}
	if err := errors.Join(snapshot.Index.Close(), snapshot.Close()); err != nil {
		t.Error(err)
	}
	s.noMounts()

	// STALE is said of what is deleted on record, and of nothing else.
	if err := s.DeleteChannel(t.Context(), "next"); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteTree(t.Context(), "two", false); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Open(t.Context(), two.ID); !errors.Is(err, nfs.ErrDeleted) {
		t.Errorf("a deleted snapshot: %v", err)
	}
	if _, err := e.Open(t.Context(), "ffffffffffffffffffffffffffffffff"); err == nil || errors.Is(err, nfs.ErrDeleted) {
		t.Errorf("a snapshot that nobody knows: %v", err)
	}
	s.store.FailOn("MountSnapshot", store.ErrUnavailable)
	if _, err := e.Open(t.Context(), one.ID); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, nfs.ErrDeleted) {
		t.Errorf("a store that is away: %v", err)
	}
	s.noMounts()
}

func TestAllowed(t *testing.T) {
	s := newSite(t)
	s.network("lab", "10.77.0.0/24")
	front := &Server{Manager: s.Manager, Registry: s.registry, Log: s.log}
	allow := front.nfsServer(nil).Allow
	for client, want := range map[string]bool{
		"10.77.0.9:900":   true,
		"127.0.0.1:900":   true,
		"10.77.0.9:1024":  false, // an ordinary user can have that port
		"127.0.0.1:40000": false,
		"10.78.0.9:900":   false,
		"[2001:db8::1]:9": false,
	} {
		if got := allow(netip.MustParseAddrPort(client)); got != want {
			t.Errorf("%s: %v", client, got)
		}
	}
}
