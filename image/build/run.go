package build

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"sidus/image/build/sandbox"
	"sidus/image/store"
)

// phaseRun is one phase while it runs.
type phaseRun struct {
	b            *Builder
	phase        *Phase
	packages     *packageCache
	index, total int
	logPath      string // "" if there is no log

	out  *output
	root string // where the workspace is mounted
}

func (r *phaseRun) event(e Event) Event {
	e.Phase, e.Kind, e.Index, e.Total = r.phase.Name, r.phase.Kind, r.index, r.total
	return e
}

func (r *phaseRun) say(text string) {
	r.b.o.Progress.Event(r.event(Event{Type: EventActivity, Text: text}))
}

// do runs the phase in the workspace. Whatever happens, nothing of it runs or
// is mounted afterwards.
func (r *phaseRun) do(ctx context.Context, work Workspace) error {
	r.out = &output{activity: r.say}
	if r.logPath != "" {
		log, err := os.OpenFile(r.logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
		if err != nil {
			return fmt.Errorf("log of phase %s: %w", r.phase.Name, err)
		}
		defer log.Close()
		r.out.log = log
	}
	err := r.mounted(ctx, work)
	r.out.end()
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if err = classify(err); r.out.noSpace && !errors.Is(err, store.ErrNoSpace) {
		err = fmt.Errorf("%w: %w", store.ErrNoSpace, err)
	} else if r.out.mirror != "" && !errors.Is(err, ErrMirror) {
		err = fmt.Errorf("%w: %s (%w)", ErrMirror, clipTo(r.out.mirror, 200), err)
	}
	r.b.log.WithError(err).WithField("phase", r.phase.Name).Debug("the phase failed")
	return &PhaseError{Phase: r.phase.Name, Err: err, Tail: r.out.tail, Log: r.logPath}
}

func (r *phaseRun) mounted(ctx context.Context, work Workspace) (err error) {
	mount, err := work.Mount(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	r.root = mount.Path()
	switch r.phase.Kind {
	case KindBase:
		return r.base(ctx)
	case KindPackages:
		return r.install(ctx, r.phase.Packages)
	case KindPurge:
		return r.purge(ctx)
	case KindFiles:
		return copyFiles(ctx, r.phase, r.root, r.say)
	case KindRun:
		return r.script(ctx)
	case KindBoot:
		return r.boot(ctx)
	}
	return fmt.Errorf("no such kind of phase: %s", r.phase.Kind)
}

// inTree runs a program inside the tree. Packages that it downloads are kept
// if it ends well, but for those of scripts: apt checks no more than the size
// of what it finds in its cache, so only apt itself may put something there.
func (r *phaseRun) inTree(ctx context.Context, o sandbox.Options) error {
	o.Root = r.root
	o.Stdout, o.Stderr = r.out, r.out
	o.NoSync = true
	tree, err := openTree(r.root)
	if err != nil {
		return err
	}
	defer tree.close()
	cached := false
	if tree.isFolder("etc/apt") {
		if o.Files == nil {
			o.Files = make(map[string]string)
		}
		o.Files[aptConfigPath] = aptConfig
		o.Env = append(o.Env, "APT_CONFIG="+aptConfigPath)
		for target, source := range map[string]string{
			"/var/cache/apt/archives": r.packages.archives(),
			"/var/lib/apt/lists":      r.packages.lists(),
		} {
			if tree.isFolder(target[1:]) {
				o.Binds = append(o.Binds, sandbox.Bind{Source: source, Target: target})
				cached = true
			}
		}
	}
	if cached {
		if err := r.packages.lend(); err != nil {
			return err
		}
	}
	r.out.note("$ " + clipTo(strings.Join(o.Args, " "), 2000))
	if err := sandbox.Run(ctx, o); err != nil {
		var ended *sandbox.ExitError
		if errors.As(err, &ended) {
			return fmt.Errorf("%s: %w", path.Base(o.Args[0]), err)
		}
		return err
	}
	if cached && r.phase.Kind != KindRun {
		return r.packages.keep()
	}
	return nil
}

// script is a run phase.
func (r *phaseRun) script(ctx context.Context) error {
	run := r.phase.Run
	const name = "/run/sidus/script"
	args := []string{"/bin/sh", "-e"}
	if run.Shell != "" {
		args = strings.Fields(run.Shell)
		switch path.Base(args[0]) {
		case "sh", "bash", "dash", "ash", "ksh", "zsh":
			args = append(args, "-e")
		}
	}
	o := sandbox.Options{
		Args:      append(args, name),
		Files:     map[string]string{name: run.Script},
		NoNetwork: run.Offline,
	}
	for key, value := range run.Env {
		o.Env = append(o.Env, key+"="+value)
	}
	return r.inTree(ctx, o)
}
