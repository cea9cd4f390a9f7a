package transfer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/store"
)

// encryptedStore is a store in which everything is encrypted: what it sends is,
// too, so to speak, and without the key nothing can be mounted.
type encryptedStore struct {
	nativeStore
	locked atomic.Bool
}

func (e *encryptedStore) Encrypted(context.Context, store.SnapshotID) (bool, error) { return true, nil }

func (e *encryptedStore) MountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	if e.locked.Load() {
		return nil, fmt.Errorf("snapshot %s: %w: its key is not loaded", id, store.ErrUnavailable)
	}
	return e.nativeStore.MountSnapshot(ctx, id)
}

// encryptedPair is pair with a primary whose store is encrypted.
func encryptedPair(t *testing.T, native bool) (a, b *testSite, list []image.Snapshot, e *encryptedStore) {
	a, b, list = pair(t, native)
	return a, b, list, a.encrypt()
}

// encrypt makes the store of a site an encrypted one.
func (s *testSite) encrypt() *encryptedStore {
	e := &encryptedStore{nativeStore: nativeStore{s.memory}}
	s.store = e
	s.manager = image.New(image.Options{Layout: s.layout, Catalog: s.catalog, Store: e, Logger: s.log, Actor: catalog.Actor{User: s.name, Command: "test"}})
	return e
}

// TestEncryptedStaysEncrypted: to a server that takes portable streams only,
// nothing that is encrypted goes in the clear without a word.
func TestEncryptedStaysEncrypted(t *testing.T) {
	for name, send := range map[string]func(a, b *testSite, s image.Snapshot, decrypt bool) error{
		"send": func(a, b *testSite, s image.Snapshot, decrypt bool) error {
			connect, ended := dial(b.receiver(), 0, nil)
			sender := a.sender()
			sender.Decrypt = decrypt
			_, err := sender.Send(a.t.Context(), connect, s, nil, "")
			_ = ended()
			return err
		},
		"replicate": func(a, b *testSite, _ image.Snapshot, decrypt bool) error {
			connect, ended := dial(b.receiver(), 0, nil)
			sender := a.sender()
			sender.Decrypt = decrypt
			_, err := sender.Replicate(a.t.Context(), connect)
			_ = ended()
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, b, list, _ := encryptedPair(t, false)
			if err := send(a, b, list[0], false); !errors.Is(err, image.ErrEncrypted) || !strings.Contains(err.Error(), "--decrypt") {
				t.Errorf("without a word: %v", err)
			}
			if i, err := b.manager.Inventory(t.Context()); err != nil || len(i.Snapshots) != 0 {
				t.Errorf("the other server holds %v, %v", i.Snapshots, err)
			}
			must(t, send(a, b, list[0], true))
			if got, want := b.content(list[0].ID), a.content(list[0].ID); got != want {
				t.Errorf("the other server holds %q instead of %q", got, want)
			}
			b.sound()
		})
	}
}

// TestSentWithoutTheKey: what goes as it is needs no key, on neither side.
func TestSentWithoutTheKey(t *testing.T) {
	a, b, list, e := encryptedPair(t, true)
	e.locked.Store(true)
	connect, ended := dial(b.receiver(), 0, nil)
	_, err := a.sender().Send(t.Context(), connect, list[0], nil, "")
	must(t, errors.Join(err, ended()))
	c := newSite(t, "third", true)
	there := c.encrypt()
	there.locked.Store(true)
	report, err := replicateTo(a, c)
	must(t, err)
	if len(report.Snapshots) != 3 || report.Snapshots[1].Base == "" {
		t.Errorf("%+v", report)
	}
	e.locked.Store(false)
	there.locked.Store(false)
	if got, want := b.content(list[0].ID), a.content(list[0].ID); got != want {
		t.Errorf("the other server holds %q instead of %q", got, want)
	}
	if got, want := c.view(), a.view(); got != want {
		t.Errorf("the replica holds\n%s\ninstead of\n%s", got, want)
	}
	c.sound()
}
