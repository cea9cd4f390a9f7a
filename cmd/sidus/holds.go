package main

import (
	"context"
	"fmt"
	"io"

	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"

	"sidus/image/store"
)

func holdsCommand() *cli.Command {
	return &cli.Command{
		Name:  "holds",
		Usage: "which snapshots stay for the sake of a transfer",
		Description: describe("Of each tree the newest snapshot that a target of `sidus replicate` has stays, since the next difference\n"+
			"begins there, and so does what a command works with. `gc` leaves them alone, and `delete` refuses. A hold\n"+
			"ends with its reason: when a newer snapshot has arrived, when the target is removed, when the process\n"+
			"ends. `holds release` ends those of a target earlier; it then gets whole snapshots.",
			"sidus holds", "sidus holds release second"),
		Flags:       reads(),
		Subcommands: []*cli.Command{holdsRelease()},
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			holds, err := s.manager.Holds(ctx)
			if err != nil {
				return err
			}
			return print(c, holds, func(w io.Writer) {
				var rows [][]string
				for _, h := range holds {
					rows = append(rows, []string{h.Name, h.Ref, string(h.Snapshot), ago(h.Since), h.Text})
				}
				table(w, []string{"HOLD", "SNAPSHOT", "ID", "SINCE", "WHY"}, rows)
			})
		}),
	}
}

func holdsRelease() *cli.Command {
	return &cli.Command{
		Name: "release", Usage: "let snapshots go that stay for the sake of a target", ArgsUsage: "TARGET [TREE@SNAP]",
		Description: describe("Ends the holds of a target, or that of one snapshot. The next `sidus replicate` sends whole snapshots where\n"+
			"the base is gone by then, and holds again.",
			"sidus holds release second", "sidus holds release second debian@14"),
		Flags: append(reads(), messageFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			id := store.SnapshotID("")
			if args[1] != "" {
				snapshot, err := s.manager.Resolve(ctx, args[1])
				if err != nil {
					return err
				}
				id = snapshot.ID
			}
			n, err := s.manager.ReleaseHolds(ctx, args[0], id)
			if err != nil {
				return err
			}
			return print(c, map[string]any{"released": n}, func(w io.Writer) { fmt.Fprintf(w, "released %s\n", english.Plural(n, "snapshot", "")) })
		}),
	}
}
