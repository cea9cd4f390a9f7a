package memstore_test

import (
	"errors"
	"os"
	"testing"

	"sidus/image/store"
	"sidus/image/store/memstore"
	"sidus/image/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, func(t testing.TB) *storetest.Backend {
		s := memstore.New(t.TempDir())
		return &storetest.Backend{
			Store:        s,
			Open:         func(testing.TB) store.Store { return s.Again() },
			Inject:       s.Inject,
			Unprivileged: os.Geteuid() != 0,
			Skip: map[string]string{
				"read-only":      "plain folders cannot refuse root's writes with EROFS",
				"nested-mount":   "the fake does not look at mounts",
				"usage":          "the fake's usage is what a test sets",
				"many-snapshots": "each snapshot is a copy; the case is about constant cost",
			},
		}
	})
}

func TestTellingItToFail(t *testing.T) {
	s := memstore.New(t.TempDir())
	why := errors.New("told to fail")
	v := store.NewVolumeID()
	s.FailOn("CreateVolume", why)
	if err := s.CreateVolume(t.Context(), v); !errors.Is(err, why) {
		t.Errorf("FailOn: got %v", err)
	}
	s.FailOn("CreateVolume", nil)
	s.FailAt(2, why)
	if err := s.CreateVolume(t.Context(), v); !errors.Is(err, why) {
		t.Errorf("FailAt: got %v", err)
	}
	if err := s.CreateVolume(t.Context(), v); err != nil {
		t.Errorf("it fails once only: %v", err)
	}
	s.SetUsage(store.Usage{Size: 1})
	if err := s.CreateVolume(t.Context(), store.NewVolumeID()); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("SetUsage: got %v", err)
	}
	m, err := s.MountVolume(t.Context(), v)
	if err != nil || s.Mounts() != 1 {
		t.Fatalf("%d mounts, %v", s.Mounts(), err)
	}
	if err := s.Close(); !errors.Is(err, store.ErrInUse) {
		t.Errorf("Close with a mount: got %v", err)
	}
	if err := errors.Join(m.Unmount(t.Context()), s.Close()); err != nil || s.Mounts() != 0 {
		t.Errorf("%d mounts, %v", s.Mounts(), err)
	}
}
