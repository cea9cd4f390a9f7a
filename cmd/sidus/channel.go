package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/store"
)

func channelCommand() *cli.Command {
	return &cli.Command{
		Name:  "channel",
		Usage: "what nodes boot: list, history, rollback, set, delete",
		Description: "A channel is a name that points to one snapshot; nodes follow it. `sidus promote` moves it\n" +
			"forward, `sidus channel rollback` back.",
		Subcommands: []*cli.Command{
			channelListCommand(), channelHistoryCommand(), channelRollbackCommand(), channelSetCommand(), channelDeleteCommand(),
		},
	}
}

func channelListCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"},
		Usage:       "the channels and what they point to",
		Description: describe("Lists the channels.", "sidus channel list"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			channels, err := s.manager.Channels(ctx)
			if err != nil {
				return err
			}
			if channels == nil {
				channels = []image.Channel{}
			}
			return print(c, channels, func(w io.Writer) {
				var rows [][]string
				for _, channel := range channels {
					rows = append(rows, []string{channel.Name, channel.Snapshot.Ref(), string(channel.Snapshot.ID[:8]), when(channel.Changed),
						fmt.Sprint(channel.Nodes), fmt.Sprint(channel.Keep)})
				}
				table(w, []string{"CHANNEL", "SNAPSHOT", "ID", "SINCE", "NODES", "KEEPS"}, rows)
			})
		}),
	}
}

func channelHistoryCommand() *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "what a channel pointed to, and who moved it",
		ArgsUsage: "CHANNEL",
		Description: describe("The newest first. > marks what it points to now, + what is protected for a rollback.",
			"sidus channel history default"),
		Flags: reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			history, err := s.manager.ChannelHistory(ctx, args[0])
			if err != nil {
				return err
			}
			return print(c, history, func(w io.Writer) {
				var rows [][]string
				for _, move := range history {
					mark := " "
					if move.Current {
						mark = ">"
					} else if move.Kept {
						mark = "+"
					}
					rows = append(rows, []string{mark, when(move.At), move.Action, dash(move.Ref), move.Actor, move.Message})
				}
				table(w, []string{"", "WHEN", "WHAT", "SNAPSHOT", "BY", "MESSAGE"}, rows)
			})
		}),
	}
}

func channelRollbackCommand() *cli.Command {
	return &cli.Command{
		Name:      "rollback",
		Usage:     "point a channel to what it pointed to before",
		ArgsUsage: "CHANNEL",
		Description: describe("The way back at 3 a.m.: nodes that boot from now on get the earlier snapshot; running ones keep what\n"+
			"they have. Done twice it goes back by two. --to chooses.",
			"sidus channel rollback default", "sidus channel rollback default --to debian@12"),
		Flags: changes(&cli.StringFlag{Name: "to", Usage: "a complete snapshot `TREE@SNAP`"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			var to store.SnapshotID
			if reference := c.String("to"); reference != "" {
				snapshot, err := s.manager.Resolve(ctx, reference)
				if err != nil {
					return err
				}
				to = snapshot.ID
			}
			channel, before, err := s.manager.RollbackChannel(ctx, args[0], to)
			if err != nil {
				return err
			}
			return print(c, map[string]any{"channel": channel, "before": before}, func(w io.Writer) { printMove(w, channel, before) })
		}),
	}
}

func channelSetCommand() *cli.Command {
	return &cli.Command{
		Name:      "set",
		Usage:     "how much of its history a channel keeps",
		ArgsUsage: "CHANNEL",
		Description: describe("The last N snapshots that a channel pointed to cannot be deleted, so that there is always a way back.",
			"sidus channel set default --keep 10"),
		Flags: changes(&cli.IntFlag{Name: "keep", Usage: "protect the last `N` snapshots"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if n := c.Int("keep"); !c.IsSet("keep") || n < 0 || n > 1000 {
				return usagef("say how many with --keep N: 0 to 1000")
			}
			if err := s.manager.SetChannelKeep(ctx, args[0], c.Int("keep")); err != nil {
				return err
			}
			return print(c, map[string]any{"channel": args[0], "keep": c.Int("keep")}, func(w io.Writer) {
				fmt.Fprintf(w, "channel %s keeps its last %d snapshots\n", args[0], c.Int("keep"))
			})
		}),
	}
}

func channelDeleteCommand() *cli.Command {
	return &cli.Command{
		Name: "delete", Aliases: []string{"rm"},
		Usage:     "delete a channel",
		ArgsUsage: "CHANNEL",
		Description: describe("Refused while nodes or networks follow it. The snapshots stay; they are not protected by it any more.",
			"sidus channel delete canary --yes"),
		Flags: changes(yesFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			channel, err := s.manager.Channel(ctx, args[0])
			if err != nil {
				return err
			}
			if err := confirm(c, fmt.Sprintf("delete the channel %s, which points to %s", channel.Name, channel.Snapshot.Ref())); err != nil {
				return err
			}
			if err := s.manager.DeleteChannel(ctx, args[0]); err != nil {
				return err
			}
			return print(c, map[string]string{"deleted": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "deleted the channel %s\n", args[0]) })
		}),
	}
}

// warnOfMissingChannel says that nothing was promoted to a channel yet that
// somebody is to follow: it may come later, or the name is mistyped.
func warnOfMissingChannel(ctx context.Context, s *site, channel *string) {
	if channel == nil || *channel == "" {
		return
	}
	if _, err := s.manager.Channel(ctx, *channel); errors.Is(err, store.ErrNotFound) {
		logrus.Warnf("there is no channel %s yet, so there is nothing to boot: `sidus promote TREE@SNAP --channel %[1]s` makes it", *channel)
	}
}
