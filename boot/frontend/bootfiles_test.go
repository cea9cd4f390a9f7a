package frontend

import (
	"errors"
	"io"
	"io/fs"
	"testing"

	"sidus/boot/protocol"
	"sidus/image/store"
)

func TestBootFiles(t *testing.T) {
	s := newSite(t)
	good, bare := s.tree("good", bootable), s.tree("bare", map[string]string{"etc/motd": "no kernel\n"})
	files := newBootFiles(s.Manager)
	for which, want := range map[protocol.BootFile]string{protocol.Kernel: "the kernel", protocol.Initrd: "the initrd"} {
		f, err := files.OpenBootFile(t.Context(), good.ID, which)
		if err != nil {
			t.Fatal(err)
		}
		if n := s.store.Mounts(); n != 1 {
			t.Errorf("%d mounts while a file is open", n)
		}
		text, err := io.ReadAll(f)
		if err != nil || string(text) != want {
			t.Errorf("%v: %q, %v", which, text, err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		s.noMounts()
	}
	// What is not there for ever is told apart from what fails now.
	absent := store.SnapshotID("ffffffffffffffffffffffffffffffff")
	for _, id := range []store.SnapshotID{absent, bare.ID} {
		if _, err := files.OpenBootFile(t.Context(), id, protocol.Kernel); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", id, err)
		}
	}
	s.store.FailOn("MountSnapshot", store.ErrUnavailable)
	if _, err := files.OpenBootFile(t.Context(), good.ID, protocol.Kernel); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a store that is away: %v", err)
	}
	s.store.FailOn("MountSnapshot", nil)
	s.noMounts()

	// The entry of a snapshot is remembered, also when that is deleted: its
	// files are gone then.
	if err := s.DeleteTree(t.Context(), "good", false); err != nil {
		t.Fatal(err)
	}
	if _, err := files.OpenBootFile(t.Context(), good.ID, protocol.Kernel); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a deleted snapshot: %v", err)
	}
	s.noMounts()
}
