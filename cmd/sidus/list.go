package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/dustin/go-humanize"
	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/store"
)

type treeSummary struct {
	image.Tree
	Snapshots int             `json:"snapshots"`
	Latest    *image.Snapshot `json:"latest,omitempty"` // the newest complete one
	Channels  []string        `json:"channels"`
}

type listing struct {
	Trees []treeSummary `json:"trees"`
	Usage store.Usage   `json:"usage"`
}

func listCommand() *cli.Command {
	return &cli.Command{
		Name:        "list",
		Aliases:     []string{"ls"},
		Usage:       "the trees, and how full the store is",
		Description: describe("Lists the trees with their newest complete snapshot and the channels that point to them.", "sidus list", "sidus list --json"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			l, err := summarize(ctx, s)
			if err != nil {
				return err
			}
			return print(c, l, func(w io.Writer) {
				var rows [][]string
				for _, t := range l.Trees {
					newest := "-"
					if t.Latest != nil {
						newest = fmt.Sprintf("%s (%s)", t.Latest.Ref(), ago(t.Latest.Created))
					}
					rows = append(rows, []string{t.Name, fmt.Sprint(t.Snapshots), newest, dash(strings.Join(t.Channels, ", "))})
				}
				table(w, []string{"TREE", "SNAPSHOTS", "LATEST", "CHANNELS"}, rows)
				fmt.Fprintf(w, "\nstore: %s used, %s can be written\n", humanize.IBytes(uint64(l.Usage.Used)), humanize.IBytes(uint64(max(0, l.Usage.Available))))
			})
		}),
	}
}

func summarize(ctx context.Context, s *site) (listing, error) {
	l := listing{Trees: []treeSummary{}}
	trees, err := s.manager.Trees(ctx)
	if err != nil {
		return l, err
	}
	channels, err := s.manager.Channels(ctx)
	if err != nil {
		return l, err
	}
	for _, t := range trees {
		snapshots, err := s.manager.Snapshots(ctx, t)
		if err != nil {
			return l, err
		}
		summary := treeSummary{Tree: t, Snapshots: len(snapshots), Channels: []string{}}
		for i := range snapshots {
			if snapshots[i].Complete {
				summary.Latest = &snapshots[i]
			}
		}
		for _, channel := range channels {
			if channel.Snapshot.TreeID == t.ID {
				summary.Channels = append(summary.Channels, fmt.Sprintf("%s→@%d", channel.Name, channel.Snapshot.Number))
			}
		}
		l.Trees = append(l.Trees, summary)
	}
	l.Usage, err = s.manager.Usage(ctx)
	return l, err
}
