package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/boot/initramfs"
	"sidus/image"
	"sidus/image/build"
	"sidus/image/scratch"
	"sidus/image/store"
)

func buildCommand() *cli.Command {
	return &cli.Command{
		Name:      "build",
		Usage:     "build a tree from a recipe, phase by phase",
		ArgsUsage: "RECIPE|TREE",
		Description: describe("Runs the phases that need to run, each in its own sandbox, and takes a snapshot after each; phases whose\n"+
			"inputs have not changed are not run again. The last snapshot is complete and can be promoted. A phase\n"+
			"that fails leaves the tree as it was. A head with changes that no recipe made is not overwritten unless\n"+
			"--discard is given; then what it held stays in the log.\n\n"+
			"What a tree was built from is kept with it: the recipe, the files that it copies (16 MiB at most) and the\n"+
			"values of --set. `sidus build TREE` builds from that, also from a backup and on another server.",
			"sidus build recipes/demo.yaml",
			"sidus build node.yaml --tree node-test --set suite=trixie",
			"sidus build node.yaml --rebuild packages    # ask the mirror again",
			"sidus build node.yaml --plan",
			"sidus build node --rebuild packages    # from the recipe that is kept with the tree node"),
		Flags: changes(
			&cli.StringFlag{Name: "tree", Usage: "the tree `NAME`, instead of the recipe's; it is made if it is not there"},
			&cli.StringSliceFlag{Name: "set", Usage: "a value for a variable of the recipe: `NAME=VALUE`; may be repeated"},
			&cli.StringFlag{Name: "rebuild", Usage: "run from this `PHASE` on, whatever is cached"},
			&cli.BoolFlag{Name: "discard", Usage: "build although the head holds changes that no recipe made"},
			&cli.BoolFlag{Name: "plan", Usage: "say what would run, and why; do nothing"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "no progress"},
			waitFlag(),
			propertyFlag(),
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			return buildTree(ctx, c, s, args[0])
		}),
	}
}

// buildSource is what is built from.
type buildSource struct {
	recipe *build.Recipe
	tree   string          // what it builds unless --tree says otherwise; "" if it does not say
	folder *scratch.Folder // nil, or where the recipe lies
}

func (b buildSource) close() error {
	if b.folder == nil {
		return nil
	}
	return b.folder.Remove()
}

// findRecipe loads what name means: a file, or else the recipe that is kept
// with the tree of that name.
func findRecipe(ctx context.Context, s *site, name string, variables map[string]string) (b buildSource, err error) {
	info, statErr := os.Stat(name)
	if statErr == nil && !info.IsDir() || image.ValidateName("tree", name) != nil {
		if b.recipe, err = build.Load(name, variables); err == nil {
			b.tree = b.recipe.Tree
		}
		return b, err
	}
	tree, err := s.manager.Tree(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return b, fmt.Errorf("a recipe in the file %s, or a tree of that name: %w", name, store.ErrNotFound)
	} else if err != nil {
		return b, err
	}
	kept, err := s.manager.KeptRecipe(tree)
	if errors.Is(err, store.ErrNotFound) {
		return b, fmt.Errorf("%w, and there is no file %s: build it from its file once%s", err, name, recipeOnRecord(ctx, s, tree))
	} else if err != nil {
		return b, err
	}
	defer kept.Close()
	if b.folder, err = s.layout.MakeScratch("recipe"); err != nil {
		return b, err
	}
	if b.recipe, err = build.LoadKept(kept, b.folder.Path(), variables); err != nil {
		return b, errors.Join(fmt.Errorf("tree %s: %w", name, err), b.close())
	}
	b.tree = name
	return b, nil
}

// recipeOnRecord says which file a tree was built from, if that is known.
func recipeOnRecord(ctx context.Context, s *site, tree image.Tree) string {
	list, err := s.manager.Snapshots(ctx, tree)
	if err != nil {
		return ""
	}
	for _, snapshot := range slices.Backward(list) {
		if snapshot.Phase != "" && snapshot.Recipe != "" {
			return " (it was built from " + snapshot.Recipe + ")"
		}
	}
	return ""
}

// keepRecipe keeps with a tree what it was built from. A failure is told: the
// tree is built.
func keepRecipe(s *site, lock *image.HeadLock, packed []byte, packErr error) {
	err := packErr
	if err != nil {
		packed = nil // what is kept now is not what the tree was built from
	}
	if err = errors.Join(err, s.manager.KeepRecipe(lock, packed)); err != nil {
		logrus.WithError(err).Warnf("the recipe is not kept with %s: `sidus build %s` wants the file", lock.Tree, lock.Tree)
	}
}

func buildTree(ctx context.Context, c *cli.Context, s *site, name string) (err error) {
	variables, err := parseVariables(c.StringSlice("set"))
	if err != nil {
		return err
	}
	source, err := findRecipe(ctx, s, name, variables)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.close()) }()
	recipe, tree := source.recipe, c.String("tree")
	if tree == "" {
		tree = source.tree
	}
	if tree == "" {
		return usagef("%s names no tree: give --tree NAME", name)
	}
	manager, err := withProperties(c, s)
	if err != nil {
		return err
	}
	made := false
	if _, err := s.manager.Tree(ctx, tree); errors.Is(err, store.ErrNotFound) {
		if _, err := manager.CreateTree(ctx, tree); err != nil {
			return err
		}
		made = true
	} else if err != nil {
		return err
	} else if manager != s.manager {
		return usagef("--property is for a new tree, and %s exists: `sidus set %s NAME=VALUE` changes it", tree, tree)
	}
	// A tree that was made for this build goes again if nothing came of it.
	defer func() {
		if made && (err != nil || c.Bool("plan")) {
			err = errors.Join(err, dropEmptyTree(context.WithoutCancel(ctx), s, tree))
		}
	}()
	lock, err := s.manager.LockHead(ctx, tree, c.Bool("wait"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()

	progress, closeProgress := chooseProgress(c)
	defer closeProgress()
	builder := build.New(build.Options{
		CacheDir: s.layout.Cache(), LogDir: s.layout.Logs(), Progress: progress, Log: logrus.StandardLogger(), Boot: bootTools(),
	})
	head := &build.ManagerHead{Manager: s.manager, Tree: tree, Lock: lock}
	request := build.Request{Recipe: recipe, Rebuild: c.String("rebuild"), Discard: c.Bool("discard"), Message: s.message}
	if c.Bool("plan") {
		plan, err := builder.Plan(ctx, head, request)
		if err != nil {
			return err
		}
		return print(c, plan, func(w io.Writer) { fmt.Fprint(w, plan) })
	}
	// Now, since files may change while phases run.
	packed, packErr := recipe.Pack(ctx)
	ctx, stop := store.GuardSpace(ctx, s.store, guardEvery)
	defer stop()
	result, err := builder.Build(ctx, head, request)
	closeProgress()
	if err != nil {
		if cause := context.Cause(ctx); errors.Is(cause, store.ErrNoSpace) && !errors.Is(err, store.ErrNoSpace) {
			return errors.Join(cause, err)
		}
		return err
	}
	keepRecipe(s, lock, packed, packErr)
	return print(c, result, func(w io.Writer) { fmt.Fprint(w, buildSentence(result)) })
}

func parseVariables(settings []string) (map[string]string, error) {
	variables := map[string]string{}
	for _, setting := range settings {
		name, value, ok := strings.Cut(setting, "=")
		if !ok || name == "" {
			return nil, usagef("--set %q: it is written NAME=VALUE", setting)
		}
		variables[name] = value
	}
	return variables, nil
}

// dropEmptyTree deletes a tree that has no snapshot.
func dropEmptyTree(ctx context.Context, s *site, name string) error {
	tree, err := s.manager.Tree(ctx, name)
	if err != nil {
		return err
	}
	snapshots, err := s.manager.Snapshots(ctx, tree)
	if err != nil || len(snapshots) > 0 {
		return err
	}
	return s.manager.DeleteTree(ctx, name, true)
}

func chooseProgress(c *cli.Context) (build.Progress, func()) {
	switch {
	case c.Bool("quiet"):
		return build.Quiet{}, func() {}
	case c.Bool("json"):
		return build.JSON{Out: os.Stderr}, func() {}
	}
	return build.NewProgress(os.Stderr)
}

// bootTools joins the boot phase to what nodes boot with.
func bootTools() build.BootTools {
	return build.BootTools{
		Digest: initramfs.Digest(),
		Install: func(root string, o build.BootOptions) error {
			return initramfs.Install(root, initramfs.Options{Modules: o.Modules})
		},
		Prepare: initramfs.Prepare,
	}
}

func buildSentence(r build.Result) string {
	text := ""
	if r.Saved.ID != "" {
		text = fmt.Sprintf("what the head held is saved as %s\n", r.Saved.Ref)
	}
	elapsed := r.Elapsed.Round(10 * time.Millisecond)
	if r.UpToDate {
		return text + fmt.Sprintf("nothing to do: %s is what the recipe says (%s)\n", r.Snapshot.Ref, elapsed)
	}
	return text + fmt.Sprintf("built %s in %s; `sidus promote %s` makes nodes boot it\n", r.Snapshot.Ref, elapsed, r.Snapshot.Ref)
}

func isRecipeError(err error) bool {
	var recipe *build.RecipeError
	return errors.As(err, &recipe)
}
