package storetest

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"sidus/image/store"
)

// Backend is a store under test and what the suite has to know about it.
type Backend struct {
	// Store is open and empty. The factory closes it by t.Cleanup.
	Store store.Store
	// Open opens the same store once more, beside Store, as another process
	// would; the suite closes what it returns. Nil if the store cannot do it.
	Open func(t testing.TB) store.Store
	// Inject sets the function that the store calls before each step that
	// changes something; an error from it fails the step, a panic stands for a
	// crash. A nil function takes it away. Nil if there is no such hook.
	Inject func(before func(step string) error)
	// Nest makes a nested subvolume, or what the backend calls that, at a path
	// inside a mounted volume. Nil if there is no such thing.
	Nest func(path string) error
	// Unprivileged says that the store does not run as root: trees have no
	// foreign owners, device nodes and attributes outside of "user.".
	Unprivileged bool
	// Skip names the cases that the backend cannot pass, with the reason.
	Skip map[string]string
}

// Factory makes a backend with an empty store for one case.
type Factory func(t testing.TB) *Backend

const privateMark = "SIDUS_TEST_PRIVATE_MOUNTS"

// PrivateMounts puts the test program into a mount namespace of its own, where
// it begins again from the start: call it first thing in TestMain. Whatever the
// tests mount goes away with the program, however that ends. It does nothing if
// the program is not root.
func PrivateMounts() error {
	if os.Geteuid() != 0 || os.Getenv(privateMark) != "" {
		return nil
	}
	runtime.LockOSThread() // the namespace is that of a thread; exec keeps the caller's
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("a mount namespace for the tests: %w", err)
	}
	// Slave, not private: what is unmounted outside is unmounted here too, and
	// not held until the tests end.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("a mount namespace for the tests: %w", err)
	}
	return syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), privateMark+"=1"))
}

// RequireRoot ends a test that needs root and does not have it: with a failure
// where CI is "true", else as skipped.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("this test needs root")
	}
	t.Skip("SKIPPED: this test needs root")
}

// stateFields are what state describes: what the trees of its callers have. Each
// of the others would start more programs, for every item, at every step.
const stateFields = Owner | Times | Content | HardLinks

// state describes all that a store holds, so that two states can be compared.
func state(t testing.TB, s store.Store) string {
	t.Helper()
	items, err := s.List(t.Context())
	if err != nil {
		t.Fatalf("List: %v", err)
	}
	var parts []string
	for _, i := range items {
		text := fmt.Sprintf("%s %s%s partial=%v\n", i.Kind, i.Volume, i.Snapshot, i.Partial)
		if !i.Partial {
			text += describeFields(t, mounted(t, s, i), stateFields)
		}
		parts = append(parts, text)
	}
	sort.Strings(parts)
	return strings.Join(parts, "")
}

// mounted mounts an item for the rest of the test's helper call.
func mounted(t testing.TB, s store.Store, i store.Item) store.Mount {
	t.Helper()
	var m store.Mount
	var err error
	if i.Kind == store.KindVolume {
		m, err = s.MountVolume(t.Context(), i.Volume)
	} else {
		m, err = s.MountSnapshot(t.Context(), i.Snapshot)
	}
	if err != nil {
		t.Fatalf("mount %s %s%s: %v", i.Kind, i.Volume, i.Snapshot, err)
	}
	return m
}

// describe describes a mount and gives it back.
func describe(t testing.TB, m store.Mount) string {
	t.Helper()
	return describeFields(t, m, AllFields)
}

func describeFields(t testing.TB, m store.Mount, fields Fields) string {
	t.Helper()
	defer unmount(t, m)
	text, err := Describe(t.Context(), m.Path(), fields)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func unmount(t testing.TB, m store.Mount) {
	t.Helper()
	if err := m.Unmount(context.WithoutCancel(t.Context())); err != nil {
		t.Fatalf("unmount %s: %v", m.Path(), err)
	}
}

func describeVolume(t testing.TB, s store.Store, v store.VolumeID) string {
	t.Helper()
	return describe(t, mounted(t, s, store.Item{Kind: store.KindVolume, Volume: v}))
}

func describeSnapshot(t testing.TB, s store.Store, id store.SnapshotID) string {
	t.Helper()
	return describe(t, mounted(t, s, store.Item{Kind: store.KindSnapshot, Snapshot: id}))
}

// change applies appliers to a volume.
func change(t testing.TB, s store.Store, v store.VolumeID, appliers ...Applier) {
	t.Helper()
	m := mounted(t, s, store.Item{Kind: store.KindVolume, Volume: v})
	defer unmount(t, m)
	if err := Apply(appliers...)(m.Path()); err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, s store.Store) store.VolumeID {
	t.Helper()
	v := store.NewVolumeID()
	if err := s.CreateVolume(t.Context(), v); err != nil {
		t.Fatalf("CreateVolume: %v", err)
	}
	return v
}

func snapshot(t testing.TB, s store.Store, v store.VolumeID) store.SnapshotID {
	t.Helper()
	id := store.NewSnapshotID()
	if err := s.Snapshot(t.Context(), v, id); err != nil {
		t.Fatalf("Snapshot: %v", err)
	}
	return id
}

func clone(t testing.TB, s store.Store, id store.SnapshotID) store.VolumeID {
	t.Helper()
	v := store.NewVolumeID()
	if err := s.Clone(t.Context(), id, v); err != nil {
		t.Fatalf("Clone: %v", err)
	}
	return v
}

func same(t testing.TB, what, want, got string) {
	t.Helper()
	if diff := Diff(want, got); diff != "" {
		t.Errorf("%s: it is not as expected:\n%s", what, diff)
	}
}
