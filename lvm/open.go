package lvm

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sidus/image/store"
	"sidus/image/store/backend"
	"sidus/image/store/mountpoint"
	"sidus/image/tool"
)

// place is where a store is, as LVM sees it.
type place struct {
	opts   Options
	group  string
	pool   string
	device string // the loop device; "" if the volume group is not the store's own
}

// Store is a store in LVM. It implements store.Store and what not every store can
// do: see the interfaces below.
type Store struct {
	place
	points *mountpoint.Table
	chunk  int64 // bytes

	mu     sync.Mutex
	kept   *mountpoint.Held // the mount of kept, once it was needed
	mounts int              // mounts that were not given back
	// groupSeen is when the volume group's metadata was last seen to have
	// plenty of space.
	groupSeen time.Time
}

var (
	_ store.Store     = (*Store)(nil)
	_ store.Keeper    = (*Store)(nil)
	_ store.Waiter    = (*Store)(nil)
	_ store.Collector = (*Store)(nil)
)

// Init makes a store, or opens the one that is there. A loop file that is
// missing is made. ErrNotAStore if something else is there.
func Init(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	made := false
	if o.File != "" {
		if made, err = o.makeFile(ctx); err != nil {
			return nil, err
		}
	}
	s, err := o.open(ctx, true)
	if err != nil && made {
		if cleanErr := o.removeFile(context.WithoutCancel(ctx)); cleanErr != nil {
			o.Log.WithError(cleanErr).Warn("what was begun stays behind")
		}
	}
	return s, err
}

// Open opens a store that Init has made, and attaches its loop file if it is
// not attached. ErrNotFound if the pool or file is missing, ErrNotAStore if it
// holds something else, ErrUnavailable if it cannot be used now.
func Open(ctx context.Context, o Options) (*Store, error) {
	o, err := o.normal()
	if err != nil {
		return nil, err
	}
	return o.open(ctx, false)
}

func (o Options) open(ctx context.Context, init bool) (_ *Store, err error) {
	p := place{opts: o}
	if o.File != "" {
		attached, err := o.attach(ctx)
		if err != nil {
			return nil, err
		}
		p = *attached
	} else {
		p.group, p.pool, _ = splitThinPool(o.ThinPool)
	}
	s := &Store{place: p}
	uuid, marked, err := s.checkPool(ctx)
	if err != nil {
		return nil, err
	}
	if !marked {
		if !init {
			return nil, fmt.Errorf("%s/%s: %w: it has no tag %s%s; `sidus init` makes a store", s.group, s.pool, ErrNotAStore, tagStore, layoutVersion)
		}
		if err := s.refuseSecond(ctx); err != nil {
			return nil, err
		}
	}
	if err := s.activatePool(ctx); err != nil {
		return nil, err
	}
	if s.points, err = mountpoint.New(filepath.Join(o.RunDir, "lvm-"+uuid), s.unmounted); err != nil {
		return nil, err
	}
	if err := s.points.Sweep(); err != nil {
		o.Log.WithError(err).Warn("what a killed process left mounted stays mounted")
	}
	if !init {
		return s, nil
	}
	undo := backend.Undo{Log: o.Log}
	defer func() { undo.Unwind(&err) }()
	if !marked {
		if err := s.mark(ctx, &undo); err != nil {
			return nil, err
		}
	}
	if err := s.layOut(ctx); err != nil {
		return nil, err
	}
	return s, nil
}

// unmounted gives the device of something back that is not mounted any more.
func (s *Store) unmounted(point string) error {
	name, ok := lvOfPoint(point)
	if !ok {
		return nil
	}
	return s.deactivate(context.Background(), name)
}

const poolColumns = "lv_name,segtype,lv_uuid,lv_tags,lv_health_status,vg_permissions,vg_exported,vg_missing_pv_count"

// checkPool looks whether the thin pool is there and healthy, and whether it is
// marked as a store. It returns the pool's UUID.
func (s *Store) checkPool(ctx context.Context) (uuid string, marked bool, err error) {
	what := s.group + "/" + s.pool
	rows, err := s.report(ctx, "lvs", poolColumns, what)
	if err != nil {
		return "", false, s.explainPool(ctx, err)
	}
	if len(rows) == 0 {
		return "", false, fmt.Errorf("%s: %w", what, store.ErrNotFound)
	}
	pool := rows[0]
	if kind := pool["segtype"]; kind != "thin-pool" {
		return "", false, fmt.Errorf("%s: %w: it is a %s volume, not a thin pool (lvcreate --type thin-pool -L SIZE -n NAME %s makes one)", what, ErrNotAStore, kind, s.group)
	}
	if health := pool["lv_health_status"]; health != "" {
		return "", false, fmt.Errorf("%s: %w: the thin pool is not healthy: %s (lvs -a -o+lv_health_status %s; lvmthin(7) says how to repair it)", what, store.ErrUnavailable, health, s.group)
	}
	if missing, _ := pool.number("vg_missing_pv_count"); missing > 0 {
		s.opts.Log.WithField("group", s.group).Warnf("%d disks of the volume group are missing (pvs)", missing)
	}
	version := pool.mark()
	if pool["vg_permissions"] == "read-only" { // LVM activates nothing in it
		return "", false, fmt.Errorf("%s: %w: the volume group is read-only: `vgcfgbackup -f FILE %[3]s`, \"WRITE\" in its status in that file, and `vgcfgrestore --force -f FILE %[3]s` change that", what, store.ErrUnavailable, s.group)
	}
	if version != "" && version != layoutVersion {
		return "", false, fmt.Errorf("%s: the store was made by a newer Sidus (tag %s%s): use that", what, tagStore, version)
	}
	return pool["lv_uuid"], version != "", nil
}

// mark is the version of the layout that a thin pool is marked with; "" if it is
// no store.
func (r row) mark() string {
	for tag := range strings.SplitSeq(r["lv_tags"], ",") {
		if version, ok := strings.CutPrefix(tag, tagStore); ok {
			return version
		}
	}
	return ""
}

// refuseSecond returns ErrExists if another thin pool of the volume group is a
// store: the two would share names.
func (s *Store) refuseSecond(ctx context.Context) error {
	other, err := s.otherStore(ctx)
	if err != nil || other == "" {
		return err
	}
	return fmt.Errorf("%s/%s: %w: the volume group has a store already, in %s/%s, and has room for one: use that one (--thin-pool %s/%s), or a thin pool in another volume group (vgcreate --metadatasize 64m NAME DISK)",
		s.group, s.pool, store.ErrExists, s.group, other, s.group, other)
}

// otherStore names another thin pool of the volume group that is a store, or has
// volumes of one; "" if there is none.
func (s *Store) otherStore(ctx context.Context) (string, error) {
	rows, err := s.report(ctx, "lvs", poolColumns+",pool_lv", s.group)
	if err != nil {
		return "", classify(s.opts.place(), "", err)
	}
	for _, r := range rows {
		if r["lv_name"] != s.pool && r.mark() != "" {
			return r["lv_name"], nil
		}
	}
	for _, r := range rows {
		if _, ours := parseLV(r["lv_name"]); (ours || r["lv_name"] == string(keptLV)) && r["pool_lv"] != s.pool {
			return r["pool_lv"], nil
		}
	}
	return "", nil
}

// mark marks the thin pool as a store; undo takes that back.
func (s *Store) mark(ctx context.Context, undo *backend.Undo) error {
	if err := s.opts.step("mark the pool"); err != nil {
		return err
	}
	what, tag := s.group+"/"+s.pool, tagStore+layoutVersion
	ctx = context.WithoutCancel(ctx)
	if _, err := s.lvm(ctx, "lvchange", "--addtag", tag, what); err != nil {
		return classify(s.opts.place(), lv(s.pool), err)
	}
	undo.Add(func() error {
		_, err := s.lvm(ctx, "lvchange", "--deltag", tag, what)
		return err
	})
	return nil
}

// explainPool is classify for a pool that LVM does not show, with a way out.
func (s *Store) explainPool(ctx context.Context, err error) error {
	err = classify(s.opts.place(), lv(s.pool), err)
	switch {
	case errors.Is(err, tool.ErrNotInstalled), errors.Is(err, ErrNoKernelSupport):
	case errors.Is(err, store.ErrNotFound):
		if other, otherErr := s.otherStore(ctx); otherErr == nil && other != "" {
			return fmt.Errorf("%w (the store of this volume group is %[2]s/%[3]s: was it renamed? lvrename %[2]s %[3]s %[4]s gives it its name back)", err, s.group, other, s.pool)
		}
		return fmt.Errorf("%w (is there a thin pool in the volume group? lvs %s shows it; lvcreate --type thin-pool -L SIZE -n %s %s makes one)", err, s.group, s.pool, s.group)
	case strings.Contains(tool.StderrOf(err), "is exported"):
		return fmt.Errorf("%w (vgimport %s brings the volume group back to this machine)", err, s.group)
	case strings.Contains(tool.StderrOf(err), "not found"):
		return fmt.Errorf("%w: %w (vgs shows the volume groups that are there)", store.ErrNotFound, err)
	}
	return err
}

// activatePool makes sure that the pool is active, and learns its chunk size.
func (s *Store) activatePool(ctx context.Context) error {
	text, err := s.askPool(ctx, "table")
	if err != nil {
		if _, err := s.lvm(ctx, "lvchange", "--activate", "y", s.group+"/"+s.pool); err != nil {
			return classify(s.opts.place(), lv(s.pool), err)
		}
		if text, err = s.askPool(ctx, "table"); err != nil {
			return err
		}
	}
	s.chunk, err = parseChunk(text)
	return err
}

// askPool asks the device mapper for the table or status of the thin pool. LVM
// has it under a name of its own once there are thin volumes, and before under
// the pool's.
func (s *Store) askPool(ctx context.Context, command string) (text string, err error) {
	name := mapperName(s.group, s.pool)
	for _, device := range []string{name + "-tpool", name} {
		out, runErr := s.opts.output(ctx, "dmsetup", command, "--target", "thin-pool", device)
		if runErr == nil && len(out) > 0 {
			return string(out), nil
		}
		err = errors.Join(err, runErr)
	}
	if err == nil {
		err = errors.New("it is not active")
	}
	return "", fmt.Errorf("%s: %w: %w", s.opts.place(), store.ErrUnavailable, err)
}

// keptSize is the size of the volume of kept files, in bytes.
const keptSize = 1 << 30

// layOut makes what belongs in a new store.
func (s *Store) layOut(ctx context.Context) error {
	found, err := s.lookUp(ctx, keptLV)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return err
	case !found.has("lv_tags", tagNew):
		return nil
	default: // an Init that was cut
		if err := s.remove(ctx, keptLV); err != nil {
			return err
		}
	}
	return s.makeVolume(ctx, keptLV, keptPoint, Ext4, keptSize)
}

// Close implements store.Store. The pool stays active: other processes may use
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

// Detach closes the store and gives its loop device back; a volume group that
// is not the store's own stays. ErrInUse if something in it is mounted.
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
	return s.deactivateGroup(ctx)
}
