package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"sidus/image"
)

func snapshotCommand() *cli.Command {
	return &cli.Command{
		Name:      "snapshot",
		Usage:     "keep what the head of a tree holds now",
		ArgsUsage: "TREE [NAME]",
		Description: describe("Takes a snapshot: read-only for ever, complete, so that it can be promoted. It gets the next number,\n"+
			"and NAME beside it if one is given. It takes the same time whatever the size of the tree.",
			"sidus snapshot debian --message 'gcc 13 added'", "sidus snapshot debian before-upgrade"),
		Flags: changes(waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			snapshot, err := s.manager.Snapshot(ctx, args[0], nil, c.Bool("wait"), image.SnapshotOptions{Name: args[1], Complete: true})
			if err != nil {
				return err
			}
			return print(c, snapshot, func(w io.Writer) {
				fmt.Fprintf(w, "took %s (%s)\n", snapshot.Ref(), snapshot.ID)
			})
		}),
	}
}
