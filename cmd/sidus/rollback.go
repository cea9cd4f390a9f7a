package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

func rollbackCommand() *cli.Command {
	return &cli.Command{
		Name:      "rollback",
		Usage:     "start the head of a tree again from a snapshot",
		ArgsUsage: "TREE@SNAP",
		Description: describe("The head becomes a clone of the snapshot. Later snapshots stay and can be gone back to; what the head\n"+
			"held and no snapshot holds is saved in one first, so that a rollback can be undone. TREE@base is what the\n"+
			"head last was equal to, of a branch without snapshots what it was made from. What nodes boot does not\n"+
			"change: `sidus channel rollback` does that.", "sidus rollback debian@12", "sidus rollback gpu@base"),
		Flags: changes(waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			to, err := s.manager.Resolve(ctx, args[0])
			if err != nil {
				return err
			}
			tree, _, isRef := strings.Cut(args[0], "@")
			if !isRef {
				tree = to.Tree
			}
			report, err := s.manager.Rollback(ctx, tree, to.ID, c.Bool("wait"))
			if err != nil {
				return err
			}
			return print(c, report, func(w io.Writer) { fmt.Fprint(w, report) })
		}),
	}
}
