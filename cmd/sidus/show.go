package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/image"
)

func showCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "all about a tree or a snapshot",
		ArgsUsage: "TREE|TREE@SNAP",
		Description: describe("Shows a tree (where its head starts from, what changed in it since) or a snapshot (its ID, where it\n"+
			"comes from, who needs it).", "sidus show debian", "sidus show debian@latest"),
		Flags: reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if strings.Contains(args[0], "@") {
				return showSnapshot(ctx, c, s, args[0])
			}
			tree, err := s.manager.Tree(ctx, args[0])
			if err == nil {
				return showTree(ctx, c, s, tree)
			}
			if _, lookup := s.manager.Resolve(ctx, args[0]); lookup == nil {
				return showSnapshot(ctx, c, s, args[0]) // an ID
			}
			return err
		}),
	}
}

// maxShownChanges is how many changes of a head are listed.
const maxShownChanges = 20

func showTree(ctx context.Context, c *cli.Context, s *site, tree image.Tree) error {
	snapshots, err := s.manager.Snapshots(ctx, tree)
	if err != nil {
		return err
	}
	changes, err := s.manager.TreeChanges(ctx, tree, maxShownChanges+1)
	var lost *image.LostError
	if err != nil && !errors.As(err, &lost) {
		return err
	}
	base := "nothing"
	if tree.Base != "" {
		from, err := s.manager.SnapshotRecord(ctx, tree.Base)
		if err != nil {
			return err
		}
		base = from.Ref()
	}
	value := map[string]any{"tree": tree, "starts_from": base, "snapshots": snapshots, "changes": changes}
	return print(c, value, func(w io.Writer) {
		fmt.Fprintf(w, "tree        %s\nid          %s\nmade        %s\nhead        starts from %s\nsnapshots   %d\n", tree.Name, tree.ID, when(tree.Created), base, len(snapshots))
		if lost != nil {
			fmt.Fprintf(w, "changes     cannot be told: %s\n", lost)
			return
		}
		if len(changes) == 0 {
			fmt.Fprintf(w, "changes     none: the head is what the snapshot holds\n")
			return
		}
		fmt.Fprintf(w, "changes     the head holds what no snapshot does (`sidus snapshot %s` keeps it):\n", tree.Name)
		for i, change := range changes {
			if i == maxShownChanges {
				fmt.Fprintf(w, "            and more\n")
				break
			}
			fmt.Fprintf(w, "            %s\n", change)
		}
	})
}

func showSnapshot(ctx context.Context, c *cli.Context, s *site, reference string) error {
	snapshot, err := s.manager.Resolve(ctx, reference)
	if err != nil {
		return err
	}
	var needs []image.Need
	err = s.catalog.View(ctx, func(tx *sql.Tx) error {
		needs, err = s.manager.Needs(tx, snapshot.ID)
		return err
	})
	if err != nil {
		return err
	}
	parent := "-"
	if snapshot.Parent != "" {
		if p, err := s.manager.SnapshotRecord(ctx, snapshot.Parent); err == nil {
			parent = p.Ref()
		}
	}
	return print(c, map[string]any{"snapshot": snapshot, "needed_by": needs}, func(w io.Writer) {
		fmt.Fprintf(w, "snapshot    %s\nid          %s\n", snapshot.Ref(), snapshot.ID)
		for _, line := range [][2]string{{"name", snapshot.Name}, {"phase", snapshot.Phase}, {"from", snapshot.Recipe}, {"parent", parent},
			{"complete", yesNo(snapshot.Complete)}, {"made", when(snapshot.Created) + " by " + snapshot.Author}, {"message", snapshot.Message}} {
			if line[1] != "" {
				fmt.Fprintf(w, "%-11s %s\n", line[0], line[1])
			}
		}
		for i, need := range needs {
			label := "needed by"
			if i > 0 {
				label = ""
			}
			fmt.Fprintf(w, "%-11s %s\n", label, need.Text)
		}
	})
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no: a step of a build, which cannot be promoted"
}
