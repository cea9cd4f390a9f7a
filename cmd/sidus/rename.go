package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"
)

func renameCommand() *cli.Command {
	return &cli.Command{
		Name:        "rename",
		Usage:       "give a tree another name",
		ArgsUsage:   "TREE NEW",
		Description: describe("Changes the name only: snapshots, channels and running nodes are not touched.", "sidus rename debian debian12"),
		Flags:       changes(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if err := s.manager.Rename(ctx, args[0], args[1]); err != nil {
				return err
			}
			return print(c, map[string]string{"name": args[1]}, func(w io.Writer) { fmt.Fprintf(w, "%s is now %s\n", args[0], args[1]) })
		}),
	}
}
