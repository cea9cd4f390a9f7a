package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"
)

func resizeCommand() *cli.Command {
	return &cli.Command{
		Name:      "resize",
		Usage:     "make a tree's file system larger (LVM)",
		ArgsUsage: "TREE SIZE",
		Description: describe(
			"Makes the head of a tree SIZE large, or with a \"+\" that much larger, also while somebody works in\n"+
				"it. SIZE is a number of bytes, with K, M, G or T. What is larger costs nothing until it is written.\n"+
				"A head also grows by itself, before it is full. It can only grow. Snapshots keep the size that it had,\n"+
				"and so does what starts from them. Trees in a btrfs or ZFS store have no size of their own.",
			"sidus resize debian 60G",
			"sidus resize debian +10G"),
		Flags: changes(),
		Action: func(c *cli.Context) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			text, more := strings.CutPrefix(args[1], "+")
			size, err := parseBytes(text)
			if err != nil {
				return usagef("SIZE %s: %v", args[1], err)
			}
			return siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
				was, is, err := s.manager.Resize(ctx, args[0], size, more)
				if err != nil {
					return err
				}
				return print(c, map[string]any{"tree": args[0], "was": was, "is": is}, func(w io.Writer) {
					fmt.Fprintf(w, "%s has %s now (it had %s), %s of it are free\n", args[0],
						humanize.IBytes(uint64(is.Size)), humanize.IBytes(uint64(was.Size)), humanize.IBytes(uint64(is.Free)))
				})
			})(c)
		},
	}
}
