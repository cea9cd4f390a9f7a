package btrfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

// btrfsFolder makes a btrfs of its own and returns where it is mounted.
func btrfsFolder(t testing.TB) string {
	o := loopOptions(t)
	detachAtEnd(t, o)
	s, err := Init(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s.Root()
}

func TestFolder(t *testing.T) {
	storetest.Run(t, func(t testing.TB) *storetest.Backend {
		// Deep in a subvolume, and with what a folder hands down.
		folder := filepath.Join(btrfsFolder(t), "some where")
		if err := unix.Mkdir(folder, 0o2777); err != nil {
			t.Fatal(err)
		}
		if err := storetest.Apply(storetest.ACL(".", "d:u:33:rwx"), storetest.Chmod(".", 0o2777), storetest.Chown(".", 7, 7))(folder); err != nil {
			t.Fatal(err)
		}
		return opened(t, Options{Path: filepath.Join(folder, "sidus")})
	})
}

func TestFolderThatIsNone(t *testing.T) {
	top := btrfsFolder(t)
	full := filepath.Join(top, "full")
	if err := os.MkdirAll(filepath.Join(full, "photos"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		path string
		call string
		want error
		says string
	}{
		{"/dev/shm/sidus-no-btrfs", "Init", ErrNotAStore, "not on a btrfs"},
		{full, "Init", ErrNotAStore, `"photos"`},
		{full, "Open", ErrNotAStore, "sidus init"},
		{filepath.Join(top, "missing"), "Open", store.ErrNotFound, "missing"},
	} {
		var err error
		if c.call == "Init" {
			_, err = Init(t.Context(), Options{Path: c.path})
		} else {
			_, err = Open(t.Context(), Options{Path: c.path})
		}
		if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s %s: got %v", c.call, c.path, err)
		}
		t.Logf("the message: %v", err)
	}
	if _, err := os.Stat("/dev/shm/sidus-no-btrfs"); err == nil {
		t.Error("a folder is left behind")
	}
	if _, err := os.Stat(filepath.Join(full, volumesDir)); err == nil {
		t.Error("a foreign folder was changed")
	}
}

func TestPlaceIsOneOfTwo(t *testing.T) {
	for _, o := range []Options{{}, {File: "a", Path: "b"}} {
		if _, err := Open(t.Context(), o); err == nil {
			t.Errorf("%+v was taken", o)
		}
	}
}
