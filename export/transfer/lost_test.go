package transfer

import (
	"errors"
	"strings"
	"testing"
)

// TestLostOnThePrimary: what the primary's store has lost stops nothing else,
// and is said.
func TestLostOnThePrimary(t *testing.T) {
	for _, native := range []bool{true, false} {
		a, b, list := pair(t, native)
		ctx := t.Context()
		later := a.snapshot("deb", "later", kib)
		must(t, a.memory.DestroySnapshot(ctx, list[1].ID)) // deb@2
		report, err := replicateTo(a, b)
		var lost *LostError
		if !errors.As(err, &lost) || len(lost.Snapshots) != 1 || !strings.Contains(err.Error(), "deb@2") {
			t.Fatalf("%v", err)
		}
		if report.AsOf.IsZero() || len(report.Held) != 3 || len(report.Snapshots) != 3 {
			t.Errorf("%+v", report)
		}
		if a.content(later.ID) != b.content(later.ID) {
			t.Error("what came after it holds something else")
		}
		if behind, err := b.manager.Lag(ctx); err != nil || len(behind) > 0 {
			t.Errorf("the replica lags: %v, %v", behind, err)
		}
		b.sound()

		// The replica has what the primary loses now.
		must(t, a.memory.DestroySnapshot(ctx, list[0].ID))
		if _, err = replicateTo(a, b); !errors.As(err, &lost) || len(lost.Snapshots) != 1 {
			t.Errorf("%v", err)
		}
		// A channel that points to something lost: the catalog waits.
		a.promote(list[1].ID, "default")
		next := a.snapshot("gpu", "next", kib)
		report, err = replicateTo(a, b)
		if !errors.As(err, &lost) || strings.Join(lost.Channels, " ") != "default" || !report.AsOf.IsZero() {
			t.Errorf("%v, %+v", err, report)
		}
		if _, err := b.manager.SnapshotByID(ctx, next.ID); err != nil {
			t.Error(err)
		}
		b.sound()
		// Given up, all is well.
		a.promote(later.ID, "default")
		must(t, a.manager.SetChannelKeep(ctx, "default", 0))
		must(t, a.manager.DeleteSnapshot(ctx, list[1].ID))
		_, err = replicateTo(a, b)
		must(t, err)
		b.sound()
	}
}

// TestLostOnTheReplica: it is sent again.
func TestLostOnTheReplica(t *testing.T) {
	a, b, list := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	must(t, b.memory.DestroySnapshot(ctx, list[0].ID))
	report, err := replicateTo(a, b)
	must(t, err)
	if len(report.Snapshots) != 1 || report.Snapshots[0].ID != list[0].ID {
		t.Errorf("%+v", report)
	}
	if got, want := b.view(), a.view(); got != want {
		t.Errorf("the replica holds\n%s\ninstead of\n%s", got, want)
	}
	b.sound()
	// One that the primary deletes meanwhile goes.
	must(t, b.memory.DestroySnapshot(ctx, list[1].ID))
	a.snapshot("deb", "later", kib)
	must(t, a.manager.DeleteSnapshot(ctx, list[1].ID))
	_, err = replicateTo(a, b)
	must(t, err)
	b.sound()
	// Another server sends back what the primary has lost.
	must(t, a.memory.DestroySnapshot(ctx, list[0].ID))
	connect, ended := dial(a.receiver(), 0, nil)
	lost, err := b.manager.SnapshotByID(ctx, list[0].ID)
	must(t, err)
	_, err = b.sender().Send(ctx, connect, lost, nil, "")
	must(t, err)
	must(t, ended())
	if a.content(list[0].ID) != b.content(list[0].ID) {
		t.Error("it holds something else")
	}
	a.sound()
}

// TestWrittenOnTheReplica: what only the other server has can be sent to the
// primary, and is no divergence then.
func TestWrittenOnTheReplica(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	_, _, err = b.manager.Takeover(ctx)
	must(t, err)
	b.snapshot("deb", "of b", kib)
	only := a.snapshot("deb", "of a", kib)
	_, _, err = a.manager.Demote(ctx)
	must(t, err)
	if _, err = replicateTo(b, a); err == nil || !strings.Contains(err.Error(), "sidus send deb@3") {
		t.Errorf("the conflict names no way out: %v", err)
	}
	connect, ended := dial(b.receiver(), 0, nil)
	_, err = a.sender().Send(ctx, connect, only, nil, "")
	must(t, err)
	must(t, ended())
	_, err = replicateTo(b, a)
	must(t, err)
	if got, want := a.view(), b.view(); got != want {
		t.Errorf("the replica holds\n%s\ninstead of\n%s", got, want)
	}
	a.sound()
	b.sound()
	if s, err := b.manager.SnapshotByID(ctx, only.ID); err != nil || s.Ref() != "deb@4" {
		t.Errorf("%+v, %v", s, err)
	}
}
