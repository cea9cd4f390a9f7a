package btrfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

func openLoop(t testing.TB) *Store {
	t.Helper()
	return newBackend(t).Store.(*Store)
}

// work makes a volume from base, which may be empty, changes it, and takes a
// snapshot.
func work(t testing.TB, s *Store, base store.SnapshotID, appliers ...storetest.Applier) store.SnapshotID {
	t.Helper()
	v, id := store.NewVolumeID(), store.NewSnapshotID()
	var err error
	if base == "" {
		err = s.CreateVolume(t.Context(), v)
	} else {
		err = s.Clone(t.Context(), base, v)
	}
	if err != nil {
		t.Fatal(err)
	}
	m, err := s.MountVolume(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	err = storetest.Apply(appliers...)(m.Path())
	if err := errors.Join(err, m.Unmount(t.Context()), s.Snapshot(t.Context(), v, id), s.DestroyVolume(t.Context(), v)); err != nil {
		t.Fatal(err)
	}
	return id
}

func sent(t testing.TB, s *Store, snap, base store.SnapshotID) []byte {
	t.Helper()
	r, err := s.Send(t.Context(), snap, base)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	return stream
}

func take(t testing.TB, s *Store, stream []byte, snap, base store.SnapshotID) {
	t.Helper()
	if err := s.Receive(t.Context(), "btrfs", bytes.NewReader(stream), snap, base); err != nil {
		t.Fatal(err)
	}
}

func describeAt(t testing.TB, s *Store, id store.SnapshotID) string {
	t.Helper()
	m, err := s.MountSnapshot(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Unmount(context.Background()) }()
	text, err := storetest.Describe(t.Context(), m.Path(), storetest.AllFields)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func sameOn(t testing.TB, a, b *Store, id store.SnapshotID) {
	t.Helper()
	if diff := storetest.Diff(describeAt(t, a, id), describeAt(t, b, id)); diff != "" {
		t.Errorf("snapshot %s differs:\n%s", id, diff)
	}
}

// Snapshots go to another server whole and as differences, with branches, from
// there to a third, and back after the third has worked on them.
func TestSendAndReceive(t *testing.T) {
	a, b, c := openLoop(t), openLoop(t), openLoop(t)
	one := work(t, a, "", storetest.AllMetadata())
	two := work(t, a, one, storetest.File("new", "file", 0o600), storetest.Remove("etc"), storetest.Rename("big", "bigger"), storetest.Chown("su", 3, 4), storetest.Chmod("su", 0o4711))
	branch := work(t, a, one, storetest.Link("empty", "again"), storetest.Xattr("empty", "user.long", "short"))
	take(t, b, sent(t, a, one, ""), one, "")
	difference := sent(t, a, two, one)
	take(t, b, difference, two, one)
	take(t, b, sent(t, a, branch, one), branch, one)
	for _, id := range []store.SnapshotID{one, two, branch} {
		sameOn(t, a, b, id)
	}
	if whole := sent(t, a, two, ""); len(difference) > len(whole)/10 {
		t.Errorf("the difference has %d bytes, all of it %d", len(difference), len(whole))
	}
	take(t, c, sent(t, b, one, ""), one, "")
	take(t, c, difference, two, one) // made by a, its base came by way of b
	sameOn(t, a, c, two)
	three := work(t, c, two, storetest.File("of-c", "taken over", 0o644))
	take(t, a, sent(t, c, three, two), three, two)
	take(t, b, sent(t, c, three, two), three, two)
	sameOn(t, c, a, three)
	sameOn(t, c, b, three)
	four := work(t, a, three, storetest.Remove("of-c"))
	take(t, c, sent(t, a, four, three), four, three)
	sameOn(t, a, c, four)
	if items, err := b.List(t.Context()); err != nil || len(items) != 4 {
		t.Errorf("the store holds %v, %v", items, err)
	}
}

func TestReceiveRefuses(t *testing.T) {
	a, b := openLoop(t), openLoop(t)
	one := work(t, a, "", storetest.File("a", strings.Repeat("x", 100000), 0o644))
	two := work(t, a, one, storetest.File("b", "y", 0o644))
	foreign := work(t, b, "", storetest.File("a", "another", 0o644))
	whole, difference := sent(t, a, one, ""), sent(t, a, two, one)
	broken := errors.New("the wire broke")
	for name, c := range map[string]struct {
		kind string
		r    io.Reader
		base store.SnapshotID
		want error
	}{
		"another kind": {"zfs", bytes.NewReader(whole), "", store.ErrUnsupported},
		"no base":      {"btrfs", bytes.NewReader(difference), one, store.ErrNotFound},
		"wrong base":   {"btrfs", bytes.NewReader(difference), foreign, store.ErrBaseUnusable},
		"base unsaid":  {"btrfs", bytes.NewReader(difference), "", store.ErrBaseUnusable},
		"empty":        {"btrfs", bytes.NewReader(nil), "", nil},
		"garbage":      {"btrfs", strings.NewReader(strings.Repeat("garbage", 1000)), "", nil},
		"cut":          {"btrfs", bytes.NewReader(whole[:len(whole)-20]), "", nil},
		"half":         {"btrfs", bytes.NewReader(whole[:len(whole)/2]), "", nil},
		"two":          {"btrfs", bytes.NewReader(append(bytes.Clone(whole), whole...)), "", nil},
		"broken wire":  {"btrfs", io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(broken)), "", broken},
	} {
		err := b.Receive(t.Context(), c.kind, c.r, one, c.base)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
		if items, err := b.List(t.Context()); err != nil || len(items) != 1 {
			t.Fatalf("%s: the store holds %v, %v", name, items, err)
		}
	}
	if err := a.Receive(t.Context(), "btrfs", bytes.NewReader(whole), one, ""); !errors.Is(err, store.ErrExists) {
		t.Errorf("a snapshot that is there: %v", err)
	}
	if _, err := b.Send(t.Context(), one, ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("send what is missing: %v", err)
	}
	if _, err := a.Send(t.Context(), one, foreign); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("send against what is missing: %v", err)
	}
}

// A receive that fails at any step leaves nothing; one that is cut leaves what
// List calls partial and Destroy removes.
func TestReceiveCutAtEachStep(t *testing.T) {
	a := openLoop(t)
	target := newBackend(t)
	b := target.Store.(*Store)
	one := work(t, a, "", storetest.File("a", "content", 0o644))
	whole := sent(t, a, one, "")
	failure := errors.New("injected")
	for _, crash := range []bool{false, true} {
		for step := 1; ; step++ {
			n := 0
			target.Inject(func(name string) error {
				if crash && strings.HasPrefix(name, "destroy") {
					return nil // a panic there leaves folders open
				}
				if n++; n != step {
					return nil
				}
				if crash {
					panic(failure)
				}
				return failure
			})
			err := func() (err error) {
				defer func() {
					if recover() != nil {
						err = failure
					}
				}()
				return b.Receive(t.Context(), "btrfs", bytes.NewReader(whole), one, "")
			}()
			target.Inject(nil)
			if err == nil && n < step {
				if step < 4 {
					t.Errorf("there are %d steps only", step)
				}
				if err := b.DestroySnapshot(t.Context(), one); err != nil {
					t.Error(err)
				}
				break
			}
			if err == nil {
				// What could not be removed at first was removed at the second try.
				sameOn(t, a, b, one)
				if err := b.DestroySnapshot(t.Context(), one); err != nil {
					t.Error(err)
				}
				continue
			}
			if err := b.DestroySnapshot(t.Context(), one); err != nil && !errors.Is(err, store.ErrNotFound) {
				t.Errorf("step %d: %v", step, err)
			} else if err == nil && !crash {
				t.Errorf("step %d left something", step)
			}
			if items, err := b.List(t.Context()); err != nil || len(items) != 0 {
				t.Fatalf("step %d: %v, %v is left", step, items, err)
			}
		}
	}
}

func TestSendThatIsClosedOrCancelled(t *testing.T) {
	s := openLoop(t)
	id := work(t, s, "", storetest.Many("many", 3000), storetest.File("big", strings.Repeat("x", 8<<20), 0o644))
	r, err := s.Send(t.Context(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	if err := s.DestroySnapshot(t.Context(), id); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a snapshot that is being sent: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	r, err = s.Send(ctx, id, "")
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, context.Canceled) {
		t.Errorf("Read: %v", err)
	}
	if err := r.Close(); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: %v", err)
	}
	if err := s.DestroySnapshot(t.Context(), id); err != nil {
		t.Errorf("after the sending: %v", err)
	}
}
