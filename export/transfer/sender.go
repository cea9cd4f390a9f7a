package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/export/replicate"
	"sidus/export/stream"
	"sidus/image"
	"sidus/image/store"
)

// Dial opens a connection to a receiver.
type Dial func(ctx context.Context) (io.ReadWriteCloser, error)

// Sender sends what a server holds.
type Sender struct {
	Manager *image.Manager
	Store   store.Store
	Layout  image.Layout
	Program string             // for the other side: "sidus 1.2"
	Log     logrus.FieldLogger // required
	// Level is how hard is compressed; 0: stream.DefaultLevel.
	Level stream.Level
	// Rate bounds what is sent, in bytes per second; 0: nothing does.
	Rate int64
	// Portable sends no native streams.
	Portable bool
	// Decrypt lets snapshots that are encrypted in the store leave it in the
	// clear, where the other side takes portable streams only.
	Decrypt bool
	// Progress is called while a snapshot is sent, and with a zero Progress
	// when that is done; nil means no calls.
	Progress func(ref string, p stream.Progress)
	// Discard lets a replica drop what only it has, after it was asked; nil
	// makes that a conflict.
	Discard func(conflicts error) error

	hello *hello  // what is said instead of the truth; for tests
	quiet silence // other than usual; for tests
}

// Report says what was sent.
type Report struct {
	Host      string             `json:"host"`
	Snapshots []Sent             `json:"snapshots"` // in their order
	Moved     []string           `json:"channels"`  // channels of the receiver that have moved
	Bytes     int64              `json:"bytes"`     // sent over the connection
	Seconds   float64            `json:"seconds"`
	AsOf      time.Time          `json:"as_of,omitzero"` // the moment that the receiver holds now
	Held      []store.SnapshotID `json:"-"`              // what the receiver holds now
	// PortableOnly says that a replica takes portable streams only, and so only
	// complete snapshots.
	PortableOnly bool `json:"portable_only,omitempty"`
}

// Run is what a replication means for its target.
func (r Report) Run() image.TargetRun {
	return image.TargetRun{AsOf: r.AsOf, Held: r.Held, Sent: r.Bytes, PortableOnly: r.PortableOnly}
}

// Sent is a snapshot that was sent.
type Sent struct {
	Ref  string           `json:"ref"`
	ID   store.SnapshotID `json:"id"`
	Base store.SnapshotID `json:"base,omitempty"`
	Kind stream.Kind      `json:"kind"`
}

func (s *Sender) greeting(mode Mode, i image.Inventory) hello {
	h := hello{Min: minVersion, Max: maxVersion, Program: s.Program, Host: hostname(), Mode: mode, Site: i.Site.ID, Epoch: i.Site.Epoch, Role: i.Site.Role,
		Can: []string{keepsAlive}}
	if s.hello != nil {
		h.Min, h.Max, h.Can = s.hello.Min, s.hello.Max, s.hello.Can
	}
	if mode == Replicate {
		h.Channels = i.Channels
	}
	return h
}

// open connects, and notes if another server took over.
func (s *Sender) open(ctx context.Context, dial Dial, h hello) (*client, error) {
	rw, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	cl, err := connect(ctx, rw, h, s.Rate, s.quiet)
	var said *RemoteError
	if errors.As(err, &said) && errors.Is(err, ErrSuperseded) {
		err = errors.Join(err, s.Manager.Supersede(ctx, said.Host, said.Epoch))
	}
	return cl, err
}

// Send sends one snapshot to a server that writes itself. base is what the
// receiver has; nil: the newest ancestor that it has, if any.
func (s *Sender) Send(ctx context.Context, dial Dial, snapshot image.Snapshot, base *image.Snapshot, tree string) (report Report, err error) {
	begun := time.Now()
	ours, err := s.Manager.Inventory(ctx)
	if err != nil {
		return report, err
	}
	cl, err := s.open(ctx, dial, s.greeting(Send, ours))
	if err != nil {
		return report, err
	}
	defer func() {
		report.Host, report.Bytes, report.Seconds = cl.other.Host, cl.c.sent.Load(), time.Since(begun).Seconds()
		err = errors.Join(cl.failed(ctx, err), cl.close())
	}()
	baseID := store.SnapshotID("")
	if base != nil {
		baseID = base.ID
	} else {
		theirs, err := cl.inventory()
		if err != nil {
			return report, err
		}
		baseID = newestCommon(snapshot, ours, theirs)
	}
	uses := []store.SnapshotID{snapshot.ID}
	if baseID != "" {
		uses = append(uses, baseID)
	}
	release, err := s.Manager.HoldWhile(ctx, "send", uses)
	if err != nil {
		return report, err
	}
	defer release()
	sent, did, err := s.snapshot(ctx, cl, snapshot, baseID, tree, base != nil)
	if err == nil && !did {
		err = fmt.Errorf("snapshot %s: %s has it: %w", snapshot.Ref(), cl.other.Host, store.ErrExists)
	}
	if err == nil {
		report.Snapshots = append(report.Snapshots, sent)
	}
	return report, err
}

// newestCommon is the nearest ancestor that both have.
func newestCommon(s image.Snapshot, ours, theirs image.Inventory) store.SnapshotID {
	here, there := map[store.SnapshotID]image.Snapshot{}, map[store.SnapshotID]bool{}
	for _, s := range ours.Snapshots {
		here[s.ID] = s
	}
	for _, s := range theirs.Snapshots {
		there[s.ID] = s.Deleted.IsZero() && !s.Lost
	}
	for range ours.Snapshots {
		parent, ok := here[s.Parent]
		if !ok {
			break
		}
		if there[parent.ID] && parent.Deleted.IsZero() && !parent.Lost {
			return parent.ID
		}
		s = parent
	}
	return ""
}

// snapshot sends one snapshot: as a difference if the receiver can take that,
// else as a whole, unless the base was chosen by hand.
func (s *Sender) snapshot(ctx context.Context, cl *client, snapshot image.Snapshot, base store.SnapshotID, tree string, chosen bool) (sent Sent, did bool, err error) {
	kind := s.streamKind(cl)
	if kind == stream.Portable && base != "" {
		if chosen {
			return sent, false, fmt.Errorf("%w: for %s it is a portable stream, which is whole; leave --base out", stream.ErrKind, cl.other.Host)
		}
		base = ""
	}
	for {
		if kind == stream.Portable && !s.Decrypt {
			if err := s.Manager.RefuseClear(ctx, snapshot); err != nil {
				return sent, false, fmt.Errorf("a portable stream for %s: %w; --decrypt allows that", cl.other.Host, err)
			}
		}
		sent = Sent{Ref: snapshot.Ref(), ID: snapshot.ID, Base: base, Kind: kind}
		o := offer{Manifest: ManifestOf(snapshot, s.Program), Tree: tree}
		o.Manifest.Kind, o.Manifest.Base = kind, base
		did, err = cl.snapshot(ctx, o, func(ctx context.Context, w io.Writer) error { return s.export(ctx, w, o.Manifest) })
		if s.Progress != nil {
			s.Progress(snapshot.Ref(), stream.Progress{})
		}
		var said *RemoteError
		switch {
		case err == nil || !errors.As(err, &said) || chosen:
			return sent, did, err
		case errors.Is(err, store.ErrBaseUnusable) && base != "":
			s.Log.Infof("%s cannot use the base of %s: all of it is sent", cl.other.Host, snapshot.Ref())
			base = ""
		case errors.Is(err, stream.ErrKind) && kind != stream.Portable:
			s.Log.Infof("%s does not take %s streams: a portable one is sent", cl.other.Host, kind)
			kind, base = stream.Portable, ""
		default:
			return sent, did, err
		}
	}
}

// export writes the stream of a snapshot.
func (s *Sender) export(ctx context.Context, w io.Writer, m stream.Manifest) (err error) {
	source := stream.Source{Manifest: m}
	if m.Kind == stream.Portable {
		mount, mountErr := s.Manager.MountSnapshot(ctx, m.Snapshot)
		if mountErr != nil {
			return mountErr
		}
		defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
		source.Root, source.Manifest.Size = mount.Path(), stream.Estimate(ctx, mount.Path(), "")
	} else {
		if source.Manifest.Size, err = PayloadSize(ctx, s.Manager, m.Snapshot, m.Base); err != nil {
			return err
		}
		if source.Native, err = s.Store.(store.NativeSender).Send(ctx, m.Snapshot, m.Base); err != nil {
			return err
		}
	}
	ref := fmt.Sprintf("%s@%d", m.Tree, m.Number)
	_, err = stream.Export(ctx, w, source, stream.WriterOptions{Level: s.Level, Progress: func(p stream.Progress) {
		if s.Progress != nil {
			s.Progress(ref, p)
		}
	}})
	return err
}

// Replicate makes a replica hold what this server holds at this moment. It is
// refused, with a *image.ReadOnlyError, unless this is a primary; the error is
// of type replicate.Conflicts if the replica holds something else, and a
// *LostError if all was done that could be.
func (s *Sender) Replicate(ctx context.Context, dial Dial) (report Report, err error) {
	begun := time.Now()
	if err := s.Manager.Writable(ctx); err != nil {
		return report, err
	}
	folder, err := s.Layout.MakeScratch("replicate")
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, folder.Remove()) }()
	dir, asOf := folder.Path(), time.Now()
	copied := filepath.Join(dir, catalogName)
	if err := s.Manager.CopyCatalog(ctx, copied); err != nil {
		return report, err
	}
	c, err := openCopy(ctx, copied)
	if err != nil {
		return report, err
	}
	ours, err := image.InventoryOf(ctx, c)
	if err = errors.Join(err, c.Close()); err != nil {
		return report, err
	}
	if err := s.Manager.MarkLost(ctx, ours.Snapshots); err != nil {
		return report, err
	}
	cl, err := s.open(ctx, dial, s.greeting(Replicate, ours))
	if err != nil {
		return report, err
	}
	defer func() {
		report.Host, report.Bytes, report.Seconds = cl.other.Host, cl.c.sent.Load(), time.Since(begun).Seconds()
		err = errors.Join(cl.failed(ctx, err), cl.close())
	}()
	theirs, err := cl.inventory()
	if err != nil {
		return report, err
	}
	report.PortableOnly = s.streamKind(cl) == stream.Portable
	plan, err := s.plan(ctx, cl, ours, &theirs)
	if err != nil {
		return report, err
	}
	if err := s.carryOut(ctx, cl, plan, ours, &report); err != nil {
		return report, err
	}
	lost := lostOf(ours, plan, cl.other.Host)
	if lost != nil && len(lost.Channels) > 0 {
		return report, lost
	}
	if err := s.sendState(ctx, cl, dir, copied, asOf); err != nil {
		return report, err
	}
	report.AsOf = asOf
	gone := map[store.SnapshotID]bool{}
	for _, id := range plan.Gone {
		gone[id] = true
	}
	for _, snapshot := range theirs.Snapshots {
		if snapshot.Deleted.IsZero() && !snapshot.Lost && !gone[snapshot.ID] {
			report.Held = append(report.Held, snapshot.ID)
		}
	}
	for _, sent := range report.Snapshots {
		report.Held = append(report.Held, sent.ID)
	}
	if lost != nil {
		return report, lost
	}
	return report, nil
}

// LostError names snapshots that neither this server nor a replica has any
// more. Everything else was sent; the catalog only if no channel points to one
// of them.
type LostError struct {
	Host      string // the replica's
	Snapshots []image.Snapshot
	Channels  []string
}

func (e *LostError) Error() string {
	refs := make([]string, len(e.Snapshots))
	for i, s := range e.Snapshots {
		refs[i] = fmt.Sprintf("%s (%s)", s.Ref(), s.ID)
	}
	text := fmt.Sprintf("the store here has lost %s, and %s has no copy; all other snapshots are there. `sidus import --stream` brings back what was exported, `sidus delete` gives it up",
		strings.Join(refs, ", "), e.Host)
	if len(e.Channels) > 0 {
		text += fmt.Sprintf("; until the channels %s point to something else (`sidus promote`, `sidus channel rollback`) %s keeps the catalog that it has", strings.Join(e.Channels, ", "), e.Host)
	}
	return text
}

// Unwrap makes it one of store.ErrNotFound.
func (e *LostError) Unwrap() error { return store.ErrNotFound }

// lostOf is nil if nothing is lost.
func lostOf(ours image.Inventory, plan replicate.Plan, host string) *LostError {
	if len(plan.Lost) == 0 {
		return nil
	}
	e := &LostError{Host: host}
	for _, s := range ours.Snapshots {
		if slices.Contains(plan.Lost, s.ID) {
			e.Snapshots = append(e.Snapshots, s)
		}
	}
	for name, id := range ours.Channels {
		if slices.Contains(plan.Lost, id) {
			e.Channels = append(e.Channels, name)
		}
	}
	slices.Sort(e.Channels)
	return e
}

// streamKind is how snapshots are sent.
func (s *Sender) streamKind(cl *client) stream.Kind {
	sender, ok := s.Store.(store.NativeSender)
	if !ok || s.Portable || !cl.other.takes(stream.Kind(sender.SendKind())) {
		return stream.Portable
	}
	return stream.Kind(sender.SendKind())
}

// plan decides what is sent. If the replica has something that this server
// does not know, and Discard agrees, it is dropped there.
func (s *Sender) plan(ctx context.Context, cl *client, ours image.Inventory, theirs *image.Inventory) (replicate.Plan, error) {
	options := replicate.Options{}
	if s.streamKind(cl) == stream.Portable {
		// Steps of builds are small as differences only.
		options.Whole = true
		complete := map[store.SnapshotID]bool{}
		for _, snapshot := range ours.Snapshots {
			complete[snapshot.ID] = snapshot.Complete
		}
		options.Wanted = func(s replicate.Snapshot) bool { return complete[s.ID] }
	}
	plan, err := replicate.IncrementalPath(siteOf(ours), siteOf(*theirs), options)
	if err == nil || s.Discard == nil {
		return plan, err
	}
	d, kept := diverged(ours, *theirs)
	if len(d.Snapshots)+len(d.Trees) == 0 {
		return plan, err
	}
	if err := s.Discard(err); err != nil {
		return plan, err
	}
	if d.Booted, err = s.Manager.Booted(ctx); err != nil {
		return plan, err
	}
	if err := cl.ask(msgDrop, d, msgDone, &struct{}{}); err != nil {
		return plan, err
	}
	*theirs = kept
	return replicate.IncrementalPath(siteOf(ours), siteOf(kept), options)
}

// diverged finds what only the replica has, and what is left without it.
func diverged(ours, theirs image.Inventory) (d drop, kept image.Inventory) {
	known, trees := map[store.SnapshotID]bool{}, map[string]bool{}
	for _, s := range ours.Snapshots {
		known[s.ID], trees[s.TreeID] = true, true
	}
	for _, t := range ours.Trees {
		trees[t.ID] = true
	}
	for _, id := range ours.Gone {
		trees[id] = true
	}
	kept = image.Inventory{Site: theirs.Site, Gone: theirs.Gone, Channels: map[string]store.SnapshotID{}}
	for _, t := range theirs.Trees {
		if trees[t.ID] {
			kept.Trees = append(kept.Trees, t)
		} else {
			d.Trees = append(d.Trees, t.ID)
		}
	}
	for _, s := range theirs.Snapshots {
		if known[s.ID] || !s.Deleted.IsZero() {
			kept.Snapshots = append(kept.Snapshots, s)
		} else {
			d.Snapshots = append(d.Snapshots, s.ID)
		}
	}
	for name, id := range theirs.Channels {
		if known[id] {
			kept.Channels[name] = id
		}
	}
	return d, kept
}

// siteOf is an inventory as the planner wants it.
func siteOf(i image.Inventory) (site replicate.Site) {
	for _, t := range i.Trees {
		site.Trees = append(site.Trees, replicate.Tree{ID: t.ID, Name: t.Name})
	}
	// A tree that was deleted is known, and its name is free: no name is as
	// long as an ID with a blank.
	for _, id := range i.Gone {
		site.Trees = append(site.Trees, replicate.Tree{ID: id, Name: "deleted " + id})
	}
	for _, s := range i.Snapshots {
		site.Snapshots = append(site.Snapshots, replicate.Snapshot{ID: s.ID, Parent: s.Parent, Tree: s.TreeID, Number: s.Number, Deleted: !s.Deleted.IsZero(), Lost: s.Lost})
	}
	for name, id := range i.Channels {
		site.Channels = append(site.Channels, replicate.Channel{Name: name, Snapshot: id})
	}
	return site
}

// carryOut sends the snapshots of a plan.
func (s *Sender) carryOut(ctx context.Context, cl *client, plan replicate.Plan, ours image.Inventory, report *Report) error {
	known := map[store.SnapshotID]image.Snapshot{}
	for _, snapshot := range ours.Snapshots {
		known[snapshot.ID] = snapshot
	}
	var uses []store.SnapshotID
	for _, step := range plan.Steps {
		if send, ok := step.(replicate.Send); ok {
			uses = append(uses, send.Snapshot)
			if send.Base != "" {
				uses = append(uses, send.Base)
			}
		}
	}
	if len(uses) > 0 {
		release, err := s.Manager.HoldWhile(ctx, "replicate", uses)
		if err != nil {
			return fmt.Errorf("%w; it was deleted a moment ago: try again", err)
		}
		defer release()
	}
	for _, step := range plan.Steps {
		switch step := step.(type) {
		case replicate.Send:
			sent, did, err := s.snapshot(ctx, cl, known[step.Snapshot], step.Base, "", false)
			if err != nil {
				return fmt.Errorf("send %s: %w", known[step.Snapshot].Ref(), err)
			}
			if did {
				report.Snapshots = append(report.Snapshots, sent)
			}
		case replicate.Move:
			report.Moved = append(report.Moved, step.Channel) // with the catalog
		}
	}
	return nil
}

func (s *Sender) sendState(ctx context.Context, cl *client, dir, copied string, asOf time.Time) (err error) {
	st := state{AsOf: asOf}
	if st.Properties, err = s.Manager.PropertiesOfTrees(ctx); err != nil {
		return err
	}
	packed, err := os.OpenFile(filepath.Join(dir, "state.tar.zst"), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer packed.Close()
	st.Recipes = cl.other.can(takesRecipes)
	if !st.Recipes {
		s.Log.Debugf("%s does not take recipes: update sidus there", cl.other.Host)
	}
	if st.SHA256, err = packState(copied, s.Layout, st.Recipes, packed); err != nil {
		return err
	}
	if _, err := packed.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return cl.state(st, packed)
}
