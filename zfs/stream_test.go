package zfs

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sidus/image/store"
	"sidus/image/store/storetest"
)

// encrypted makes a store in an encrypted dataset, and returns the file of its
// key.
func encrypted(t *testing.T) (s *Store, key string) {
	t.Helper()
	o := datasetOptions(t)
	key = filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	must(t, "zfs", "create", "-o", "mountpoint=none", "-o", "encryption=on", "-o", "keyformat=raw", "-o", "keylocation=file://"+key, o.Dataset)
	return open(t, o), key
}

func sent(t *testing.T, r io.ReadCloser, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	stream, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return stream
}

// content returns the file that filled and write made in a snapshot.
func content(t *testing.T, s *Store, id store.SnapshotID, name string) (string, error) {
	t.Helper()
	m, err := s.MountSnapshot(t.Context(), id)
	if err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(m.Path(), name))
	return string(text), errors.Join(err, m.Unmount(t.Context()))
}

// TestEncryptedStreams sends what is encrypted without its key. Nobody can read
// it on the way, nor at its end before the key is loaded there.
func TestEncryptedStreams(t *testing.T) {
	a, key := encrypted(t)
	b, ctx := open(t, datasetOptions(t)), t.Context()
	v := filled(t, a)
	write(t, a, v, "secret", strings.Repeat("what nobody must read ", 1000))
	one := taken(t, a, v)
	write(t, a, v, "later", "later")
	two := taken(t, a, v)
	must(t, "zfs", "unload-key", "-r", a.parent)
	r, err := a.Send(ctx, one, "")
	whole := sent(t, r, err)
	r, err = a.Send(ctx, two, one)
	difference := sent(t, r, err)
	for _, s := range []*Store{a, b} { // whether it is known here or not
		id := one
		if s == b {
			id = taken(t, b, filled(t, b))
		}
		if encrypted, err := s.Encrypted(ctx, id); encrypted != (s == a) || err != nil {
			t.Errorf("encrypted: %v, %v", encrypted, err)
		}
	}
	if _, err := b.Encrypted(ctx, one); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("one that is missing: %v", err)
	}
	if bytes.Contains(whole, []byte("nobody must read")) {
		t.Error("the stream is not encrypted")
	}
	if err := errors.Join(b.Receive(ctx, "zfs", bytes.NewReader(whole), one, ""), b.Receive(ctx, "zfs", bytes.NewReader(difference), two, one)); err != nil {
		t.Fatal(err)
	}
	if _, err := content(t, b, two, "later"); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "zfs load-key") {
		t.Errorf("without the key: %v", err)
	}
	if n := count(t, b); n != 4 {
		t.Errorf("%d things show, not four", n)
	}
	// A head that starts from it is made without the key.
	head := store.NewVolumeID()
	if err := errors.Join(b.Clone(ctx, two, head), b.DestroyVolume(ctx, head)); err != nil {
		t.Errorf("a clone without the key: %v", err)
	}
	if encrypted, err := b.Encrypted(ctx, two); !encrypted || err != nil {
		t.Errorf("what came raw is encrypted: %v, %v", encrypted, err)
	}
	for _, line := range strings.Split(must(t, "zfs", "get", "-H", "-r", "-t", "filesystem", "-o", "name,value", "encryptionroot", b.parent), "\n") {
		if name, root, _ := strings.Cut(line, "\t"); name == root {
			must(t, "zfs", "load-key", "-L", "file://"+key, name)
		}
	}
	if text, err := content(t, b, two, "later"); text != "later" || err != nil {
		t.Errorf("with the key: %q, %v", text, err)
	}
	if text, err := content(t, b, one, "secret"); len(text) != 22000 || err != nil {
		t.Errorf("with the key: %d bytes, %v", len(text), err)
	}
	must(t, "zfs", "load-key", "-r", a.parent)
}

// TestReceivedDatasets: what is received is read-only, unmounted, and has none
// of the properties that a stream brings along.
func TestReceivedDatasets(t *testing.T) {
	a, b, ctx := open(t, datasetOptions(t)), open(t, datasetOptions(t)), t.Context()
	v := filled(t, a)
	id := taken(t, a, v)
	must(t, "zfs", "set", "mountpoint=/nowhere", "sidus:store=1", a.parent+"/"+string(v))
	must(t, "zfs", "set", "sidus:snapshot="+string(store.NewSnapshotID()), a.parent+"/"+string(v)+"@"+string(id))
	// As someone sends who wants more than to send.
	file := filepath.Join(t.TempDir(), "stream")
	must(t, "sh", "-c", "zfs send -p "+a.parent+"/"+string(v)+"@"+string(id)+" >"+file)
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := store.NewSnapshotID()
	if err := b.Receive(ctx, "zfs", bytes.NewReader(text), other, ""); err == nil {
		items, err := b.List(ctx)
		if err != nil || len(items) != 1 || items[0].Snapshot != other || items[0].Partial {
			t.Errorf("the store holds %v, %v", items, err)
		}
		d, _, err := b.find(ctx, other)
		if err != nil {
			t.Fatal(err)
		}
		got := must(t, "zfs", "get", "-H", "-o", "value", "readonly,mountpoint,mounted", string(d.fileSystem()))
		if got != "on\nlegacy\nno" {
			t.Errorf("what was received has %q", got)
		}
	} else if n := count(t, b); n != 0 {
		t.Errorf("a refused stream (%v) left %d things", err, n)
	}
}

// TestCompressed sends blocks as they lie in the pool.
func TestCompressed(t *testing.T) {
	a, b, ctx := open(t, datasetOptions(t)), open(t, datasetOptions(t)), t.Context()
	id := taken(t, a, filled(t, a)) // a megabyte of the same letter
	r, err := a.Send(ctx, id, "")
	plain := sent(t, r, err)
	r, err = a.SendCompressed(ctx, id, "")
	compressed := sent(t, r, err)
	if len(plain) < 1<<20 || len(compressed) > len(plain)/4 {
		t.Errorf("%d bytes, and %d compressed", len(plain), len(compressed))
	}
	if err := b.Receive(ctx, "zfs", bytes.NewReader(compressed), id, ""); err != nil {
		t.Fatal(err)
	}
	if text, err := content(t, b, id, "file"); len(text) != 1<<20 || err != nil {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// TestHolds: a snapshot is held while it is sent, and not longer; a hold of a
// process that was killed is in nobody's way.
func TestHolds(t *testing.T) {
	s, ctx := open(t, datasetOptions(t)), t.Context()
	v := filled(t, s)
	one := taken(t, s, v)
	holds := func(want int) []Hold {
		t.Helper()
		all, err := s.Holds(ctx)
		if err != nil || len(all) != want {
			t.Fatalf("the holds are %v, %v; want %d", all, err, want)
		}
		return all
	}
	holds(0)
	r, err := s.Send(ctx, one, "")
	if err != nil {
		t.Fatal(err)
	}
	if all := holds(1); all[0].Snapshot != one || !all[0].Alive || !strings.HasPrefix(all[0].Tag, holdPrefix) {
		t.Errorf("%+v", all[0])
	}
	if err := command("zfs", "destroy", s.parent+"/"+string(v)+"@"+string(one)); err == nil {
		t.Error("zfs destroys a snapshot that is being sent")
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	holds(0)

	d := s.parent + "/" + string(v) + "@" + string(one)
	must(t, "zfs", "hold", "backup", d)
	killed := func() {
		t.Helper()
		must(t, "zfs", "hold", "sidus:send-killed", d)
		for _, h := range holds(2) {
			if h.Alive {
				t.Errorf("%+v", h)
			}
		}
		if left := remnants(t, s); len(left) != 1 || !strings.Contains(left[0].What, "sidus:send-killed") || left[0].Reason != "" {
			t.Errorf("left: %v", left)
		}
	}
	killed()
	if err := s.Collect(ctx); err != nil {
		t.Error(err)
	}
	holds(1)
	killed()
	other, err := Open(ctx, s.opts) // the next process
	if err != nil {
		t.Fatal(err)
	}
	r, err = other.Send(ctx, one, "")
	_ = sent(t, r, err)
	if all := holds(1); all[0].Tag != "backup" {
		t.Errorf("%+v", all[0])
	}
	killed()
	if err := s.DestroySnapshot(ctx, one); err != nil {
		t.Fatal(err)
	}
	if n := count(t, s); n != 1 {
		t.Errorf("%d things show, not one", n)
	}
	if left := remnants(t, s); len(left) != 1 || !strings.Contains(left[0].What, d) || !strings.Contains(left[0].Reason, "zfs release backup "+d) {
		t.Errorf("left: %v", left)
	}
	must(t, "zfs", "release", "backup", d)
	if command("zfs", "list", d) == nil {
		t.Error("the snapshot is still there when nobody holds it")
	}
}

// TestComesAgain: a snapshot is received again while clones still need the one
// that was destroyed under its ID.
func TestComesAgain(t *testing.T) {
	a, b, ctx := open(t, datasetOptions(t)), open(t, datasetOptions(t)), t.Context()
	id := taken(t, a, filled(t, a))
	receive := func() {
		t.Helper()
		r, err := a.Send(ctx, id, "")
		if err := errors.Join(err, b.Receive(ctx, "zfs", r, id, ""), r.Close()); err != nil {
			t.Fatal(err)
		}
	}
	receive()
	head := store.NewVolumeID()
	if err := errors.Join(b.Clone(ctx, id, head), b.DestroySnapshot(ctx, id)); err != nil {
		t.Fatal(err)
	}
	if _, err := content(t, b, id, "file"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("when it is destroyed: %v", err)
	}
	// The old one is the first that is found.
	old, _, _ := strings.Cut(must(t, "zfs", "get", "-H", "-o", "value", "origin", b.parent+"/"+string(head)), "@")
	must(t, "zfs", "rename", "-u", old, b.parent+"/"+strings.Repeat("0", 32))
	receive()
	if n := count(t, b); n != 2 {
		t.Errorf("%d things show, not two", n)
	}
	again, err := Open(ctx, b.opts)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{b, again} {
		if text, err := content(t, s, id, "file"); len(text) != 1<<20 || err != nil {
			t.Errorf("%d bytes, %v", len(text), err)
		}
	}
	r, err := again.Send(ctx, id, "")
	_ = sent(t, r, err)
	if err := errors.Join(again.DestroySnapshot(ctx, id), b.DestroyVolume(ctx, head)); err != nil {
		t.Error(err)
	}
	if left := must(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", b.parent); left != b.parent+"\n"+b.parent+"/kept" {
		t.Errorf("left:\n%s", left)
	}
}

// TestReceiveIntoFullStore: what does not fit leaves nothing, and fits when
// there is room.
func TestReceiveIntoFullStore(t *testing.T) {
	a, b, ctx := open(t, datasetOptions(t)), open(t, datasetOptions(t)), t.Context()
	v := store.NewVolumeID()
	if err := a.CreateVolume(ctx, v); err != nil {
		t.Fatal(err)
	}
	m, err := a.MountVolume(ctx, v)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(storetest.Noise("noise", 48<<20)(m.Path()), m.Unmount(ctx)); err != nil {
		t.Fatal(err)
	}
	id := taken(t, a, v)
	receive := func() error {
		r, err := a.Send(ctx, id, "")
		if err != nil {
			t.Fatal(err)
		}
		return errors.Join(b.Receive(ctx, "zfs", r, id, ""), r.Close())
	}
	must(t, "zfs", "set", "quota=24M", b.parent)
	if err := receive(); !errors.Is(err, store.ErrNoSpace) {
		t.Errorf("into a store that is too small: %v", err)
	}
	if n := count(t, b); n != 0 {
		t.Errorf("%d things are left", n)
	}
	must(t, "zfs", "set", "quota=none", b.parent)
	if err := receive(); err != nil {
		t.Error(err)
	}
	if text, err := content(t, b, id, "noise"); len(text) != 48<<20 || err != nil {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}
