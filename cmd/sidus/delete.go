package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"
)

func deleteCommand() *cli.Command {
	return &cli.Command{
		Name:      "delete",
		Aliases:   []string{"rm"},
		Usage:     "delete a snapshot, or a tree with all its snapshots",
		ArgsUsage: "TREE|TREE@SNAP",
		Description: describe("Refused while a channel, a channel's kept history, a branch, a pinned node or a running node needs\n"+
			"what would go; the message says who.", "sidus delete debian@3", "sidus delete old-tree --yes"),
		Flags: changes(yesFlag(), waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if strings.Contains(args[0], "@") {
				return deleteSnapshot(ctx, c, s, args[0])
			}
			tree, err := s.manager.Tree(ctx, args[0])
			if err != nil {
				return err
			}
			snapshots, err := s.manager.Snapshots(ctx, tree)
			if err != nil {
				return err
			}
			if err := confirm(c, fmt.Sprintf("delete the tree %s with its head and %s", tree.Name, english.Plural(len(snapshots), "snapshot", ""))); err != nil {
				return err
			}
			if err := s.manager.DeleteTree(ctx, tree.Name, c.Bool("wait")); err != nil {
				return err
			}
			return print(c, map[string]string{"deleted": tree.Name}, func(w io.Writer) { fmt.Fprintf(w, "deleted the tree %s\n", tree.Name) })
		}),
	}
}

func deleteSnapshot(ctx context.Context, c *cli.Context, s *site, reference string) error {
	snapshot, err := s.manager.Resolve(ctx, reference)
	if err != nil {
		return err
	}
	if err := confirm(c, "delete "+snapshot.Ref()); err != nil {
		return err
	}
	if err := s.manager.DeleteSnapshot(ctx, snapshot.ID); err != nil {
		return err
	}
	return print(c, map[string]string{"deleted": snapshot.Ref()}, func(w io.Writer) { fmt.Fprintf(w, "deleted %s\n", snapshot.Ref()) })
}
