package image

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/image/catalog"
	"sidus/image/store"
)

// take returns a Take that makes a snapshot with a file in it, as a portable
// stream does.
func (b *bench) take(id store.SnapshotID, text string) func(context.Context, store.VolumeID) error {
	return func(ctx context.Context, scratch store.VolumeID) error {
		if err := b.store.CreateVolume(ctx, scratch); err != nil {
			return err
		}
		mount, err := b.store.MountVolume(ctx, scratch)
		if err == nil {
			err = errors.Join(os.WriteFile(filepath.Join(mount.Path(), "file"), []byte(text), 0o600), mount.Unmount(ctx))
		}
		if err == nil {
			err = b.store.Snapshot(ctx, scratch, id)
		}
		return errors.Join(err, b.store.DestroyVolume(ctx, scratch))
	}
}

func (b *bench) received(number int, tree string) ReceiveOptions {
	s := Snapshot{
		ID: store.NewSnapshotID(), TreeID: tree, Tree: "debian", Number: number, Phase: "boot", Key: "k", Recipe: "r", Complete: true,
		Author: "eve", Message: "hello", Created: time.Now().Add(-time.Hour).Truncate(time.Millisecond),
	}
	return ReceiveOptions{Snapshot: s, Source: "a test", Take: b.take(s.ID, "received")}
}

func TestReceive(t *testing.T) {
	b := newBench(t)
	tree := string(store.NewVolumeID())
	first := b.received(7, tree)
	first.Snapshot.Name = "gold"
	s, err := b.Receive(t.Context(), first)
	b.must(err)
	want := first.Snapshot
	if s.Created = s.Created.Local(); !s.Created.Equal(want.Created) {
		t.Errorf("created %v, want %v", s.Created, want.Created)
	}
	if s.Created = want.Created; s != want {
		t.Errorf("received %+v\nwant %+v", s, want)
	}
	if b.read(s.ID, "file") != "received" {
		t.Error("its content is another")
	}
	got, err := b.Tree(t.Context(), "debian")
	b.must(err)
	if got.ID != tree || got.Base != s.ID {
		t.Errorf("the tree is %+v", got)
	}
	// The next goes into the same tree; its head stays. Its number is taken.
	second := b.received(7, tree)
	second.Snapshot.Parent, second.Base, second.Snapshot.Name = s.ID, s.ID, "gold"
	s2, err := b.Receive(t.Context(), second)
	b.must(err)
	if s2.Ref() != "debian@8" || s2.Parent != s.ID || s2.Name != "" {
		t.Errorf("received %+v", s2)
	}
	if got, _ = b.Tree(t.Context(), "debian"); got.Base != s.ID {
		t.Error("the head has moved")
	}
	if s3 := b.snapshot("debian"); s3.Number != 9 {
		t.Errorf("the next number is %d", s3.Number)
	}
	// Again: it is here. What was deleted comes back under its own ID.
	if _, err := b.Receive(t.Context(), second); !errors.Is(err, store.ErrExists) || !strings.Contains(err.Error(), "debian@8") {
		t.Errorf("again: %v", err)
	}
	b.must(b.DeleteSnapshot(t.Context(), s2.ID))
	if back, err := b.Receive(t.Context(), second); err != nil || back.Ref() != "debian@10" || !back.Deleted.IsZero() {
		t.Errorf("what was deleted: %+v, %v", back, err)
	}
	b.sound()
}

// TestReceiveDestroysScratch: what a receiver could not destroy itself is
// destroyed, now or by the next who can.
func TestReceiveDestroysScratch(t *testing.T) {
	b := newBench(t)
	options := b.received(1, string(store.NewVolumeID()))
	take := options.Take
	options.Take = func(ctx context.Context, scratch store.VolumeID) error {
		b.store.FailOn("DestroyVolume", store.ErrInUse)
		if err := take(ctx, scratch); !errors.Is(err, store.ErrInUse) {
			t.Errorf("the scratch volume was destroyed: %v", err)
		}
		return nil
	}
	s, err := b.Receive(t.Context(), options)
	b.must(err)
	if b.read(s.ID, "file") != "received" {
		t.Error("its content is another")
	}
	findings, err := b.Check(t.Context())
	if err != nil || len(findings) != 1 || findings[0].Kind != FindingRetired {
		t.Errorf("what is left is not on record: %+v, %v", findings, err)
	}
	b.store.FailOn("DestroyVolume", nil)
	_, left, err := b.collectRetired(t.Context(), nil, true)
	if err != nil || len(left) > 0 {
		t.Fatalf("left %v, %v", left, err)
	}
	items, err := b.store.List(t.Context())
	b.must(err)
	volumes := 0
	for _, item := range items {
		if item.Kind == store.KindVolume {
			volumes++
		}
	}
	if volumes != 1 {
		t.Errorf("the store holds %d volumes, and should hold the head alone", volumes)
	}
	b.sound()
}

func TestReceiveRefuses(t *testing.T) {
	b := newBench(t)
	local, s := b.tree("debian", 1)
	before, _ := b.store.List(t.Context())
	for name, change := range map[string]struct {
		change func(o *ReceiveOptions)
		want   error
		says   string
	}{
		"another tree's name":    {func(*ReceiveOptions) {}, store.ErrExists, "give another name"},
		"another name":           {func(o *ReceiveOptions) { o.Snapshot.TreeID, o.Tree = local.ID, "x" }, store.ErrExists, "leave the name out"},
		"a bad name":             {func(o *ReceiveOptions) { o.Tree = "../x" }, store.ErrBadName, "../x"},
		"a bad ID":               {func(o *ReceiveOptions) { o.Tree, o.Snapshot.ID = "x", "zz" }, store.ErrBadName, "zz"},
		"a snapshot that is":     {func(o *ReceiveOptions) { o.Tree, o.Snapshot.ID = "x", s[0].ID }, store.ErrExists, "debian@1"},
		"a base that is missing": {func(o *ReceiveOptions) { o.Tree, o.Base = "x", store.NewSnapshotID() }, store.ErrNotFound, ""},
		"a stream that breaks": {func(o *ReceiveOptions) {
			o.Tree, o.Take = "x", func(ctx context.Context, scratch store.VolumeID) error {
				return errors.Join(b.store.CreateVolume(ctx, scratch), store.ErrUnavailable)
			}
		}, store.ErrUnavailable, ""},
	} {
		o := b.received(1, string(store.NewVolumeID()))
		change.change(&o)
		if _, err := b.Receive(t.Context(), o); !errors.Is(err, change.want) || !strings.Contains(err.Error(), change.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if after, _ := b.store.List(t.Context()); len(after) != len(before) {
		t.Errorf("the store has %d items, had %d", len(after), len(before))
	}
	if b.read(s[0].ID, "file") != "version 1" {
		t.Error("a refused import has touched what was here")
	}
	b.sound()
}

// TestReceiveAtOnce lets several take one snapshot at the same time: one does,
// and the others destroy nothing of it.
func TestReceiveAtOnce(t *testing.T) {
	b := newBench(t)
	others := []*Manager{b.another("bob"), b.another("eve"), b.Manager}
	for round := range 10 {
		options := b.received(1, string(store.NewVolumeID()))
		options.Tree = fmt.Sprintf("tree-%d", round)
		errs := make([]error, len(others))
		var all sync.WaitGroup
		begin := make(chan struct{})
		for i, m := range others {
			all.Go(func() {
				<-begin
				_, errs[i] = m.Receive(t.Context(), options)
			})
		}
		close(begin)
		all.Wait()
		took := 0
		for _, err := range errs {
			switch {
			case err == nil:
				took++
			case !errors.Is(err, store.ErrInUse) && !errors.Is(err, store.ErrExists):
				t.Errorf("round %d: %v", round, err)
			}
		}
		if took != 1 {
			t.Fatalf("round %d: %d have taken it: %v", round, took, errs)
		}
		if b.read(options.Snapshot.ID, "file") != "received" {
			t.Errorf("round %d: its content is another", round)
		}
	}
	b.sound()
}

// dead makes an intent of a process that is not there any more.
func (b *bench) dead(i catalog.Intent) {
	b.t.Helper()
	b.must(b.catalog.Update(b.t.Context(), func(tx *sql.Tx) error {
		id, err := catalog.Begin(tx, i)
		if err != nil {
			return err
		}
		_, err = tx.Exec(`UPDATE intent SET boot = 'another' WHERE id = ?`, id)
		return err
	}))
}

// TestReceiveAfterCrash: what a process has left that was cut while it received
// the same snapshot is no hindrance.
func TestReceiveAfterCrash(t *testing.T) {
	for name, leave := range map[string]func(b *bench, id store.SnapshotID, scratch store.VolumeID){
		"nothing": func(*bench, store.SnapshotID, store.VolumeID) {},
		"a snapshot": func(b *bench, id store.SnapshotID, scratch store.VolumeID) {
			b.must(b.take(id, "half")(b.t.Context(), scratch))
		},
		"half a snapshot": func(b *bench, id store.SnapshotID, scratch store.VolumeID) {
			b.store.Inject(func(step string) error {
				if step == "Snapshot: finish" {
					panic("crash")
				}
				return nil
			})
			defer func() {
				_ = recover()
				b.store.Inject(nil)
			}()
			_ = b.take(id, "half")(b.t.Context(), scratch)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			options := b.received(1, string(store.NewVolumeID()))
			scratch := store.NewVolumeID()
			b.dead(catalog.Intent{Action: "import", Volumes: []store.VolumeID{scratch}, Snapshots: []store.SnapshotID{options.Snapshot.ID}})
			leave(b, options.Snapshot.ID, scratch)
			_, err := b.Receive(t.Context(), options)
			b.must(err)
			if b.read(options.Snapshot.ID, "file") != "received" {
				t.Error("its content is another")
			}
			b.sound()
		})
	}
}

// TestReceiveAfterFailedUndo: what a failed operation could not destroy is left
// to the next one, although the process lives.
func TestReceiveAfterFailedUndo(t *testing.T) {
	b := newBench(t)
	options := b.received(1, string(store.NewVolumeID()))
	broken := errors.New("broken on purpose")
	b.store.FailOn("Clone", broken)
	b.store.FailOn("DestroySnapshot", broken)
	if _, err := b.Receive(t.Context(), options); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	b.store.FailOn("Clone", nil)
	b.store.FailOn("DestroySnapshot", nil)
	_, err := b.Receive(t.Context(), options)
	b.must(err)
	b.sound()
}

// TestReceiveWhatIsLost: a snapshot that the store has lost comes back as what
// it was.
func TestReceiveWhatIsLost(t *testing.T) {
	b := newBench(t)
	tree, list := b.tree("debian", 2)
	lost := list[0]
	b.must(b.store.DestroySnapshot(t.Context(), lost.ID))
	options := ReceiveOptions{Snapshot: lost, Source: "a test", Take: b.take(lost.ID, "version 1")}
	options.Snapshot.Number, options.Snapshot.Name = 77, ""
	broken := errors.New("broken on purpose")
	failing := options
	failing.Take = func(context.Context, store.VolumeID) error { return broken }
	if _, err := b.Receive(t.Context(), failing); !errors.Is(err, broken) {
		t.Fatal(err)
	}
	if s, err := b.SnapshotByID(t.Context(), lost.ID); err != nil || s != lost {
		t.Errorf("after a failure: %+v, %v", s, err)
	}
	back, err := b.Receive(t.Context(), options)
	b.must(err)
	if back != lost || b.read(lost.ID, "file") != "version 1" {
		t.Errorf("what came back is %+v, it was %+v", back, lost)
	}
	if now, err := b.Tree(t.Context(), "debian"); err != nil || now != tree && now.Head != tree.Head {
		t.Errorf("the tree is %+v, %v", now, err)
	}
	b.sound()
	if _, err := b.Receive(t.Context(), options); !errors.Is(err, store.ErrExists) {
		t.Errorf("again: %v", err)
	}
}

// TestCollectorsBesideReceive: who collects what was deleted leaves a snapshot
// alone that has come back under its ID meanwhile.
func TestCollectorsBesideReceive(t *testing.T) {
	b := newBench(t)
	_, list := b.tree("debian", 2)
	b.snapshot("debian") // the head starts from it
	back := list[1]
	options := ReceiveOptions{Snapshot: back, Source: "a test", Take: b.take(back.ID, "back")}
	b.store.FailOn("DestroySnapshot", store.ErrInUse)
	b.must(b.DeleteSnapshot(t.Context(), list[0].ID))
	b.must(b.DeleteSnapshot(t.Context(), back.ID))
	b.store.FailOn("DestroySnapshot", nil)
	// While the first is destroyed by one, the second comes back by another.
	other := b.another("bob")
	b.store.Inject(func(step string) error {
		if step == "DestroySnapshot: begin" {
			b.store.Inject(nil)
			_, err := other.Receive(t.Context(), options)
			b.must(err)
		}
		return nil
	})
	_, _, err := b.collectRetired(t.Context(), nil, true)
	b.must(err)
	if b.read(back.ID, "file") != "back" {
		t.Error("its content is another")
	}
	b.sound()
}
