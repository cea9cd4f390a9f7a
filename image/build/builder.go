package build

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image"
	"sidus/image/store"
)

// Options of a Builder.
type Options struct {
	// CacheDir keeps downloaded packages and what is known of files and keys
	// between builds. Empty: nothing is kept.
	CacheDir string
	// LogDir gets a folder with one log for each phase. Empty: no logs.
	LogDir string
	// Progress is told what happens. Nil: nobody is.
	Progress Progress
	// Log gets what only an administrator of the server cares for. Nil:
	// discarded.
	Log logrus.FieldLogger
	// Boot makes trees bootable. Recipes with a boot phase need it.
	Boot BootTools
	// Mirrors are the archives for recipes that name none. Nil: those of this
	// machine's /etc/apt.
	Mirrors *Mirrors
}

// BootTools connect the boot phase to the package that knows how a node boots.
type BootTools struct {
	// Digest changes when what Install writes does. It goes into the keys of
	// boot phases.
	Digest string
	// Install writes the initramfs hook, the agent and its units into a tree.
	Install func(root string, o BootOptions) error
	// Prepare takes out of a tree what only one machine may have.
	Prepare func(root string) error
}

// BootOptions is what a recipe says about the initrd.
type BootOptions struct {
	Modules string // initramfs-tools' MODULES; "" is the installer's choice
}

// Request says what to build.
type Request struct {
	Recipe *Recipe
	// Rebuild names the first phase that runs whatever snapshots exist.
	Rebuild string
	// Discard allows to replace a head that holds changes no recipe made; the
	// old head stays in the log as a snapshot.
	Discard bool
	// Message is noted with the snapshots.
	Message string
}

// Result says what a build did.
type Result struct {
	Plan     *Plan         `json:"plan"`
	UpToDate bool          `json:"up_to_date"`     // nothing had to be done
	Snapshot Snapshot      `json:"snapshot"`       // the complete snapshot of the tree as the recipe says it
	Saved    Snapshot      `json:"saved,omitzero"` // of the head that was discarded; ID "" if none was
	Elapsed  time.Duration `json:"elapsed_ns"`
}

// ErrHeadChanged is wrapped by ChangedError.
var ErrHeadChanged = errors.New("the head holds changes that no recipe made")

// ChangedError says what in the head a build would lose.
type ChangedError struct {
	Changes []string
	More    bool // there are more than these
}

func (e *ChangedError) Error() string {
	text := ErrHeadChanged.Error() + ":\n  " + strings.Join(e.Changes, "\n  ")
	if e.More {
		text += "\n  …"
	}
	return text + "\nTake a snapshot of it first, or give --discard to replace it (it stays in the log)"
}

func (e *ChangedError) Unwrap() error { return ErrHeadChanged }

// PhaseError says which phase failed, and why.
type PhaseError struct {
	Phase string
	Err   error
	Tail  []string // the end of what it said
	Log   string   // the file that has all of it; "" if there is none
}

func (e *PhaseError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "phase %s: %v", e.Phase, e.Err)
	if len(e.Tail) > 0 {
		b.WriteString("\n  | " + strings.Join(e.Tail, "\n  | "))
	}
	if e.Log != "" {
		b.WriteString("\nThe whole log: " + e.Log)
	}
	return b.String()
}

func (e *PhaseError) Unwrap() error { return e.Err }

// Builder carries plans out.
type Builder struct {
	o   Options
	log logrus.FieldLogger
}

// New returns a Builder.
func New(o Options) *Builder {
	b := &Builder{o: o, log: o.Log}
	if b.log == nil {
		quiet := logrus.New()
		quiet.SetLevel(logrus.PanicLevel)
		b.log = quiet
	}
	if b.o.Progress == nil {
		b.o.Progress = Quiet{}
	}
	return b
}

// Plan says what Build would do. It changes nothing but the cache of digests.
func (b *Builder) Plan(ctx context.Context, head Head, r Request) (*Plan, error) {
	plan, _, err := b.plan(ctx, head, r)
	return plan, err
}

func (b *Builder) plan(ctx context.Context, head Head, r Request) (*Plan, []Inputs, error) {
	digests := openDigests(b.o.CacheDir)
	inputs, err := gather(ctx, r.Recipe, b.o.Boot.Digest, digests)
	if err != nil {
		return nil, nil, err
	}
	digests.save()
	for _, p := range r.Recipe.Phases {
		if p.Kind == KindBoot && (b.o.Boot.Install == nil || b.o.Boot.Prepare == nil) {
			return nil, nil, &RecipeError{File: p.File, Line: p.Line, Text: "a boot phase cannot be built here: nothing to install"}
		}
	}
	keys := make([]string, len(inputs))
	parent := ""
	for i, in := range inputs {
		parent = in.Key(parent)
		keys[i] = parent
	}
	var known Known
	if known.Base, err = head.Base(ctx); err != nil {
		return nil, nil, err
	}
	if known.ByKey, err = head.Known(ctx, keys); err != nil {
		return nil, nil, err
	}
	newest, err := head.Newest(ctx)
	if err != nil {
		return nil, nil, err
	}
	known.Before = make(map[string]Past, len(newest))
	for phase, s := range newest {
		known.Before[phase] = b.recall(s.Key)
	}
	plan, err := NewPlan(r.Recipe, inputs, known, r.Rebuild)
	return plan, inputs, err
}

// Build brings the tree to what the recipe says.
func (b *Builder) Build(ctx context.Context, head Head, r Request) (result Result, err error) {
	started := time.Now()
	defer func() {
		result.Elapsed = time.Since(started)
		done := Event{Type: EventDone, Elapsed: result.Elapsed, UpToDate: result.UpToDate, Snapshot: result.Snapshot.Ref}
		if err != nil {
			done.Type, done.Text = EventFailed, err.Error()
		}
		b.o.Progress.Event(done)
	}()
	plan, inputs, err := b.plan(ctx, head, r)
	if err != nil {
		return result, err
	}
	result.Plan = plan
	b.o.Progress.Event(Event{Type: EventPlan, Plan: plan, Total: len(plan.Phases)})
	if plan.UpToDate() {
		result.UpToDate, result.Snapshot = true, plan.Final
		return result, nil
	}
	if result.Saved, err = b.guardHead(ctx, head, r.Discard); err != nil {
		return result, err
	}
	work, err := head.Work(ctx, plan.From.ID)
	if err != nil {
		return result, err
	}
	// What fails below must not leave the workspace, nor hide why it failed.
	defer func() {
		if e := work.Discard(ctx); e != nil {
			err = errors.Join(err, fmt.Errorf("remove the build's workspace: %w", e))
		}
	}()
	switch {
	case plan.Move:
		result.Snapshot = plan.Final
	case plan.Seal:
		last := plan.Phases[len(plan.Phases)-1]
		result.Snapshot, err = work.Snapshot(ctx, image.SnapshotOptions{
			Phase: last.Name, Key: last.Key, Recipe: r.Recipe.File, Message: r.Message, Complete: true,
		})
	default:
		result.Snapshot, err = b.runPhases(ctx, work, r, plan, inputs)
	}
	if err != nil {
		return result, err
	}
	return result, work.Adopt(ctx)
}

// guardHead makes sure that no work of a person is lost.
func (b *Builder) guardHead(ctx context.Context, head Head, discard bool) (Snapshot, error) {
	const limit = 20
	changes, err := head.Changes(ctx, limit+1)
	if err != nil || len(changes) == 0 {
		return Snapshot{}, err
	}
	if !discard {
		e := &ChangedError{Changes: changes}
		if len(changes) > limit {
			e.Changes, e.More = changes[:limit], true
		}
		return Snapshot{}, e
	}
	return head.Save(ctx, "the head before a build with --discard")
}

func (b *Builder) runPhases(ctx context.Context, work Workspace, r Request, plan *Plan, inputs []Inputs) (last Snapshot, err error) {
	packages, err := openPackageCache(b.o.CacheDir)
	if err != nil {
		return last, err
	}
	defer func() { err = errors.Join(err, packages.close()) }()
	logs, err := b.makeLogDir(r.Recipe)
	if err != nil {
		return last, err
	}
	parent := ""
	for i, planned := range plan.Phases {
		if !planned.Run {
			parent = planned.Key
			continue
		}
		run := &phaseRun{
			b: b, phase: &r.Recipe.Phases[i], packages: packages,
			index: i + 1, total: len(plan.Phases),
		}
		if logs != "" {
			run.logPath = filepath.Join(logs, fmt.Sprintf("%02d-%s.log", i+1, planned.Name))
		}
		began := time.Now()
		b.o.Progress.Event(run.event(Event{Type: EventPhase, Text: planned.Reason}))
		if err := run.do(ctx, work); err != nil {
			return last, err
		}
		b.remember(planned.Key, parent, inputs[i])
		last, err = work.Snapshot(ctx, image.SnapshotOptions{
			Phase: planned.Name, Key: planned.Key, Recipe: r.Recipe.File, Message: r.Message,
			Complete: i == len(plan.Phases)-1,
		})
		if err != nil {
			return last, &PhaseError{Phase: planned.Name, Err: fmt.Errorf("take the snapshot: %w", err), Log: run.logPath}
		}
		b.o.Progress.Event(run.event(Event{Type: EventPhaseEnd, Elapsed: time.Since(began), Snapshot: last.Ref}))
		parent = planned.Key
	}
	return last, nil
}

func (b *Builder) makeLogDir(r *Recipe) (string, error) {
	if b.o.LogDir == "" {
		return "", nil
	}
	name := r.Tree
	if name == "" {
		name = "build"
	}
	if err := os.MkdirAll(b.o.LogDir, 0o755); err != nil {
		return "", fmt.Errorf("logs: %w", err)
	}
	stamp := time.Now().Format("20060102-150405")
	for n := 1; ; n++ {
		dir := filepath.Join(b.o.LogDir, fmt.Sprintf("%s-%s", stamp, name))
		if n > 1 {
			dir += fmt.Sprintf(".%d", n)
		}
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			return dir, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", fmt.Errorf("logs: %w", err)
		}
	}
}

// past is what the cache keeps of a key, to say later why another differs.
type past struct {
	Parent string `json:"parent"`
	Inputs Inputs `json:"inputs"`
}

func (b *Builder) remember(key, parent string, inputs Inputs) {
	if b.o.CacheDir == "" {
		return
	}
	text, err := json.Marshal(past{parent, inputs})
	if err == nil {
		err = writeAtomic(filepath.Join(b.o.CacheDir, "keys", key+".json"), text)
	}
	if err != nil {
		b.log.WithError(err).Debug("cannot note what a phase was made of")
	}
}

func (b *Builder) recall(key string) Past {
	known := Past{Key: key}
	if b.o.CacheDir == "" || key == "" {
		return known
	}
	text, err := os.ReadFile(filepath.Join(b.o.CacheDir, "keys", filepath.Base(key)+".json"))
	if err != nil {
		return known
	}
	var p past
	if json.Unmarshal(text, &p) == nil {
		known.Parent, known.Inputs = p.Parent, &p.Inputs
	}
	return known
}

// classify gives a failure the store's name for a full disk.
func classify(err error) error {
	if (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) && !errors.Is(err, store.ErrNoSpace) {
		return fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	}
	return err
}
