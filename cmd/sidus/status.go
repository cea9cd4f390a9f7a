package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/boot/node"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "what each node runs, since when, and what a reboot would change",
		Description: describe("RUNS is the snapshot that a node booted, and behind a + the one whose programs it has since a live update.\n"+
			"A node's step is how far its boot got: dhcp, config, kernel, initrd, root, up. Whether a reboot would\n"+
			"change anything is told by content: the snapshot that it would boot against the one that it runs.",
			"sidus status", "sidus status --sort change", "sidus status --json"),
		Flags: reads(&cli.StringFlag{Name: "sort", Value: string(node.SortName), Usage: "`ORDER`: name, snapshot, since, heard, step or change"}),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			statuses, err := s.registry().Status(ctx)
			if err != nil {
				return err
			}
			if err := node.SortStatus(statuses, node.SortKey(c.String("sort"))); err != nil {
				return usagef("--sort: %v", err)
			}
			if statuses == nil {
				statuses = []node.Status{}
			}
			return print(c, statuses, func(w io.Writer) {
				var rows [][]string
				for _, status := range statuses {
					rows = append(rows, statusRow(status))
				}
				table(w, []string{"NODE", "ADDRESS", "RUNS", "CHANNEL", "STEP", "SINCE", "HEARD", "A REBOOT"}, rows)
			})
		}),
	}
}

func statusRow(status node.Status) []string {
	session := status.Session
	if session == nil {
		return []string{status.Node.Label(), "-", "-", "-", "-", "-", ago(status.Node.LastSeen), status.Reboot.Text}
	}
	address := "-"
	if session.Address.IsValid() {
		address = session.Address.String()
	}
	channel := session.Channel
	if channel == "" {
		channel = "(pinned)"
	}
	step := string(session.Step)
	if len(session.FailedUnits) > 0 {
		step += fmt.Sprintf(", failed: %s", strings.Join(session.FailedUnits, " "))
	}
	since := session.Opened
	if !session.UpAt.IsZero() {
		since = session.UpAt
	}
	return []string{status.Node.Label(), address, shownSnapshot(session), channel, step, when(since), ago(session.Heard), status.Reboot.Text}
}

// shownSnapshot names what a node has booted, and what it took since.
func shownSnapshot(s *node.Session) string {
	text := s.Snapshot.String()
	if now := s.Runs(); now.ID != s.Snapshot.ID {
		text += "+" + now.String()
	}
	if last := len(s.Updates) - 1; last >= 0 && s.Updates[last].Open() {
		text += fmt.Sprintf(" (%s is ordered)", s.Updates[last].Snapshot)
	}
	return text
}

// runs says in a sentence what a node runs; "" if nothing.
func runs(status node.Status) string {
	session := status.Session
	if session == nil {
		return ""
	}
	text := fmt.Sprintf("%s, step %s, booted %s, last heard %s", shownSnapshot(session), session.Step, when(session.Opened), ago(session.Heard))
	if len(session.FailedUnits) > 0 {
		text += ", failed units: " + strings.Join(session.FailedUnits, " ")
	}
	return text
}
