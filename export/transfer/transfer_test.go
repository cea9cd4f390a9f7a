package transfer

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"sidus/export/replicate"
	"sidus/export/stream"
	"sidus/image"
	"sidus/image/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const kib = 1 << 10

// pair is a primary with two trees and a channel, and an empty server.
func pair(t *testing.T, native bool) (a, b *testSite, list []image.Snapshot) {
	a, b = newSite(t, "first", native), newSite(t, "second", native)
	a.tree("deb")
	list = append(list, a.snapshot("deb", "one", 300*kib), a.snapshot("deb", "two", 20*kib))
	a.promote(list[0].ID, "default")
	_, err := a.manager.Branch(t.Context(), list[0].ID, "gpu")
	must(t, err)
	list = append(list, a.snapshot("gpu", "three", 30*kib))
	a.promote(list[2].ID, "canary")
	return a, b, list
}

func TestReplicate(t *testing.T) {
	for _, native := range []bool{true, false} {
		t.Run(fmt.Sprintf("native %v", native), func(t *testing.T) {
			a, b, list := pair(t, native)
			ctx := t.Context()
			must(t, os.MkdirAll(filepath.Join(a.layout.Secrets(), "nodes"), 0o700))
			must(t, os.WriteFile(filepath.Join(a.layout.Secrets(), "nodes", "n1"), []byte("munge"), 0o600))
			_, err := LoadIdentity(a.layout, false)
			must(t, err)
			must(t, a.catalog.Update(ctx, func(tx *sql.Tx) error {
				_, err := tx.Exec(`INSERT INTO network (name, subnet, created) VALUES ('lab', '10.0.0.0/24', 1)`)
				return err
			}))
			report, err := replicateTo(a, b)
			must(t, err)
			if len(report.Snapshots) != 3 || len(report.Moved) != 2 {
				t.Errorf("%+v", report)
			}
			if native && (report.Snapshots[1].Base == "" || report.Snapshots[2].Base == "") {
				t.Errorf("no differences were sent: %+v", report.Snapshots)
			}
			if got, want := b.view(), a.view(); got != want {
				t.Fatalf("the replica holds\n%s\ninstead of\n%s", got, want)
			}
			if text, err := os.ReadFile(filepath.Join(b.layout.Secrets(), "nodes", "n1")); err != nil || string(text) != "munge" {
				t.Errorf("a secret: %q, %v", text, err)
			}
			if _, err := os.Stat(b.layout.TransferSecrets()); err == nil {
				t.Error("a replica has the primary's own certificate")
			}
			b.sound()

			// Everything changes, names are exchanged, and a snapshot goes.
			must(t, a.manager.Rename(ctx, "deb", "x"))
			must(t, a.manager.Rename(ctx, "gpu", "deb"))
			must(t, a.manager.Rename(ctx, "x", "gpu"))
			next := a.snapshot("gpu", "two", 10*kib)
			a.promote(next.ID, "default")
			a.promote(next.ID, "canary")
			must(t, a.manager.SetChannelKeep(ctx, "canary", 0))
			must(t, a.manager.DeleteTree(ctx, "deb", false))
			must(t, a.catalog.Update(ctx, func(tx *sql.Tx) error {
				_, err := tx.Exec(`DELETE FROM network`)
				return err
			}))
			must(t, os.Remove(filepath.Join(a.layout.Secrets(), "nodes", "n1")))
			report, err = replicateTo(a, b)
			must(t, err)
			if len(report.Snapshots) != 1 || report.Snapshots[0].ID != next.ID {
				t.Errorf("sent: %+v", report.Snapshots)
			}
			if got, want := b.view(), a.view(); got != want {
				t.Fatalf("the replica holds\n%s\ninstead of\n%s", got, want)
			}
			if s, err := b.manager.SnapshotRecord(ctx, list[2].ID); err != nil || s.Deleted.IsZero() {
				t.Errorf("the deletion is not on record: %+v, %v", s, err)
			}
			if _, err := os.Stat(filepath.Join(b.layout.Secrets(), "nodes", "n1")); err == nil {
				t.Error("a deleted secret stays")
			}
			b.sound()
			if report, err = replicateTo(a, b); err != nil || len(report.Snapshots)+len(report.Moved) > 0 {
				t.Errorf("nothing to do: %+v, %v", report, err)
			}
		})
	}
}

func TestPropertiesAreReplicated(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	properties := func(s *testSite, name string) map[string]string {
		tree, err := s.manager.Tree(ctx, name)
		must(t, err)
		values, err := s.manager.Properties(ctx, tree)
		must(t, err)
		return values
	}
	for _, set := range []map[string]string{
		{"quota": "10G", "compression": "zstd"},
		{"quota": "20G"},
		{"compression": "inherit"},
		{"quota": "inherit"},
	} {
		must(t, a.manager.SetProperties(ctx, "deb", set, false))
		_, err := replicateTo(a, b)
		must(t, err)
		if want, got := properties(a, "deb"), properties(b, "deb"); !maps.Equal(want, got) {
			t.Errorf("after %v: the replica's tree has %v, the primary's %v", set, got, want)
		}
		if got := properties(b, "gpu"); len(got) > 0 {
			t.Errorf("another tree has %v", got)
		}
	}
	// A head that follows a new snapshot has them, too.
	must(t, a.manager.SetProperties(ctx, "deb", map[string]string{"quota": "30G"}, false))
	a.snapshot("deb", "later", 1000)
	_, err := replicateTo(a, b)
	must(t, err)
	if got := properties(b, "deb"); got["quota"] != "30G" {
		t.Errorf("after a new snapshot the replica's tree has %v", got)
	}
}

func TestReplicaTakesNoChanges(t *testing.T) {
	a, b, list := pair(t, true)
	_, err := replicateTo(a, b)
	must(t, err)
	ctx := t.Context()
	before := b.view()
	for name, change := range map[string]func() error{
		"create": func() error { _, err := b.manager.CreateTree(ctx, "new"); return err },
		"branch": func() error { _, err := b.manager.Branch(ctx, list[0].ID, "new"); return err },
		"snapshot": func() error {
			_, err := b.manager.Snapshot(ctx, "deb", nil, false, image.SnapshotOptions{})
			return err
		},
		"rename":  func() error { return b.manager.Rename(ctx, "deb", "x") },
		"delete":  func() error { return b.manager.DeleteTree(ctx, "gpu", false) },
		"promote": func() error { _, _, err := b.manager.Promote(ctx, list[1].ID, "default", ""); return err },
		"keep":    func() error { return b.manager.SetChannelKeep(ctx, "default", 1) },
		"channel": func() error { return b.manager.DeleteChannel(ctx, "canary") },
		"gc": func() error {
			plan, err := b.manager.PlanGC(ctx, image.GCOptions{Rules: image.Retention{Keep: 1}})
			if err == nil {
				_, err = b.manager.Collect(ctx, plan)
			}
			return err
		},
	} {
		var readOnly *image.ReadOnlyError
		if err := change(); !errors.As(err, &readOnly) || !strings.Contains(err.Error(), "sidus takeover") || !errors.Is(err, store.ErrInUse) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b.view() != before {
		t.Error("something has changed")
	}
	b.sound()
}

func TestTakeover(t *testing.T) {
	a, b, list := pair(t, true)
	ctx := t.Context()
	_, err := replicateTo(a, b)
	must(t, err)
	if _, changed, err := b.manager.Takeover(ctx); err != nil || !changed {
		t.Fatal(err)
	}
	if _, changed, err := b.manager.Takeover(ctx); err != nil || changed {
		t.Errorf("twice: %v", err)
	}
	mine := b.snapshot("deb", "of b", 5*kib)
	b.promote(mine.ID, "default")
	// The old primary goes on, does not know yet, and finds out.
	lost := a.snapshot("deb", "of a", 5*kib)
	a.tree("only-here")
	a.snapshot("only-here", "x", kib)
	if _, err := replicateTo(a, b); !errors.Is(err, ErrSuperseded) || !strings.Contains(err.Error(), "sidus demote") {
		t.Fatalf("the old primary: %v", err)
	}
	var readOnly *image.ReadOnlyError
	if _, err := a.manager.Snapshot(ctx, "deb", nil, false, image.SnapshotOptions{}); !errors.As(err, &readOnly) || !strings.Contains(err.Error(), "sidus demote") {
		t.Errorf("the old primary goes on: %v", err)
	}
	if _, _, err := a.manager.Takeover(ctx); !errors.As(err, &readOnly) {
		t.Errorf("the old primary takes over: %v", err)
	}
	if _, err := replicateTo(b, a); err == nil || !strings.Contains(err.Error(), "demote") {
		t.Errorf("the old primary is written to: %v", err)
	}
	if _, changed, err := a.manager.Demote(ctx); err != nil || !changed {
		t.Fatal(err)
	}
	// Both have gone on: that is a conflict, of a type.
	_, err = replicateTo(b, a)
	var conflicts replicate.Conflicts
	var divergence *replicate.Divergence
	if !errors.As(err, &conflicts) || !errors.As(err, &divergence) || divergence.Only[0] != lost.ID || divergence.Common != list[1].ID {
		t.Fatalf("%v", err)
	}
	sender := b.sender()
	asked := 0
	sender.Discard = func(conflicts error) error { asked++; return nil }
	connect, ended := dial(a.receiver(), 0, nil)
	_, err = sender.Replicate(ctx, connect)
	must(t, err)
	must(t, ended())
	if got, want := a.view(), b.view(); got != want || asked != 1 {
		// What only a had is on record as deleted.
		var kept []string
		for line := range strings.Lines(got) {
			if !strings.Contains(line, string(lost.ID)) && !strings.Contains(line, "only-here") {
				kept = append(kept, line)
			}
		}
		if strings.Join(kept, "") != want {
			t.Errorf("asked %d times; a holds\n%s\ninstead of\n%s", asked, got, want)
		}
	}
	a.sound()
	if site, err := a.manager.Site(ctx); err != nil || site.Epoch != 2 || site.Role != image.Replica {
		t.Errorf("%+v, %v", site, err)
	}
	// And back.
	_, _, err = a.manager.Takeover(ctx)
	must(t, err)
	if _, err := replicateTo(b, a); !errors.Is(err, ErrSuperseded) {
		t.Errorf("%v", err)
	}
}

// TestHigherEpochIsHeard lets the new primary reach the old one first.
func TestHigherEpochIsHeard(t *testing.T) {
	a, b, _ := pair(t, true)
	_, err := replicateTo(a, b)
	must(t, err)
	_, _, err = b.manager.Takeover(t.Context())
	must(t, err)
	if _, err := replicateTo(b, a); err == nil || !strings.Contains(err.Error(), "demote") {
		t.Errorf("%v", err)
	}
	if site, err := a.manager.Site(t.Context()); err != nil || site.Role != image.Superseded {
		t.Errorf("%+v, %v", site, err)
	}
}

func TestOtherSiteIsRefused(t *testing.T) {
	a, b, _ := pair(t, true)
	b.tree("mine")
	if _, err := replicateTo(a, b); err == nil || !strings.Contains(err.Error(), "trees of its own") {
		t.Errorf("%v", err)
	}
	if site, _ := b.manager.Site(t.Context()); site.Role != image.Primary {
		t.Errorf("%+v", site)
	}
}

// TestCutAnywhere cuts the connection after so many bytes. Whatever the byte,
// the replica is sound, points to what it holds, and the next run goes on.
func TestCutAnywhere(t *testing.T) {
	whole := int64(0)
	{
		a, b, _ := pair(t, true)
		report, err := replicateTo(a, b)
		must(t, err)
		whole = report.Bytes
	}
	for i := range 25 {
		cut := 1 + rand.Int64N(whole-1)
		if i == 0 {
			cut = whole - 1
		}
		a, b, _ := pair(t, true)
		sent := int64(0)
		for runs := 0; ; runs++ {
			connect, ended := dial(b.receiver(), cut, nil)
			report, err := a.sender().Replicate(t.Context(), connect)
			_ = ended()
			sent += report.Bytes
			if err == nil {
				break
			}
			if !errors.Is(err, ErrCut) && !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				t.Fatalf("cut after %d bytes: %v", cut, err)
			}
			b.sound()
			inventory, err := b.manager.Inventory(t.Context())
			must(t, err)
			for name, id := range inventory.Channels {
				if _, err := b.manager.SnapshotByID(t.Context(), id); err != nil {
					t.Errorf("cut after %d bytes: channel %s: %v", cut, name, err)
				}
			}
			if runs == 0 {
				if behind, err := b.manager.Lag(t.Context()); err != nil || inventory.Site.Role == image.Replica && inventory.Site.AsOf.IsZero() && len(behind) == 0 {
					t.Errorf("cut after %d bytes: the replica does not lag: %v", cut, err)
				}
				cut = 0 // once more, without a cut
			}
		}
		if got, want := b.view(), a.view(); got != want {
			t.Fatalf("cut after %d of %d bytes, the replica holds\n%s\ninstead of\n%s", cut, whole, got, want)
		}
		b.sound()
	}
}

// TestGoesOnInside cuts inside a snapshot of several parts: those that have
// arrived are not sent again, also by another process.
func TestGoesOnInside(t *testing.T) {
	for _, native := range []bool{true, false} {
		a, b := newSite(t, "first", native), newSite(t, "second", native)
		a.tree("deb")
		const size = 40 << 20
		s := a.snapshot("deb", "big", size)
		const cut = 36 << 20
		connect, ended := dial(b.receiver(), cut, nil)
		if _, err := a.sender().Send(t.Context(), connect, s, nil, ""); err == nil {
			t.Fatal("it was not cut")
		}
		_ = ended()
		if _, err := b.manager.SnapshotByID(t.Context(), s.ID); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("half a snapshot shows: %v", err)
		}
		b.sound()
		connect, ended = dial(b.receiver(), 0, nil)
		report, err := a.sender().Send(t.Context(), connect, s, nil, "")
		must(t, err)
		must(t, ended())
		if limit := int64(size - cut + 17<<20); report.Bytes > limit {
			t.Errorf("native %v: after a cut at %d of %d bytes %d were sent, at most %d were missing", native, cut, size, report.Bytes, limit)
		}
		if a.content(s.ID) != b.content(s.ID) {
			t.Error("it holds something else")
		}
		if left, _ := os.ReadDir(b.layout.Incoming()); len(left) > 0 {
			t.Errorf("left over: %v", left)
		}
		b.sound()
	}
}

// TestStoppedReceiver: what has arrived when a receiver is stopped helps the next
// one.
func TestStoppedReceiver(t *testing.T) {
	a, b := newSite(t, "first", true), newSite(t, "second", true)
	a.tree("deb")
	const size = 40 << 20
	s := a.snapshot("deb", "big", size)
	serving, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	passed := 0
	connect := func(context.Context) (io.ReadWriteCloser, error) {
		here, there, err := connection()
		go func() { ended <- b.receiver().Serve(serving, there, "test") }()
		return &faulty{Conn: here, alter: func(p []byte) {
			if passed += len(p); passed > 28<<20 {
				stop()
			}
		}}, err
	}
	if _, err := a.sender().Send(t.Context(), connect, s, nil, ""); err == nil {
		t.Fatal("it was not stopped")
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	b.sound()
	again, done := dial(b.receiver(), 0, nil)
	report, err := a.sender().Send(t.Context(), again, s, nil, "")
	must(t, errors.Join(err, done()))
	if report.Bytes > size-8<<20 {
		t.Errorf("after a stop in the middle %d bytes were sent", report.Bytes)
	}
}

// TestSpoolLeavesRoom: what is kept of a stream never fills the disk, which the
// catalog lies on, too.
func TestSpoolLeavesRoom(t *testing.T) {
	a, b := newSite(t, "first", true), newSite(t, "second", true)
	a.tree("deb")
	s := a.snapshot("deb", "big", 60<<20)
	must(t, unix.Mount("tmpfs", b.layout.Incoming(), "tmpfs", 0, "size=40m"))
	t.Cleanup(func() { must(t, unix.Unmount(b.layout.Incoming(), 0)) })
	least := uint64(1 << 60)
	connect, ended := dial(b.receiver(), 0, func([]byte) {
		var fs unix.Statfs_t
		must(t, unix.Statfs(b.layout.Incoming(), &fs))
		least = min(least, fs.Bavail*uint64(fs.Bsize))
	})
	_, err := a.sender().Send(t.Context(), connect, s, nil, "")
	must(t, errors.Join(err, ended()))
	if least < 2<<20 || least > 20<<20 {
		t.Errorf("of 40 MiB %d bytes were free at some time", least)
	}
	if !strings.Contains(b.logged.String(), "is not kept") {
		t.Error("the log says nothing")
	}
	if a.content(s.ID) != b.content(s.ID) {
		t.Error("it holds something else")
	}
}

func TestAlteredChunk(t *testing.T) {
	a, b := newSite(t, "first", true), newSite(t, "second", true)
	a.tree("deb")
	s := a.snapshot("deb", "big", 20<<20)
	passed := 0
	connect, ended := dial(b.receiver(), 0, func(p []byte) {
		if passed < 10<<20 && passed+len(p) >= 10<<20 {
			p[len(p)/2] ^= 4
		}
		passed += len(p)
	})
	if _, err := a.sender().Send(t.Context(), connect, s, nil, ""); !errors.Is(err, stream.ErrDamaged) {
		t.Errorf("%v", err)
	}
	_ = ended()
	if _, err := b.manager.SnapshotByID(t.Context(), s.ID); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("it shows: %v", err)
	}
	b.sound()
	connect, ended = dial(b.receiver(), 0, nil)
	_, err := a.sender().Send(t.Context(), connect, s, nil, "")
	must(t, err)
	must(t, ended())
	if a.content(s.ID) != b.content(s.ID) {
		t.Error("it holds something else")
	}
}

func TestVersions(t *testing.T) {
	a, b, list := pair(t, true)
	for _, c := range []struct {
		sender, receiver *hello
		ok               bool
	}{
		{nil, &hello{Min: 1, Max: 7}, true},
		{&hello{Min: 1, Max: 3}, nil, true},
		{nil, &hello{Min: 2, Max: 3}, false},
		{&hello{Min: 2, Max: 2}, nil, false},
	} {
		receiver, sender := b.receiver(), a.sender()
		receiver.hello, sender.hello = c.receiver, c.sender
		connect, ended := dial(receiver, 0, nil)
		_, err := sender.Send(t.Context(), connect, list[0], nil, "")
		_ = ended()
		if c.ok && err != nil && !errors.Is(err, store.ErrExists) {
			t.Errorf("%+v: %v", c, err)
		}
		if !c.ok && (!errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "update the older one")) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func TestForeignReceiver(t *testing.T) {
	a, _, list := pair(t, true)
	for _, c := range []struct{ said, want string }{
		{"bash: sidus: command not found\n", "command not found"},
		{"", "cut"},
		{strings.Repeat("noise\n", 10000), "noise"},
		{preface + "M\xff\xff\xff\xff", ""},
		{preface + "Q\x00\x00\x00\x00", ""},
		{preface + "M\x00\x00\x00\x02{]", ""},
		{"Welcome to store2!\n" + preface, "cut"},
	} {
		connect := func(context.Context) (io.ReadWriteCloser, error) {
			here, there, err := connection()
			if err != nil {
				return nil, err
			}
			go func() {
				go func() { _, _ = io.Copy(io.Discard, there) }()
				_, _ = io.WriteString(there, c.said)
				_ = there.Close()
			}()
			return here, nil
		}
		if _, err := a.sender().Send(t.Context(), connect, list[0], nil, ""); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40q: %v", c.said, err)
		}
	}
}

func TestSendFindsTheBase(t *testing.T) {
	a, b, list := pair(t, true)
	send := func(s image.Snapshot) (Report, error) {
		connect, ended := dial(b.receiver(), 0, nil)
		defer func() { _ = ended() }()
		return a.sender().Send(t.Context(), connect, s, nil, "")
	}
	_, err := send(list[0])
	must(t, err)
	report, err := send(list[2])
	must(t, err)
	if report.Snapshots[0].Base != list[0].ID {
		t.Errorf("%+v", report)
	}
	if _, err := send(list[2]); !errors.Is(err, store.ErrExists) {
		t.Errorf("twice: %v", err)
	}
	// A server that writes itself stays one.
	if site, _ := b.manager.Site(t.Context()); site.Role != image.Primary {
		t.Errorf("%+v", site)
	}
	b.sound()
}

func TestOtherKindOfStore(t *testing.T) {
	a, b, _ := pair(t, true)
	b.store = b.memory // no native streams
	b.manager = image.New(image.Options{Layout: b.layout, Catalog: b.catalog, Store: b.store, Logger: b.log})
	report, err := replicateTo(a, b)
	must(t, err)
	for _, sent := range report.Snapshots {
		if sent.Kind != stream.Portable || sent.Base != "" {
			t.Errorf("%+v", sent)
		}
	}
	if a.content(report.Snapshots[0].ID) != b.content(report.Snapshots[0].ID) {
		t.Error("it holds something else")
	}
	b.sound()
}

func TestFullDisk(t *testing.T) {
	a, b, _ := pair(t, true)
	b.memory.SetUsage(store.Usage{Size: 100, Used: 100})
	if _, err := replicateTo(a, b); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("%v", err)
	}
	b.sound()
	b.memory.SetUsage(memoryUsage)
	_, err := replicateTo(a, b)
	must(t, err)
	if a.view() != b.view() {
		t.Error("the replica holds something else")
	}
}

var memoryUsage = store.Usage{Size: 1 << 40, Available: 1 << 40}

// TestStoreFailsAnywhere makes each step of the replica's store fail.
func TestStoreFailsAnywhere(t *testing.T) {
	broken := errors.New("broken on purpose")
	for n := 1; n < 100; n++ {
		a, b, _ := pair(t, false)
		b.memory.FailAt(n, broken)
		_, err := replicateTo(a, b)
		b.memory.Inject(nil)
		if err == nil {
			return
		}
		findings, checkErr := b.manager.Check(t.Context())
		must(t, checkErr)
		_, repairErr := b.manager.Repair(t.Context(), findings)
		must(t, repairErr)
		b.sound()
		_, err = replicateTo(a, b)
		must(t, err)
		if a.view() != b.view() {
			t.Fatalf("after a failure at step %d the replica holds something else", n)
		}
	}
	t.Error("it never succeeds")
}

func TestRate(t *testing.T) {
	a, b, list := pair(t, true)
	sender := a.sender()
	sender.Rate = 400 * kib
	connect, ended := dial(b.receiver(), 0, nil)
	begun := time.Now()
	report, err := sender.Send(t.Context(), connect, list[0], nil, "")
	must(t, err)
	must(t, ended())
	least := time.Duration(float64(report.Bytes)/float64(sender.Rate)*float64(time.Second)) - 200*time.Millisecond
	if took := time.Since(begun); took < least {
		t.Errorf("%d bytes took %s at %d per second", report.Bytes, took, sender.Rate)
	}
}

func TestHolds(t *testing.T) {
	a, b, list := pair(t, true)
	ctx := t.Context()
	must(t, a.manager.AddTarget(ctx, image.Target{Name: "second", URL: "ssh://b"}))
	report, err := replicateTo(a, b)
	must(t, err)
	must(t, a.manager.TargetDone(ctx, "second", report.Run()))
	holds, err := a.manager.Holds(ctx)
	must(t, err)
	if len(holds) != 2 || holds[0].Snapshot != list[1].ID || holds[1].Snapshot != list[2].ID {
		t.Fatalf("%+v", holds)
	}
	a.snapshot("deb", "x", kib)
	var needed *image.NeededError
	if err := a.manager.DeleteSnapshot(ctx, list[1].ID); !errors.As(err, &needed) || !strings.Contains(err.Error(), "sidus holds release second") {
		t.Errorf("%v", err)
	}
	lags, err := a.manager.Lags(ctx)
	must(t, err)
	if len(lags) != 1 || lags[0].Snapshots != 1 || lags[0].Sessions != 0 || !lags[0].Changed {
		t.Errorf("%+v", lags)
	}
	a.session("52:54:00:00:00:01", list[0].ID, time.Now(), time.Now())
	if lags, err = a.manager.Lags(ctx); err != nil || lags[0].Sessions != 1 {
		t.Errorf("after a boot: %+v, %v", lags, err)
	}
	if n, err := a.manager.ReleaseHolds(ctx, "second", list[2].ID); err != nil || n != 1 {
		t.Errorf("%d, %v", n, err)
	}
	// A process at work holds, and cannot be released by hand.
	release, err := a.manager.HoldWhile(ctx, "send", []store.SnapshotID{list[0].ID})
	must(t, err)
	if _, err := a.manager.ReleaseHolds(ctx, fmt.Sprintf("process %d", os.Getpid()), ""); !errors.Is(err, store.ErrInUse) {
		t.Errorf("%v", err)
	}
	release()
	must(t, a.manager.RemoveTarget(ctx, "second"))
	if holds, err = a.manager.Holds(ctx); err != nil || len(holds) != 0 {
		t.Errorf("a target is gone and its holds are not: %+v, %v", holds, err)
	}
	must(t, a.manager.DeleteSnapshot(ctx, list[1].ID))
}

// TestProgressOfDifferences: how long a difference is going to be is guessed,
// too.
func TestProgressOfDifferences(t *testing.T) {
	a, b, list := pair(t, true)
	guesses := map[string]int64{}
	sender := a.sender()
	sender.Progress = func(ref string, p stream.Progress) {
		if p != (stream.Progress{}) {
			guesses[ref] = p.Total
		}
	}
	connect, ended := dial(b.receiver(), 0, nil)
	report, err := sender.Replicate(t.Context(), connect)
	must(t, errors.Join(err, ended()))
	for i, want := range []int64{300 * kib, 20 * kib, 30 * kib} {
		ref := list[i].Ref()
		if got := guesses[ref]; got < want || got > want+16*kib {
			t.Errorf("%s (base %q): guessed %d, the file has %d", ref, report.Snapshots[i].Base, got, want)
		}
	}
}

// TestPortableTargetIsNotBehind: a target that takes portable streams only never
// gets the steps of builds, and lacks nothing.
func TestPortableTargetIsNotBehind(t *testing.T) {
	for _, asked := range []bool{true, false} {
		a, b, _ := pair(t, true)
		ctx := t.Context()
		_, err := a.manager.Snapshot(ctx, "deb", nil, false, image.SnapshotOptions{Phase: "base", Key: "k"})
		must(t, err)
		must(t, a.manager.AddTarget(ctx, image.Target{Name: "second", URL: "ssh://b", Portable: asked}))
		sender, r := a.sender(), b.receiver()
		if sender.Portable = asked; !asked {
			r.Store = b.memory // takes no native streams
		}
		connect, ended := dial(r, 0, nil)
		report, err := sender.Replicate(ctx, connect)
		must(t, errors.Join(err, ended()))
		must(t, a.manager.TargetDone(ctx, "second", report.Run()))
		lags, err := a.manager.Lags(ctx)
		must(t, err)
		if len(report.Snapshots) != 3 || lags[0].Snapshots != 0 {
			t.Errorf("asked %v: sent %d, behind %d", asked, len(report.Snapshots), lags[0].Snapshots)
		}
		if holds, err := a.manager.Holds(ctx); err != nil || len(holds) > 0 {
			t.Errorf("asked %v: holds of which no difference begins: %+v, %v", asked, holds, err)
		}
		a.snapshot("deb", "x", kib)
		if lags, err = a.manager.Lags(ctx); err != nil || lags[0].Snapshots != 1 {
			t.Errorf("asked %v: after another snapshot: %+v, %v", asked, lags, err)
		}
	}
}
