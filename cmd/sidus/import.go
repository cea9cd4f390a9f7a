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
		ArgsUsage: "[TREE]",
		Description: describe("Makes a tree, with one complete snapshot, from a directory or from an archive of tar (compressed or\n"+
			"not; - is standard input). Owners, modes, times, links, extended attributes, ACLs, capabilities and\n"+
			"holes are kept. Until all of it is there, nothing of it shows.\n\n"+
			"--stream takes what `sidus export` wrote: the snapshot keeps its ID, its number where that is free, and its\n"+
			"lineage, and goes into its tree, which is made if it is not here (as TREE, if a name is given). A stream that\n"+
			"is cut off, altered, foreign or of a newer version is refused. The kernel parses the native kinds: take one\n"+
			"from nobody whom you do not trust, or say --portable-only.",
			"sidus import debian --dir /srv/nfsroot/debian",
			"sidus import node --tar node.tar.zst --message 'from the old server'",
			"sidus import --stream debian-14.stream",
			"sidus import big --tar big.tar --property file-system=xfs --property size=200G"),
		Flags: changes(
			&cli.StringFlag{Name: "dir", Usage: "copy the directory `DIR`"},
			&cli.StringFlag{Name: "tar", Usage: "unpack the archive `FILE`"},
			&cli.StringFlag{Name: "stream", Usage: "take the stream `FILE`; - is standard input"},
			&cli.BoolFlag{Name: "portable-only", Usage: "--stream: refuse the native kinds"},
			propertyFlag(),
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			dir, tar := c.String("dir"), c.String("tar")
			given := 0
			for _, name := range []string{"dir", "tar", "stream"} {
				if c.String(name) != "" {
					given++
				}
			}
			if given != 1 {
				return usagef("give one of --dir, --tar and --stream")
			}
			if path := c.String("stream"); path != "" {
				properties, err := parseProperties(c.StringSlice("property"))
				if err != nil {
					return err
				}
				return importStream(ctx, c, s, path, args[0], properties)
			}
			if args[0] == "" {
				return usagef("give the TREE a name: sidus import TREE --dir DIR")
			}
			manager, err := withProperties(c, s)
			if err != nil {
				return err
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
				snapshot, err = manager.Import(ctx, args[0], options)
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
