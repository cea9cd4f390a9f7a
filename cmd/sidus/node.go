package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/boot/node"
	"sidus/image/store"
)

func nodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "node",
		Usage: "the machines that boot: add, list, show, set, update, delete",
		Description: "A node is known by the hardware address of the card that it boots with. Machines that nobody\n" +
			"added are listed when they first ask, and boot their network's channel.",
		Subcommands: []*cli.Command{nodeAddCommand(), nodeListCommand(), nodeShowCommand(), nodeSetCommand(), nodeUpdateCommand(), nodeDeleteCommand()},
	}
}

func nodeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "name", Usage: "the node's `NAME`, which becomes its host name"},
		&cli.StringFlag{Name: "channel", Usage: "the channel `NAME` that it follows; '' is its network's"},
		&cli.StringFlag{Name: "pin", Usage: "the snapshot `TREE@SNAP` that it boots whatever its channel says; '' ends that"},
		&cli.StringFlag{Name: "address", Usage: "a fixed `ADDRESS`; '' is one of the network's range"},
		&cli.StringFlag{Name: "args", Usage: "kernel arguments, after those of the network: `WORDS`"},
		&cli.StringFlag{Name: "group", Usage: "a label `NAME` that many nodes may have, to name them together; '' takes it away"},
	}
}

func nodeChange(ctx context.Context, c *cli.Context, s *site) (change node.NodeChange, err error) {
	change.Name, change.Channel, change.Args = textOption(c, "name"), textOption(c, "channel"), textOption(c, "args")
	change.Group = textOption(c, "group")
	if c.IsSet("pin") {
		var pin store.SnapshotID
		if reference := c.String("pin"); reference != "" {
			snapshot, err := s.manager.Resolve(ctx, reference)
			if err != nil {
				return change, err
			}
			pin = snapshot.ID
		}
		change.Pin = &pin
	}
	if c.IsSet("address") {
		change.Address, err = addressOption(c, "address")
	}
	return change, err
}

func nodeAddCommand() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "make a machine known", ArgsUsage: "MAC",
		Description: describe("Adds a node, or makes a machine known that asked to boot before.",
			"sidus node add 52:54:00:12:34:56 --name n1", "sidus node add 525400123457 --name gpu1 --channel gpu --args 'console=ttyS0'"),
		Flags: changes(nodeFlags()...),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			mac, err := node.ParseMAC(args[0])
			if err != nil {
				return err
			}
			change, err := nodeChange(ctx, c, s)
			if err != nil {
				return err
			}
			added, err := s.registry().AddNode(ctx, s.by(), mac, change)
			if err != nil {
				return err
			}
			warnOfMissingChannel(ctx, s, change.Channel)
			return print(c, added, func(w io.Writer) { fmt.Fprintf(w, "added node %s (%s)\n", added.Label(), added.MAC) })
		}),
	}
}

func nodeSetCommand() *cli.Command {
	return &cli.Command{
		Name: "set", Usage: "change a node", ArgsUsage: "NODE",
		Description: describe("Changes what is given, for a node named by its name or hardware address. It counts from its next boot on.",
			"sidus node set n1 --channel canary", "sidus node set n1 --pin debian@14", "sidus node set n1 --pin ''"),
		Flags: changes(nodeFlags()...),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			change, err := nodeChange(ctx, c, s)
			if err != nil {
				return err
			}
			if _, err := s.registry().SetNode(ctx, s.by(), args[0], change); err != nil {
				return err
			}
			warnOfMissingChannel(ctx, s, change.Channel)
			name := args[0]
			if change.Name != nil && *change.Name != "" {
				name = *change.Name
			}
			return showNode(ctx, c, s, name)
		}),
	}
}

func nodeListCommand() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "the nodes, and machines that asked to boot",
		Description: describe("Lists the nodes that were added, then the machines that asked to boot and that nobody has added.", "sidus node list", "sidus node list --group gpu"),
		Flags:       reads(&cli.StringFlag{Name: "group", Usage: "only nodes of the group `NAME`"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			statuses, err := s.registry().Status(ctx)
			if err != nil {
				return err
			}
			if group := c.String("group"); group != "" {
				statuses = slices.DeleteFunc(statuses, func(s node.Status) bool { return s.Node.Group != group })
			}
			nodes := make([]node.Node, len(statuses))
			for i, status := range statuses {
				nodes[i] = status.Node
			}
			return print(c, nodes, func(w io.Writer) {
				var rows [][]string
				for _, status := range statuses {
					n := status.Node
					name := n.Name
					if !n.Registered {
						name = "(unknown)"
					}
					rows = append(rows, []string{dash(name), n.MAC.String(), dash(n.Group), follows(status), dash(n.Network), ago(n.LastSeen), n.Args})
				}
				table(w, []string{"NODE", "MAC", "GROUP", "FOLLOWS", "NETWORK", "SEEN", "ARGS"}, rows)
			})
		}),
	}
}

// follows says what a node boots from: its pin, or a channel.
func follows(s node.Status) string {
	switch {
	case s.Reboot.Pinned:
		return "pinned to " + s.Reboot.Snapshot.String()
	case s.Node.Channel != "":
		return "channel " + s.Node.Channel
	case s.Reboot.Channel != "":
		return "channel " + s.Reboot.Channel + " (the network's)"
	}
	return "-"
}

func nodeShowCommand() *cli.Command {
	return &cli.Command{
		Name: "show", Usage: "all about a node, and what it booted", ArgsUsage: "NODE",
		Description: describe("Shows a node, named by its name or hardware address, and its last boots.", "sidus node show n1"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			return showNode(ctx, c, s, args[0])
		}),
	}
}

// shownSessions is how many boots of a node are shown.
const shownSessions = 10

func showNode(ctx context.Context, c *cli.Context, s *site, who string) error {
	status, err := s.registry().StatusOf(ctx, who)
	if err != nil {
		return err
	}
	sessions, err := s.registry().Sessions(ctx, who, shownSessions)
	if err != nil {
		return err
	}
	return print(c, map[string]any{"status": status, "sessions": sessions}, func(w io.Writer) {
		n := status.Node
		fmt.Fprintf(w, "node        %s\nmac         %s\nfollows     %s\n", n.Label(), n.MAC, follows(status))
		if n.Address.IsValid() {
			fmt.Fprintf(w, "address     %s\n", n.Address)
		}
		for _, line := range [][2]string{{"group", n.Group}, {"arguments", n.Args}, {"network", n.Network}, {"runs", runs(status)}, {"a reboot", status.Reboot.Text}} {
			if line[1] != "" {
				fmt.Fprintf(w, "%-11s %s\n", line[0], line[1])
			}
		}
		if s := status.Session; s != nil && len(s.Updates) > 0 {
			fmt.Fprintln(w)
			var rows [][]string
			for _, u := range s.Updates {
				rows = append(rows, []string{when(u.Ordered), u.Snapshot.String(), dash(u.Channel), string(u.State), dash(strings.Join(append(u.Notes, u.Reason)[:len(u.Notes)+min(1, len(u.Reason))], "; "))})
			}
			table(w, []string{"LIVE UPDATE", "SNAPSHOT", "CHANNEL", "STATE", "WHAT IT SAYS"}, rows)
		}
		if !n.Registered {
			fmt.Fprintf(w, "nobody has added it yet: `sidus node add %s --name NAME`\n", n.MAC)
		}
		if len(sessions) > 0 {
			fmt.Fprintln(w)
			var rows [][]string
			for _, session := range sessions {
				ended := "-"
				if !session.Live() {
					ended = when(session.Ended) + " " + string(session.EndReason)
				}
				rows = append(rows, []string{when(session.Opened), session.Snapshot.String(), dash(session.Channel), string(session.Step), ended})
			}
			table(w, []string{"BOOTED", "SNAPSHOT", "CHANNEL", "REACHED", "ENDED"}, rows)
		}
	})
}

func nodeDeleteCommand() *cli.Command {
	return &cli.Command{
		Name: "delete", Aliases: []string{"rm"}, Usage: "forget a node", ArgsUsage: "NODE",
		Description: describe("Refused while it runs.", "sidus node delete n1 --yes"),
		Flags:       changes(yesFlag(), &cli.BoolFlag{Name: "force", Usage: "also if it runs: what it runs is then not protected any more"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			n, err := s.registry().Node(ctx, args[0])
			if err != nil {
				return err
			}
			if err := confirm(c, "forget node "+n.Label()); err != nil {
				return err
			}
			if err := s.registry().DeleteNode(ctx, s.by(), args[0], c.Bool("force")); err != nil {
				return err
			}
			return print(c, map[string]string{"deleted": n.Label()}, func(w io.Writer) { fmt.Fprintf(w, "forgot node %s\n", n.Label()) })
		}),
	}
}
