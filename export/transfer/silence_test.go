package transfer

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/image"
	"sidus/image/store"
)

// TestSilentSender: a sender whose machine has lost its power says nothing more,
// and keeps the next one out for a short time only.
func TestSilentSender(t *testing.T) {
	a, b, _ := pair(t, true)
	ctx := t.Context()
	ours, err := a.manager.Inventory(ctx)
	must(t, err)
	r := b.receiver()
	r.quiet.idle = time.Second
	connect, ended := dial(r, 0, nil)
	cut, stop := context.WithCancel(ctx)
	rw, err := connect(cut)
	must(t, err)
	silent := a.sender()
	cl, err := connect2(silent, cut, rw, ours, time.Hour)
	must(t, err)
	if _, err := replicateTo(a, b); !errors.Is(err, store.ErrInUse) {
		t.Errorf("two transfers come in at once: %v", err)
	}
	begun := time.Now()
	if err := ended(); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "nothing was heard") {
		t.Errorf("%v", err)
	}
	if took := time.Since(begun); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	_, err = replicateTo(a, b)
	must(t, err)
	stop()
	_ = cl.end()
}

func connect2(s *Sender, ctx context.Context, rw io.ReadWriteCloser, ours image.Inventory, alive time.Duration) (*client, error) {
	return connect(ctx, rw, s.greeting(Replicate, ours), 0, silence{alive: alive})
}

// TestSlowSender: one that thinks for long, or does not keep connections alive
// as older ones do not, is waited for.
func TestSlowSender(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("old %v", old), func(t *testing.T) {
			a, b, _ := pair(t, true)
			_, err := replicateTo(a, b)
			must(t, err)
			_, _, err = b.manager.Takeover(t.Context())
			must(t, err)
			a.snapshot("deb", "lost", kib)
			_, _, err = a.manager.Demote(t.Context())
			must(t, err)
			sender, r := b.sender(), a.receiver()
			r.quiet.idle, sender.quiet.alive = time.Second, 100*time.Millisecond
			if old {
				sender.hello = &hello{Min: minVersion, Max: maxVersion}
			}
			sender.Discard = func(error) error {
				time.Sleep(3 * time.Second) // somebody is asked
				return nil
			}
			connect, ended := dial(r, 0, nil)
			_, err = sender.Replicate(t.Context(), connect)
			must(t, err)
			must(t, ended())
		})
	}
}

// slowStore takes its time to receive.
type slowStore struct {
	nativeStore
	wait func()
}

func (s slowStore) Receive(ctx context.Context, kind string, r io.Reader, snap, base store.SnapshotID) error {
	s.wait()
	return s.nativeStore.Receive(ctx, kind, r, snap, base)
}

// TestSilentReceiver: a receiver that has stopped does not keep its sender for
// ever, and one that works for long is waited for.
func TestSilentReceiver(t *testing.T) {
	a, b, _ := pair(t, true)
	sender, r := a.sender(), b.receiver()
	sender.quiet.idle, r.quiet.alive = time.Second, time.Hour
	end := make(chan struct{})
	r.Store = slowStore{nativeStore{b.memory}, func() { <-end }}
	connect, ended := dial(r, 0, nil)
	if _, err := sender.Replicate(t.Context(), connect); !errors.Is(err, ErrCut) || !strings.Contains(err.Error(), "nothing was heard") {
		t.Errorf("%v", err)
	}
	close(end)
	_ = ended()

	r.quiet.alive = 100 * time.Millisecond
	r.Store = slowStore{nativeStore{b.memory}, func() { time.Sleep(3 * time.Second) }}
	connect, ended = dial(r, 0, nil)
	_, err := sender.Replicate(t.Context(), connect)
	must(t, err)
	must(t, ended())
	b.sound()
}

// TestStrangersCostNoMemory: who has no token says that a lot will come.
func TestStrangersCostNoMemory(t *testing.T) {
	b := newSite(t, "second", true)
	identity, err := LoadIdentity(b.layout, false)
	must(t, err)
	address := listen(t, b, identity)
	frame := binary.BigEndian.AppendUint32([]byte(preface+"M"), maxMessage)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			conn, err := tls.Dial("tcp", net.JoinHostPort(address.Host, fmt.Sprint(address.Port)), &tls.Config{InsecureSkipVerify: true})
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			_, err = conn.Write(append(make([]byte, 32), frame...))
			if err != nil {
				t.Error(err)
			}
			if answer, err := io.ReadAll(conn); err != nil || !strings.Contains(string(answer), codeToken) {
				t.Errorf("the answer is %q, %v", answer, err)
			}
		})
	}
	all.Wait()
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 64<<20 {
		t.Errorf("eight strangers cost %d MB", grown>>20)
	}
}

// leavingStore gives up in the middle of a stream, and leaves somebody behind
// who reads on.
type leavingStore struct {
	nativeStore
	left *sync.WaitGroup
}

var errGivenUp = errors.New("given up on purpose")

func (l leavingStore) Receive(_ context.Context, _ string, r io.Reader, _, _ store.SnapshotID) error {
	begun := make(chan struct{})
	l.left.Go(func() {
		b := make([]byte, 1000)
		_, _ = r.Read(b)
		close(begun)
		for {
			if _, err := r.Read(b); err != nil {
				return
			}
		}
	})
	<-begun
	return errGivenUp
}

// TestStoreThatGivesUp: the connection goes on behind a store that gave up while
// it was reading.
func TestStoreThatGivesUp(t *testing.T) {
	a, b, list := pair(t, true)
	big := a.snapshot("deb", "big", 30<<20)
	_ = list
	var left sync.WaitGroup
	r := b.receiver()
	r.Store = leavingStore{nativeStore{b.memory}, &left}
	for range 5 {
		connect, ended := dial(r, 0, nil)
		ours, err := a.manager.Inventory(t.Context())
		must(t, err)
		rw, err := connect(t.Context())
		must(t, err)
		sender := a.sender()
		cl, err := connect2(sender, t.Context(), rw, ours, time.Hour)
		must(t, err)
		if _, _, err := sender.snapshot(t.Context(), cl, big, "", "", true); err == nil || !strings.Contains(err.Error(), errGivenUp.Error()) {
			t.Errorf("%v", err)
		}
		if _, err := cl.inventory(); err != nil {
			t.Errorf("the connection is of no use any more: %v", err)
		}
		must(t, cl.close())
		must(t, ended())
		left.Wait()
	}
	b.sound()
}
