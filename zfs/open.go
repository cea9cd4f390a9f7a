package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"sidus/image/store"
	"sidus/image/store/mountpoint"
)

// Store is a store in ZFS. Beside store.Store it implements what package store
// has for stores that can do more, but for store.Resizer.
type Store struct {
	opts   Options
	parent string // the parent dataset
	runDir string // for locks
	points *mountpoint.Table

	mu     sync.Mutex
	known  map[store.SnapshotID]dataset // where snapshots were seen last
	kept   *mountpoint.Held             // the mount of kept, once it was needed
	mounts int                          // mounts that were not given back

	swept sync.Once // see sweepHolds
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Keeper    = (*Store)(nil)
	_ store.Waiter    = (*Store)(nil)
	_ store.Collector = (*Store)(nil)
	_ store.Encrypter = (*Store)(nil)
)

// Properties of the parent, which all beneath inherits.
//
//   - xattr=sa: an extended attribute lies with its inode and not in a hidden
//     folder of its own; ACLs and capabilities would each cost several reads.
//   - acltype=posix: the default is to have no ACLs.
//   - atime=off: a read must not write; after a snapshot each access time would
//     also unshare metadata.
//   - canmount=off: the parent holds no files.
var required = []string{"xattr=sa", "acltype=posix", "atime=off", "canmount=off"}

// compression is what the parent gets unless someone chose before: lz4, which
// each pool knows. It costs next to nothing to unpack, and gives up early on
// what does not shrink.
const compression = "lz4"

// Init makes a store, or opens the one that is there. ErrNotAStore if something
// else is in the dataset or in the file.
func Init(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	made := false
	if o.File != "" {
		if made, err = o.makePool(ctx); err != nil {
			return nil, err
		}
	}
	s, err := o.open(ctx, true)
	if err != nil && made {
		if cleanErr := o.removePool(context.WithoutCancel(ctx)); cleanErr != nil {
			o.Log.WithError(cleanErr).Warn("what was begun stays behind")
		}
	}
	return s, err
}

// Open opens a store that Init has made, and imports the pool of its file if it
// is not imported. ErrNotFound if the dataset or file is missing, ErrNotAStore
// if it holds something else, ErrUnavailable if the pool cannot be used now.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	return o.open(ctx, false)
}

func (o Options) open(ctx context.Context, init bool) (*Store, error) {
	parent := o.Dataset
	if o.File != "" {
		var err error
		if parent, err = o.importPool(ctx); err != nil {
			return nil, err
		}
	}
	s := &Store{opts: o, parent: parent, known: make(map[store.SnapshotID]dataset)}
	if err := s.checkPool(ctx); err != nil {
		return nil, err
	}
	if init {
		if err := s.layOut(ctx); err != nil {
			return nil, err
		}
	}
	guid, err := s.checkMarker(ctx)
	if err != nil {
		return nil, err
	}
	s.runDir = filepath.Join(o.RunDir, "zfs-"+guid)
	if s.points, err = mountpoint.New(s.runDir, nil); err != nil {
		return nil, err
	}
	s.points.Limit = o.Timeout
	if err := s.points.Sweep(); err != nil {
		o.Log.WithError(err).Warn("what a killed process left mounted stays mounted")
	}
	return s, nil
}

// checkPool looks whether the pool can be used.
func (s *Store) checkPool(ctx context.Context) error {
	name, _, _ := cutPool(s.parent)
	pool, err := s.opts.pool(ctx, name)
	if err != nil {
		return classify(s.opts.place(), dataset(name), err)
	}
	switch pool.Health {
	case "ONLINE":
	case "DEGRADED":
		s.opts.Log.WithField("pool", name).Warn("the pool is degraded: it works, and one more failure may lose it (zpool status -x)")
	default:
		return fmt.Errorf("%s: %w: the pool %s is %s (zpool status -x says why)", s.opts.place(), store.ErrUnavailable, name, pool.Health)
	}
	if pool.ReadOnly {
		s.opts.Log.WithField("pool", name).Warn("the pool is imported read-only: what is there can be served, nothing can be changed")
	}
	return nil
}

func cutPool(name string) (pool, rest string, nested bool) {
	for i := range len(name) {
		if name[i] == '/' {
			return name[:i], name[i+1:], true
		}
	}
	return name, "", false
}

// layOut makes the parent and what belongs in it, unless it is there.
func (s *Store) layOut(ctx context.Context) error {
	parent := dataset(s.parent)
	found, err := s.opts.properties(ctx, parent, "type,mounted,mountpoint,compression,"+propStore)
	err = classify(s.opts.place(), parent, err)
	if errors.Is(err, store.ErrNotFound) {
		if err := s.opts.step("create the parent"); err != nil {
			return err
		}
		args := []string{"create", "-o", propStore + "=" + layoutVersion, "-o", "mountpoint=none", "-o", "compression=" + compression}
		for _, p := range required {
			args = append(args, "-o", p)
		}
		err = classify(s.opts.place(), parent, s.opts.run(ctx, "zfs", append(args, s.parent)...))
	} else if err == nil && found[propStore].own() == "" {
		err = s.adopt(ctx, found)
	}
	if err != nil {
		return err
	}
	kept := dataset(s.parent + "/" + keptName)
	_, err = s.opts.properties(ctx, kept, "type")
	if err = classify(s.opts.place(), kept, err); !errors.Is(err, store.ErrNotFound) {
		return err
	}
	if err := s.opts.step("create kept"); err != nil {
		return err
	}
	// Two copies: it is small, and what is needed to come back.
	return classify(s.opts.place(), kept, s.opts.run(ctx, "zfs", "create", "-o", "mountpoint=legacy", "-o", "copies=2", string(kept)))
}

// adopt makes a store of a dataset that someone made for it.
func (s *Store) adopt(ctx context.Context, found map[string]property) error {
	parent := dataset(s.parent)
	if kind := found["type"].value; kind != "filesystem" {
		return fmt.Errorf("%s: %w: it is a %s, not a file system", s.parent, ErrNotAStore, kind)
	}
	names, err := s.opts.names(ctx, parent, "1", "filesystem,volume,snapshot")
	if err != nil {
		return classify(s.opts.place(), parent, err)
	}
	for _, name := range names {
		if name != s.parent && name != s.parent+"/"+keptName {
			return fmt.Errorf("%s: %w: it holds %s; name a dataset that is empty or missing", s.parent, ErrNotAStore, name)
		}
	}
	if found["mounted"].value == "yes" {
		entries, err := os.ReadDir(found["mountpoint"].value)
		if err == nil && len(entries) > 0 {
			return fmt.Errorf("%s: %w: it has files in it (%s/%s); name a dataset that is empty or missing", s.parent, ErrNotAStore, found["mountpoint"].value, entries[0].Name())
		}
	}
	if err := s.opts.step("adopt the parent"); err != nil {
		return err
	}
	settings := append([]string{"set"}, required...)
	if found["compression"].source == "default" {
		settings = append(settings, "compression="+compression)
	}
	// The mark is set in the same transaction as what it promises.
	settings = append(settings, propStore+"="+layoutVersion, s.parent)
	return classify(s.opts.place(), parent, s.opts.run(ctx, "zfs", settings...))
}

// checkMarker returns the parent's GUID if it is a store.
func (s *Store) checkMarker(ctx context.Context) (guid string, err error) {
	parent := dataset(s.parent)
	found, err := s.opts.properties(ctx, parent, "guid,readonly,keystatus,"+propStore)
	if err != nil {
		err = classify(s.opts.place(), parent, err)
		if errors.Is(err, store.ErrNotFound) {
			err = fmt.Errorf("%w (was it renamed? `zfs list -o name,%s` shows where a store is; `sidus init` makes one)", err, propStore)
		}
		return "", err
	}
	switch version := found[propStore].own(); version {
	case layoutVersion:
	case "":
		return "", fmt.Errorf("%s: %w: it has no property %s; `sidus init` makes a store", s.parent, ErrNotAStore, propStore)
	default:
		return "", fmt.Errorf("%s: the store was made by a newer Sidus (%s=%s): use that", s.parent, propStore, version)
	}
	if found["keystatus"].value == "unavailable" {
		s.opts.Log.WithField("dataset", s.parent).Warn("the key of the dataset is not loaded: nothing in it can be read until then (zfs load-key)")
	}
	return found["guid"].value, nil
}

// Parent is the name of the parent dataset.
func (s *Store) Parent() string { return s.parent }

// Close implements store.Store. A pool stays imported: other processes may use
// it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mounts > 0 {
		return fmt.Errorf("%s: %w: %d mounts were not given back", s.opts.place(), store.ErrInUse, s.mounts)
	}
	if s.kept == nil {
		return nil
	}
	err := s.kept.Release()
	s.kept = nil
	return err
}

// Detach closes the store and exports the pool of its file; a pool that is not
// the store's own stays. ErrInUse if something in it is mounted.
func (s *Store) Detach(ctx context.Context) error {
	if err := s.Close(); err != nil {
		return err
	}
	if err := s.points.Sweep(); err != nil {
		return err
	}
	if s.opts.File == "" {
		return nil
	}
	return s.opts.exportPool(ctx, s.parent)
}
