package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/catalog"
)

func logCommand() *cli.Command {
	return &cli.Command{
		Name:      "log",
		Usage:     "the snapshots of a tree, or who did what",
		ArgsUsage: "[TREE]",
		Description: describe("With a tree: its snapshots, the newest first. A star marks complete ones, which can be promoted.\n"+
			"With --events, or without a tree: who did what, when and why.",
			"sidus log debian", "sidus log --limit 50", "sidus log debian --events --json"),
		Flags: reads(
			&cli.BoolFlag{Name: "events", Usage: "what was done to the tree, instead of its snapshots"},
			&cli.IntFlag{Name: "limit", Aliases: []string{"n"}, Usage: "at most `N` entries; 0 is all"},
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if args[0] == "" {
				return logEvents(ctx, c, s, "")
			}
			tree, err := s.manager.Tree(ctx, args[0])
			if err != nil {
				return err
			}
			if c.Bool("events") {
				return logEvents(ctx, c, s, tree.ID)
			}
			return logSnapshots(ctx, c, s, tree)
		}),
	}
}

func logSnapshots(ctx context.Context, c *cli.Context, s *site, tree image.Tree) error {
	snapshots, err := s.manager.Snapshots(ctx, tree)
	if err != nil {
		return err
	}
	channels, err := s.manager.Channels(ctx)
	if err != nil {
		return err
	}
	slices.Reverse(snapshots)
	if n := c.Int("limit"); n > 0 && len(snapshots) > n {
		snapshots = snapshots[:n]
	}
	return print(c, snapshots, func(w io.Writer) {
		var rows [][]string
		for _, snapshot := range snapshots {
			mark := ""
			if snapshot.Complete {
				mark = "*"
			}
			var pointing []string
			for _, channel := range channels {
				if channel.Snapshot.ID == snapshot.ID {
					pointing = append(pointing, channel.Name)
				}
			}
			what := snapshot.Phase
			if what == "" {
				what = dash(snapshot.Name)
			}
			rows = append(rows, []string{snapshot.Ref() + mark, string(snapshot.ID[:8]), what, when(snapshot.Created), snapshot.Author,
				dash(strings.Join(pointing, ",")), snapshot.Message})
		}
		table(w, []string{"SNAPSHOT", "ID", "PHASE", "MADE", "BY", "CHANNELS", "MESSAGE"}, rows)
		if origin, isBranch, err := s.manager.Origin(ctx, tree); err == nil && isBranch {
			fmt.Fprintf(w, "\nthe head starts from %s\n", origin.Ref())
		}
	})
}

func logEvents(ctx context.Context, c *cli.Context, s *site, object string) error {
	limit := c.Int("limit")
	if !c.IsSet("limit") {
		limit = 30
	}
	events, err := s.catalog.Events(ctx, object, limit)
	if err != nil {
		return err
	}
	if events == nil {
		events = []catalog.Event{}
	}
	return print(c, events, func(w io.Writer) {
		for _, e := range events {
			fmt.Fprintf(w, "%s  %s: %s", when(e.At), e.Actor, e.Text)
			if e.Message != "" {
				fmt.Fprintf(w, " (%s)", e.Message)
			}
			fmt.Fprintln(w)
		}
	})
}
