package main

import (
	"context"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"sidus/image"
)

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make a tree from something that exists",
		ArgsUsage: "TREE",
		Description: describe("Makes a tree, with one complete snapshot, from a directory or from an archive of tar (compressed or\n"+
			"not; - is standard input). Owners, modes, times, links, extended attributes, ACLs, capabilities and\n"+
			"holes are kept. Until all of it is there, nothing of it shows.",
			"sidus import debian --dir /srv/nfsroot/debian",
			"sidus import node --tar node.tar.zst --message 'from the old server'"),
		Flags: changes(
			&cli.StringFlag{Name: "dir", Usage: "copy the directory `DIR`"},
			&cli.StringFlag{Name: "tar", Usage: "unpack the archive `FILE`"},
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			dir, tar := c.String("dir"), c.String("tar")
			if (dir == "") == (tar == "") {
				return usagef("give one of --dir and --tar")
			}
			update, finish := fileProgress("import " + args[0])
			defer finish()
			options := image.ImportOptions{Source: dir + tar}
			if dir != "" {
				options.Fill, err = image.FillFromDirectory(dir, update)
			} else {
				options.Fill, err = image.FillFromTar(tar, update)
			}
			if err != nil {
				return err
			}
			var snapshot image.Snapshot
			err = guardSpace(ctx, s.store, func(ctx context.Context) error {
				snapshot, err = s.manager.Import(ctx, args[0], options)
				return err
			})
			if err != nil {
				return err
			}
			finish()
			return print(c, snapshot, func(w io.Writer) { fmt.Fprintf(w, "imported %s\n", snapshot.Ref()) })
		}),
	}
}
