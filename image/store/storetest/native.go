package storetest

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
)

// NativeStore is a store that sends and receives.
type NativeStore interface {
	store.Store
	store.NativeSender
	store.NativeReceiver
}

// nativeCases are all cases of RunNative. Each opens the stores that it needs.
var nativeCases = []struct {
	name string
	run  func(t *testing.T, factory Factory)
}{
	{"exchange", exchange},
	{"refused-streams", refusedStreams},
	{"receive-cut-at-each-step", receiveCut},
	{"closed-or-cancelled", closedOrCancelled},
	{"one-receiver-wins", oneReceiver},
	{"resumed", resumed},
}

// RunNative runs the suite for native streams on a backend whose stores are a
// NativeSender and a NativeReceiver.
func RunNative(t *testing.T, factory Factory) { runNative(t, factory, false) }

// RunNativeParallel is RunNative with several cases at once.
func RunNativeParallel(t *testing.T, factory Factory) { runNative(t, factory, true) }

func runNative(t *testing.T, factory Factory, parallel bool) {
	for _, c := range nativeCases {
		t.Run(c.name, func(t *testing.T) {
			if parallel {
				t.Parallel()
			}
			c.run(t, factory)
		})
	}
}

func openNative(t testing.TB, factory Factory) NativeStore {
	t.Helper()
	return asNative(t, factory(t))
}

func asNative(t testing.TB, b *Backend) NativeStore {
	t.Helper()
	s, ok := b.Store.(NativeStore)
	if !ok {
		t.Fatalf("a %T has no native streams", b.Store)
	}
	return s
}

// work makes a volume from base, which may be empty, changes it, and takes a
// snapshot.
func work(t testing.TB, s store.Store, base store.SnapshotID, appliers ...Applier) store.SnapshotID {
	t.Helper()
	var v store.VolumeID
	if base == "" {
		v = create(t, s)
	} else {
		v = clone(t, s, base)
	}
	change(t, s, v, appliers...)
	id := snapshot(t, s, v)
	if err := s.DestroyVolume(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	return id
}

func sent(t testing.TB, s NativeStore, snap, base store.SnapshotID) []byte {
	t.Helper()
	r, err := s.Send(t.Context(), snap, base)
	if err != nil {
		t.Fatal(err)
	}
	return drained(t, r)
}

func drained(t testing.TB, r io.ReadCloser) []byte {
	t.Helper()
	stream, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close(), r.Close()); err != nil {
		t.Fatal(err)
	}
	return stream
}

func take(t testing.TB, s NativeStore, stream []byte, snap, base store.SnapshotID) {
	t.Helper()
	if err := s.Receive(t.Context(), s.SendKind(), bytes.NewReader(stream), snap, base); err != nil {
		t.Fatal(err)
	}
}

func sameOn(t testing.TB, a, b store.Store, id store.SnapshotID) {
	t.Helper()
	same(t, "snapshot "+string(id), describeSnapshot(t, a, id), describeSnapshot(t, b, id))
}

func expectItems(t testing.TB, what string, s store.Store, want int) {
	t.Helper()
	if items, err := s.List(t.Context()); err != nil || len(items) != want {
		t.Errorf("%s: the store holds %v, %v; want %d items", what, items, err, want)
	}
}

// exchange sends snapshots to another server whole and as differences, with
// branches, from there to a third, and back after the third has worked on them.
func exchange(t *testing.T, factory Factory) {
	a, b, c := openNative(t, factory), openNative(t, factory), openNative(t, factory)
	one := work(t, a, "", AllMetadata())
	two := work(t, a, one, File("new", "file", 0o600), Remove("etc"), Rename("big", "bigger"), Chown("su", 3, 4), Chmod("su", 0o4711))
	branch := work(t, a, one, Link("empty", "again"), Xattr("empty", "user.long", "short"))
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
	three := work(t, c, two, File("of-c", "taken over", 0o644))
	take(t, a, sent(t, c, three, two), three, two)
	take(t, b, sent(t, c, three, two), three, two)
	sameOn(t, c, a, three)
	sameOn(t, c, b, three)
	four := work(t, a, three, Remove("of-c"))
	take(t, c, sent(t, a, four, three), four, three)
	sameOn(t, a, c, four)
	expectItems(t, "after the exchange", b, 4)
	// What was received can be worked on and goes again, the base first.
	v := clone(t, b, three)
	change(t, b, v, File("more", "more", 0o644))
	if err := b.DestroyVolume(t.Context(), v); err != nil {
		t.Error(err)
	}
	for _, id := range []store.SnapshotID{one, two, branch, three} {
		if err := b.DestroySnapshot(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	expectItems(t, "after all was destroyed", b, 0)
}

func refusedStreams(t *testing.T, factory Factory) {
	a, b := openNative(t, factory), openNative(t, factory)
	kind := a.SendKind()
	one := work(t, a, "", File("a", strings.Repeat("x", 100000), 0o644))
	two := work(t, a, one, File("b", "y", 0o644))
	foreign := work(t, b, "", File("a", "another", 0o644))
	whole, difference := sent(t, a, one, ""), sent(t, a, two, one)
	broken := errors.New("the wire broke")
	for name, c := range map[string]struct {
		kind string
		r    io.Reader
		base store.SnapshotID
		want error
	}{
		"another kind": {"another", bytes.NewReader(whole), "", store.ErrUnsupported},
		"no base":      {kind, bytes.NewReader(difference), one, store.ErrNotFound},
		"wrong base":   {kind, bytes.NewReader(difference), foreign, store.ErrBaseUnusable},
		"base unsaid":  {kind, bytes.NewReader(difference), "", store.ErrBaseUnusable},
		"empty":        {kind, bytes.NewReader(nil), "", nil},
		"garbage":      {kind, strings.NewReader(strings.Repeat("garbage", 1000)), "", nil},
		"cut":          {kind, bytes.NewReader(whole[:len(whole)-20]), "", nil},
		"half":         {kind, bytes.NewReader(whole[:len(whole)/2]), "", nil},
		"two":          {kind, bytes.NewReader(append(bytes.Clone(whole), whole...)), "", nil},
		"broken wire":  {kind, io.MultiReader(bytes.NewReader(whole), iotest.ErrReader(broken)), "", broken},
		"broken early": {kind, io.MultiReader(bytes.NewReader(whole[:len(whole)/2]), iotest.ErrReader(broken)), "", broken},
	} {
		err := b.Receive(t.Context(), c.kind, c.r, one, c.base)
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, err)
		expectItems(t, name, b, 1)
	}
	if err := a.Receive(t.Context(), kind, bytes.NewReader(whole), one, ""); !errors.Is(err, store.ErrExists) {
		t.Errorf("a snapshot that is there: %v", err)
	}
	if _, err := b.Send(t.Context(), one, ""); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("send what is missing: %v", err)
	}
	if _, err := a.Send(t.Context(), one, foreign); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("send against what is missing: %v", err)
	}
	take(t, b, whole, one, "")
	sameOn(t, a, b, one)
}

// receiveCut: a receive that fails at any step leaves nothing; one that is cut
// leaves what List calls partial and DestroySnapshot removes.
func receiveCut(t *testing.T, factory Factory) {
	a, target := openNative(t, factory), factory(t)
	if target.Inject == nil {
		t.Skip("SKIPPED: this backend has no hook to inject failures")
	}
	b := asNative(t, target)
	one := work(t, a, "", File("a", "content", 0o644))
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
						closeLost()
					}
				}()
				return b.Receive(t.Context(), b.SendKind(), bytes.NewReader(whole), one, "")
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

func closedOrCancelled(t *testing.T, factory Factory) {
	s := openNative(t, factory)
	id := work(t, s, "", Many("many", 3000), File("big", strings.Repeat("x", 8<<20), 0o644))
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

// oneReceiver: while a snapshot is received it is partial, nobody else can
// receive or destroy it, and nobody can mount it.
func oneReceiver(t *testing.T, factory Factory) {
	a, b := openNative(t, factory), openNative(t, factory)
	ctx, id := t.Context(), work(t, a, "", File("a", strings.Repeat("x", 1<<20), 0o644))
	stream := sent(t, a, id, "")
	begun, goOn := make(chan struct{}), make(chan struct{})
	var once bool
	slow := readerFunc(func(p []byte) (int, error) {
		if !once {
			once = true
			close(begun)
			<-goOn
		}
		return 0, io.EOF
	})
	ended := make(chan error, 1)
	go func() {
		ended <- b.Receive(ctx, b.SendKind(), io.MultiReader(bytes.NewReader(stream), slow), id, "")
	}()
	select {
	case <-begun:
	case err := <-ended:
		t.Fatalf("it ended before its stream did: %v", err)
	}
	if err := b.Receive(ctx, b.SendKind(), bytes.NewReader(stream), id, ""); !errors.Is(err, store.ErrInUse) && !errors.Is(err, store.ErrExists) {
		t.Errorf("a second receiver: %v", err)
	}
	if err := b.DestroySnapshot(ctx, id); !errors.Is(err, store.ErrInUse) {
		t.Errorf("DestroySnapshot of what is being received: %v", err)
	}
	if _, err := b.MountSnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("MountSnapshot of what is being received: %v", err)
	}
	if items, err := b.List(ctx); err != nil || len(items) > 1 || len(items) == 1 && !items[0].Partial {
		t.Errorf("while it is received the store holds %v, %v", items, err)
	}
	close(goOn)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	sameOn(t, a, b, id)
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// resumed cuts a stream and goes on where it was cut.
func resumed(t *testing.T, factory Factory) {
	a, b := openNative(t, factory), openNative(t, factory)
	sender, ok := a.(store.Resumer)
	if !ok {
		t.Skip("SKIPPED: this backend cannot go on with a stream that was cut")
	}
	receiver, ctx, kind := b.(store.Resumer), t.Context(), a.SendKind()
	base := work(t, a, "", File("old", "old", 0o644))
	id := work(t, a, base, Noise("noise", 8<<20), File("end", "end", 0o644))
	other := work(t, a, base, File("other", "other", 0o644))
	take(t, b, sent(t, a, base, ""), base, "")
	if _, err := receiver.ResumeToken(ctx, id); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the token of nothing: %v", err)
	}
	stream, wire := sent(t, a, id, base), errors.New("the wire broke")
	cut := func(stream []byte) string {
		t.Helper()
		r := io.MultiReader(bytes.NewReader(stream[:len(stream)*2/3]), iotest.ErrReader(wire))
		if err := receiver.ReceiveResumable(ctx, kind, r, id, base); !errors.Is(err, wire) {
			t.Fatalf("a cut: %v", err)
		}
		if _, err := b.MountSnapshot(ctx, id); !errors.Is(err, store.ErrNotFound) {
			t.Errorf("what was cut can be mounted: %v", err)
		}
		expectItems(t, "after the cut", b, 2)
		token, err := receiver.ResumeToken(ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		return token
	}
	token := cut(stream)
	for what, c := range map[string]struct {
		snap, base store.SnapshotID
		token      string
		want       error
	}{
		"of another snapshot": {other, base, token, store.ErrNotFound},
		"without its base":    {id, "", token, store.ErrNotFound},
		"no token":            {id, base, "x; reboot", store.ErrBadName},
		"an altered one":      {id, base, token[:len(token)-2] + "00", store.ErrNotFound},
	} {
		if r, err := sender.SendResumed(ctx, c.snap, c.base, c.token); !errors.Is(err, c.want) {
			t.Errorf("a token %s: %v", what, err)
			if err == nil {
				_ = r.Close()
			}
		}
	}
	r, err := sender.SendResumed(ctx, id, base, token)
	if err != nil {
		t.Fatal(err)
	}
	rest := drained(t, r)
	if len(rest) > len(stream)*2/3 {
		t.Errorf("the rest of %d bytes has %d", len(stream), len(rest))
	}
	if err := b.Receive(ctx, kind, bytes.NewReader(rest), id, base); err == nil {
		t.Error("Receive takes the rest of a stream")
	}
	if err := receiver.ReceiveResumable(ctx, kind, bytes.NewReader(rest), id, base); err != nil {
		t.Fatal(err)
	}
	sameOn(t, a, b, id)
	// Given up, and begun again.
	if err := b.DestroySnapshot(ctx, id); err != nil {
		t.Fatal(err)
	}
	cut(stream)
	if err := b.DestroySnapshot(ctx, id); err != nil {
		t.Fatal(err)
	}
	expectItems(t, "after what was kept was destroyed", b, 1)
	cut(stream)
	if err := b.Receive(ctx, kind, bytes.NewReader(stream), id, base); err != nil {
		t.Fatal(err)
	}
	sameOn(t, a, b, id)
}
