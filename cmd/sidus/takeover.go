package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/image"
)

func takeoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "takeover",
		Usage: "make this replica the primary of its site",
		Description: describe("From then on this server takes changes, and nothing more from the server that was the primary; that one\n"+
			"learns of it as soon as the two talk, and refuses changes then. Make sure that it does not serve any\n"+
			"more: stop it, or take its address. On a primary this does nothing and succeeds, so that keepalived may\n"+
			"call it whenever the address comes. It asks first; if channels lag behind what the primary had\n"+
			"announced, it says so, also with --yes.",
			"sidus takeover", "sidus takeover --yes --message 'store1 is dead'"),
		Flags: append(reads(yesFlag()), messageFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			before, err := s.manager.Site(ctx)
			if err != nil {
				return err
			}
			var behind []string
			if before.Role == image.Replica {
				if behind, err = s.manager.Lag(ctx); err != nil {
					return err
				}
				if len(behind) > 0 && c.Bool("yes") {
					logrus.Warnf("a transfer was cut, and these lag behind what %s had announced: %s", dash(before.Host), strings.Join(behind, ", "))
				}
				question := fmt.Sprintf("make this server the primary, with what %s held at %s", dash(before.Host), when(before.AsOf))
				if len(behind) > 0 {
					question += "; a transfer was cut, and these lag: " + strings.Join(behind, ", ")
				}
				if err := confirm(c, question); err != nil {
					return err
				}
			}
			now, changed, err := s.manager.Takeover(ctx)
			if err != nil {
				return err
			}
			return print(c, map[string]any{"site": now, "changed": changed, "behind": append([]string{}, behind...)}, func(w io.Writer) {
				if !changed {
					fmt.Fprintln(w, "this server is the primary already")
					return
				}
				fmt.Fprintf(w, "this server is the primary now (epoch %d), with the state of %s\n", now.Epoch, when(before.AsOf))
			})
		}),
	}
}

func demoteCommand() *cli.Command {
	return &cli.Command{
		Name:  "demote",
		Usage: "make this server a replica of its site",
		Description: describe("For a server that was the primary, after another took over: it refuses changes, and takes what the new\n"+
			"primary replicates. What lies in heads and in no snapshot is lost when that comes; snapshots that the\n"+
			"new primary does not know stay until `sidus replicate --discard` there. It asks first.",
			"sidus demote", "sidus demote --yes --message 'store2 is the primary now'"),
		Flags: append(reads(yesFlag()), messageFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			before, err := s.manager.Site(ctx)
			if err != nil {
				return err
			}
			if before.Role != image.Replica {
				if err := confirm(c, "make this server a replica, and drop what lies in heads of trees and in no snapshot as soon as a primary replicates"); err != nil {
					return err
				}
			}
			now, changed, err := s.manager.Demote(ctx)
			if err != nil {
				return err
			}
			return print(c, map[string]any{"site": now, "changed": changed}, func(w io.Writer) {
				if !changed {
					fmt.Fprintln(w, "this server is a replica already")
					return
				}
				fmt.Fprintln(w, "this server is a replica now; `sidus replicate add` on the primary makes it follow")
			})
		}),
	}
}
