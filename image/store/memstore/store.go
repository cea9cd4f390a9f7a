// Package memstore is a fake store for unit tests. What there is stands in
// memory; the trees lie in plain folders, so that mounts are real, and are
// copied with cp -a. It can be told to fail.
//
// It differs from a real store in this: snapshots cost a copy, they are not
// protected from writing, and mounts inside a volume are not noticed.
package memstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"time"

	"sidus/image/store"
	"sidus/image/tool"
)

// Store is the fake. It implements store.Store, store.Keeper and
// store.PropertySetter.
type Store struct {
	*shared
	mu     sync.Mutex
	mounts int
}

var (
	_ store.Store          = (*Store)(nil)
	_ store.Keeper         = (*Store)(nil)
	_ store.PropertySetter = (*Store)(nil)
)

// shared is what all handles of one store have in common.
type shared struct {
	dir string

	mu     sync.Mutex
	items  map[key]*entry
	kept   map[string][]byte
	before func(step string) error
	failOn map[string]error
	usage  store.Usage
}

// key names an item: its kind and ID.
type key struct {
	kind store.Kind
	id   string
}

func (k key) String() string { return string(k.kind) + " " + k.id }

type entry struct {
	created time.Time
	partial bool
	mounts  int

	properties map[string]string
}

// DefaultUsage is what Usage says until SetUsage is called.
var DefaultUsage = store.Usage{Size: 1 << 40, Used: 0, Available: 1 << 40}

// New makes an empty store whose trees lie in dir, which must exist.
func New(dir string) *Store {
	return &Store{shared: &shared{
		dir: dir, items: map[key]*entry{}, kept: map[string][]byte{}, failOn: map[string]error{}, usage: DefaultUsage,
	}}
}

// Again returns another handle of the same store, as another process has it.
func (s *Store) Again() *Store { return &Store{shared: s.shared} }

// Inject sets a function that is called before each step that changes
// something, with a name such as "Snapshot: copy". An error from it fails the
// step; a panic stands for a crash. Nil takes it away.
func (s *Store) Inject(before func(step string) error) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.before = before
}

// FailAt makes the n-th step from now (1 is the next) fail with err.
func (s *Store) FailAt(n int, err error) {
	var mu sync.Mutex
	s.Inject(func(string) error {
		mu.Lock()
		defer mu.Unlock()
		if n--; n == 0 {
			return err
		}
		return nil
	})
}

// FailOn makes a method ("Snapshot", "MountVolume", "List" …) fail with err
// whenever it is called, before it has done anything. Nil ends that.
func (s *Store) FailOn(method string, err error) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.failOn[method] = err
}

// SetUsage sets what Usage says. With nothing available, CreateVolume and Clone
// fail with ErrNoSpace.
func (s *Store) SetUsage(u store.Usage) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.usage = u
}

// Mounts tells how many mounts are held, through all handles.
func (s *Store) Mounts() int {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	sum := 0
	for _, e := range s.items {
		sum += e.mounts
	}
	return sum
}

func (s *shared) enter(ctx context.Context, method string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(ctx.Err(), s.failOn[method])
}

func (s *shared) step(name string) error {
	s.mu.Lock()
	before := s.before
	s.mu.Unlock()
	if before == nil {
		return nil
	}
	return before(name)
}

func (s *shared) path(k key) string { return filepath.Join(s.dir, string(k.kind)+"-"+k.id) }

func volume(v store.VolumeID) (key, error) { return key{store.KindVolume, string(v)}, v.Validate() }

func snapshot(id store.SnapshotID) (key, error) {
	return key{store.KindSnapshot, string(id)}, id.Validate()
}

// find returns a whole item. The caller holds the lock.
func (s *shared) find(k key) (*entry, error) {
	e := s.items[k]
	if e == nil || e.partial {
		return nil, fmt.Errorf("%v: %w", k, store.ErrNotFound)
	}
	return e, nil
}

// make makes an item: it is partial until fill has written its tree.
func (s *shared) make(k key, method string, check func() error, fill func(path string) error) (err error) {
	if err := s.step(method + ": begin"); err != nil {
		return err
	}
	s.mu.Lock()
	err = check()
	if err == nil && s.items[k] != nil {
		err = fmt.Errorf("%v: %w", k, store.ErrExists)
	}
	if err == nil {
		s.items[k] = &entry{created: time.Now(), partial: true}
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	crashed := true
	defer func() {
		if err != nil && !crashed {
			_ = os.RemoveAll(s.path(k))
			s.mu.Lock()
			delete(s.items, k)
			s.mu.Unlock()
		}
	}()
	err = s.step(method + ": copy")
	if err == nil {
		err = fill(s.path(k))
	}
	if err == nil {
		err = s.step(method + ": finish")
	}
	crashed = false
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.items[k].partial = false
	s.mu.Unlock()
	return nil
}

// room returns ErrNoSpace if nothing is available. The caller holds the lock.
func (s *shared) room(k key) error {
	if s.usage.Available <= 0 {
		return fmt.Errorf("%v: %w", k, store.ErrNoSpace)
	}
	return nil
}

// CreateVolume implements store.Store.
func (s *Store) CreateVolume(ctx context.Context, v store.VolumeID) error {
	k, err := volume(v)
	if err != nil {
		return err
	}
	if err := s.enter(ctx, "CreateVolume"); err != nil {
		return err
	}
	return s.make(k, "CreateVolume", func() error { return s.room(k) }, func(path string) error {
		return errors.Join(os.Mkdir(path, 0o755), os.Chmod(path, 0o755))
	})
}

// Snapshot implements store.Store.
func (s *Store) Snapshot(ctx context.Context, v store.VolumeID, id store.SnapshotID) error {
	from, err := volume(v)
	if err != nil {
		return err
	}
	to, err := snapshot(id)
	if err != nil {
		return err
	}
	if err := s.enter(ctx, "Snapshot"); err != nil {
		return err
	}
	return s.copy(ctx, "Snapshot", from, to)
}

// Clone implements store.Store.
func (s *Store) Clone(ctx context.Context, id store.SnapshotID, v store.VolumeID) error {
	from, err := snapshot(id)
	if err != nil {
		return err
	}
	to, err := volume(v)
	if err != nil {
		return err
	}
	if err := s.enter(ctx, "Clone"); err != nil {
		return err
	}
	s.shared.mu.Lock()
	err = s.room(to)
	s.shared.mu.Unlock()
	if err != nil {
		return err
	}
	return s.copy(ctx, "Clone", from, to)
}

func (s *Store) copy(ctx context.Context, method string, from, to key) error {
	check := func() error {
		_, err := s.find(from)
		return err
	}
	return s.make(to, method, check, func(path string) error {
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		return tool.Run(ctx, tool.Options{}, "cp", "--archive", "--", s.path(from)+"/.", path)
	})
}

type mount struct {
	path string
	once sync.Once
	give func()
}

func (m *mount) Path() string { return m.path }

func (m *mount) Unmount(context.Context) error {
	m.once.Do(m.give)
	return nil
}

func (s *Store) mount(k key) (store.Mount, error) {
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	e, err := s.find(k)
	if err != nil {
		return nil, err
	}
	e.mounts++
	s.count(1)
	return &mount{path: s.path(k), give: func() {
		s.shared.mu.Lock()
		defer s.shared.mu.Unlock()
		e.mounts--
		s.count(-1)
	}}, nil
}

func (s *Store) count(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mounts += n
}

// MountVolume implements store.Store.
func (s *Store) MountVolume(ctx context.Context, v store.VolumeID) (store.Mount, error) {
	k, err := volume(v)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx, "MountVolume"); err != nil {
		return nil, err
	}
	return s.mount(k)
}

// MountSnapshot implements store.Store, but for writing, which nothing refuses.
func (s *Store) MountSnapshot(ctx context.Context, id store.SnapshotID) (store.Mount, error) {
	k, err := snapshot(id)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx, "MountSnapshot"); err != nil {
		return nil, err
	}
	return s.mount(k)
}

// DestroyVolume implements store.Store.
func (s *Store) DestroyVolume(ctx context.Context, v store.VolumeID) error {
	k, err := volume(v)
	if err != nil {
		return err
	}
	if err := s.enter(ctx, "DestroyVolume"); err != nil {
		return err
	}
	return s.destroy(k, "DestroyVolume")
}

// DestroySnapshot implements store.Store.
func (s *Store) DestroySnapshot(ctx context.Context, id store.SnapshotID) error {
	k, err := snapshot(id)
	if err != nil {
		return err
	}
	if err := s.enter(ctx, "DestroySnapshot"); err != nil {
		return err
	}
	return s.destroy(k, "DestroySnapshot")
}

func (s *shared) destroy(k key, method string) error {
	if err := s.step(method + ": begin"); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.items[k]
	if e == nil {
		return fmt.Errorf("%v: %w", k, store.ErrNotFound)
	}
	if e.mounts > 0 {
		return fmt.Errorf("%v: %w: it is mounted", k, store.ErrInUse)
	}
	delete(s.items, k)
	return os.RemoveAll(s.path(k))
}

// List implements store.Store.
func (s *Store) List(ctx context.Context) ([]store.Item, error) {
	if err := s.enter(ctx, "List"); err != nil {
		return nil, err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	var items []store.Item
	for k, e := range s.items {
		i := store.Item{Kind: k.kind, Created: e.created, Partial: e.partial}
		if k.kind == store.KindVolume {
			i.Volume = store.VolumeID(k.id)
		} else {
			i.Snapshot = store.SnapshotID(k.id)
		}
		items = append(items, i)
	}
	return items, nil
}

// Usage implements store.Store; see SetUsage.
func (s *Store) Usage(ctx context.Context) (store.Usage, error) {
	if err := s.enter(ctx, "Usage"); err != nil {
		return store.Usage{}, err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	return s.usage, nil
}

// Close implements store.Store. ErrInUse if mounts were not given back.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounts > 0 {
		return fmt.Errorf("%w: %d mounts were not given back", store.ErrInUse, s.mounts)
	}
	return nil
}

// Keep implements store.Keeper.
func (s *Store) Keep(ctx context.Context, name string, r io.Reader) error {
	if err := store.ValidateKeptName(name); err != nil {
		return err
	}
	if err := s.enter(ctx, "Keep"); err != nil {
		return err
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := s.step("Keep: write"); err != nil {
		return err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	s.kept[name] = content
	return nil
}

// Kept implements store.Keeper.
func (s *Store) Kept(ctx context.Context, name string) (io.ReadCloser, error) {
	if err := store.ValidateKeptName(name); err != nil {
		return nil, err
	}
	if err := s.enter(ctx, "Kept"); err != nil {
		return nil, err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	content, ok := s.kept[name]
	if !ok {
		return nil, fmt.Errorf("kept file %s: %w", name, store.ErrNotFound)
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

// SetProperties implements store.PropertySetter: there is a "quota" and a
// "compression", with any value. Unlike those of a real store they do not go
// into a clone.
func (s *Store) SetProperties(ctx context.Context, v store.VolumeID, values map[string]string) error {
	k, err := volume(v)
	if err != nil {
		return err
	}
	for name := range values {
		if name != "quota" && name != "compression" {
			return fmt.Errorf("property %q: %w: it is quota or compression", name, store.ErrBadName)
		}
	}
	if err := s.enter(ctx, "SetProperties"); err != nil {
		return err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	e, err := s.find(k)
	if err != nil {
		return err
	}
	if e.properties == nil {
		e.properties = make(map[string]string)
	}
	for name, value := range values {
		e.properties[name] = value
		if value == "inherit" {
			delete(e.properties, name)
		}
	}
	return nil
}

// Properties implements store.PropertySetter.
func (s *Store) Properties(ctx context.Context, v store.VolumeID) (map[string]string, error) {
	k, err := volume(v)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx, "Properties"); err != nil {
		return nil, err
	}
	s.shared.mu.Lock()
	defer s.shared.mu.Unlock()
	e, err := s.find(k)
	if err != nil {
		return nil, err
	}
	return maps.Clone(e.properties), nil
}
