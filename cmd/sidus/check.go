package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"

	"sidus/image"
)

// errFindings is returned when check found something that is not mended.
var errFindings = errors.New("check found something")

func checkCommand() *cli.Command {
	return &cli.Command{
		Name:  "check",
		Usage: "find, and mend, what a crash left over",
		Description: describe("Compares the catalog with the store. Operations that were cut (kill -9, power) leave at most something\n"+
			"that nobody sees; --repair removes it. What a live process is doing is listed and not touched. Of what the\n"+
			"store has lost (somebody removed it by hand) it says how it comes back. What the store holds and the catalog\n"+
			"does not know is never touched, unless --discard-unknown says so: it may be known to a newer catalog.",
			"sidus check", "sidus check --repair", "sidus check --repair --discard-unknown"),
		Flags: changes(
			&cli.BoolFlag{Name: "repair", Usage: "mend what can be mended"},
			&cli.BoolFlag{Name: "discard-unknown", Usage: "--repair: destroy what the catalog does not know"},
			yesFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			if c.Bool("discard-unknown") && !c.Bool("repair") {
				return usagef("--discard-unknown goes with --repair")
			}
			findings, err := s.manager.Check(ctx)
			if err != nil {
				return err
			}
			repaired := []string{}
			if c.Bool("repair") {
				unknown := 0
				for _, f := range findings {
					if f.Kind == image.FindingUnknown {
						unknown++
					}
				}
				discard := c.Bool("discard-unknown") && unknown > 0
				if discard {
					if err := confirm(c, fmt.Sprintf("destroy %s that the catalog does not know, for ever", english.Plural(unknown, "volume or snapshot", "volumes and snapshots"))); err != nil {
						return err
					}
				}
				if repaired, err = s.manager.Repair(ctx, findings); err != nil {
					return err
				}
				if discard {
					destroyed, err := s.manager.DiscardUnknown(ctx, findings)
					if err != nil {
						return err
					}
					repaired = append(repaired, destroyed...)
				}
				if findings, err = s.manager.Check(ctx); err != nil {
					return err
				}
			}
			return reportFindings(c, findings, repaired)
		}),
	}
}

func reportFindings(c *cli.Context, findings []image.Finding, repaired []string) error {
	if findings == nil {
		findings = []image.Finding{}
	}
	bad := 0
	for _, f := range findings {
		if f.Kind != image.FindingRunning && f.Kind != image.FindingRetired {
			bad++
		}
	}
	err := print(c, map[string]any{"findings": findings, "repaired": repaired, "sound": bad == 0}, func(w io.Writer) {
		for _, text := range repaired {
			fmt.Fprintln(w, "repaired:", text)
		}
		for _, f := range findings {
			fmt.Fprintf(w, "%s: %s\n", f.Kind, f.Text)
		}
		if bad == 0 {
			fmt.Fprintln(w, "catalog and store agree")
		}
	})
	if err == nil && bad > 0 {
		return errFindings
	}
	return err
}
