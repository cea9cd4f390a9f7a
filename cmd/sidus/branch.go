package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

func branchCommand() *cli.Command {
	return &cli.Command{
		Name:      "branch",
		Aliases:   []string{"clone"},
		Usage:     "make a new tree that starts from a snapshot, at once",
		ArgsUsage: "TREE@SNAP NEW",
		Description: describe("Makes the tree NEW, whose head is a clone of the snapshot: nothing is copied, and the two trees do not\n"+
			"see each other's changes.", "sidus branch debian@latest gpu", "sidus branch debian@14 debian-test"),
		Flags: changes(propertyFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			from, err := s.manager.Resolve(ctx, args[0])
			if err != nil {
				return err
			}
			manager, err := withProperties(c, s)
			if err != nil {
				return err
			}
			tree, err := manager.Branch(ctx, from.ID, args[1])
			if err != nil {
				return err
			}
			return print(c, tree, func(w io.Writer) { fmt.Fprintf(w, "%s starts from %s\n", tree.Name, from.Ref()) })
		}),
	}
}
