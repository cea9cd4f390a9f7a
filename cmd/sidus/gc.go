package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/store"
)

func gcCommand() *cli.Command {
	return &cli.Command{
		Name:  "gc",
		Usage: "collect old snapshots that nobody needs",
		Description: describe("Deletes complete snapshots that no rule keeps, steps of builds that are no cache any more, and what\n"+
			"was deleted earlier and could not be destroyed then. Without a rule, each tree keeps its newest "+strconv.Itoa(image.DefaultKeep)+"\n"+
			"complete snapshots and those of the last "+image.Days(image.DefaultKeepWithin)+"; if one rule is given, the other does not count.\n"+
			"What a channel, its kept history, a branch, a head, a pinned node, a running node or a command at work\n"+
			"needs stays, whatever the rules say, and so does the newest complete snapshot of a tree. Also removed\n"+
			"are indexes of snapshots that are gone, old logs of builds, and records of boots that ended long ago.\n\n"+
			"It asks first; without a terminal it wants --yes. --dry-run only says what would go and what stays, and why.",
			"sidus gc --dry-run", "sidus gc --keep 5 --yes", "sidus gc --tree debian --keep-within 14d", "sidus gc --keep 3 --packages --yes"),
		Flags: changes(
			&cli.IntFlag{Name: "keep", DefaultText: strconv.Itoa(image.DefaultKeep), Usage: "keep the newest `N` complete snapshots of each tree"},
			&cli.StringFlag{Name: "keep-within", DefaultText: "30d", Usage: "keep complete snapshots that are younger than `DURATION`: 36h, 14d, 8w, 1y"},
			&cli.StringFlag{Name: "tree", Usage: "only delete snapshots of `TREE`"},
			&cli.BoolFlag{Name: "named", Usage: "also delete snapshots that were given a name"},
			&cli.StringFlag{Name: "sessions", Value: "1y", Usage: "forget boots that ended longer than `DURATION` ago; 0: none"},
			&cli.IntFlag{Name: "logs", Value: image.DefaultKeepLogs, Usage: "keep the logs of the newest `N` builds; -1: all"},
			&cli.BoolFlag{Name: "packages", Usage: "also remove the downloaded packages, which builds fetch again"},
			&cli.BoolFlag{Name: "dry-run", Aliases: []string{"n"}, Usage: "say what would be done, and do nothing"},
			yesFlag(),
		),
		Action: siteAction(collectGarbage),
	}
}

func collectGarbage(ctx context.Context, c *cli.Context, s *site) error {
	if _, err := want(c); err != nil {
		return err
	}
	options, err := gcOptions(c)
	if err != nil {
		return err
	}
	plan, err := s.manager.PlanGC(ctx, options)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return print(c, map[string]any{"plan": plan, "done": false}, func(w io.Writer) { printPlan(w, plan, true) })
	}
	if plan.Empty() {
		return print(c, map[string]any{"plan": plan, "done": false}, func(w io.Writer) { fmt.Fprintln(w, "there is nothing to collect") })
	}
	if !c.Bool("yes") {
		printPlan(os.Stderr, plan, false)
		if err := confirm(c, "delete what is listed above"); err != nil {
			return err
		}
	}
	report, err := s.manager.Collect(ctx, plan)
	if err != nil {
		return err
	}
	return print(c, map[string]any{"report": report, "done": true}, func(w io.Writer) { printCollected(w, report) })
}

func gcOptions(c *cli.Context) (o image.GCOptions, err error) {
	o = image.GCOptions{
		Rules:    image.Retention{Keep: image.DefaultKeep, KeepWithin: image.DefaultKeepWithin, Named: c.Bool("named")},
		Tree:     c.String("tree"),
		Logs:     c.Int("logs"),
		Packages: c.Bool("packages"),
	}
	if c.IsSet("keep") || c.IsSet("keep-within") {
		o.Rules.Keep, o.Rules.KeepWithin = c.Int("keep"), 0
		if o.Rules.Keep < 0 {
			return o, usagef("--keep %d: it is 0 or more", o.Rules.Keep)
		}
	}
	if c.IsSet("keep-within") {
		if o.Rules.KeepWithin, err = parseAge("keep-within", c.String("keep-within")); err != nil {
			return o, err
		}
	}
	o.Sessions, err = parseAge("sessions", c.String("sessions"))
	return o, err
}

// parseAge reads a duration with the units of time.ParseDuration and d, w and
// y for days, weeks and years of 365 days.
func parseAge(option, text string) (time.Duration, error) {
	const day = 24 * time.Hour
	bad := usagef("--%s %q: write a number with h, d, w or y, such as 36h, 14d, 8w, 1y", option, text)
	if text == "0" {
		return 0, nil
	}
	for unit, length := range map[string]time.Duration{"d": day, "w": 7 * day, "y": 365 * day} {
		if number, ok := strings.CutSuffix(text, unit); ok {
			n, err := strconv.ParseFloat(number, 64)
			if err != nil || !(n >= 0 && n <= 100*365) {
				return 0, bad
			}
			return time.Duration(min(n*float64(length), float64(100*365*day))), nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, bad
	}
	return d, nil
}

// printPlan tells what goes, and, if all is set, also what stays.
func printPlan(w io.Writer, plan image.GCPlan, all bool) {
	var rows [][]string
	for _, v := range plan.Snapshots {
		if !v.Goes && !all {
			continue
		}
		what := "stays"
		if v.Goes {
			what = "goes"
		}
		reason := v.Reasons[0]
		if more := len(v.Reasons) - 1; more > 0 {
			reason += fmt.Sprintf(" (and %d more)", more)
		}
		rows = append(rows, []string{what, v.Snapshot.Ref(), ago(v.Snapshot.Created), reason})
	}
	if len(rows) > 0 {
		table(w, []string{"", "SNAPSHOT", "MADE", "WHY"}, rows)
	}
	fmt.Fprintf(w, "%d of %d snapshots go\n", len(plan.Goes()), len(plan.Snapshots))
	for _, r := range plan.Retired {
		fmt.Fprintf(w, "%s, deleted %s, is tried again\n", r.What, ago(r.At))
	}
	printRemnants(w, plan.Remnants, "is removed")
	if plan.Sessions > 0 {
		fmt.Fprintf(w, "%s\n", english.Plural(plan.Sessions, "record of an old boot goes", "records of old boots go"))
	}
	for _, kind := range []image.PruneKind{image.PruneIndex, image.PruneLog, image.PrunePackage} {
		n, bytes := 0, int64(0)
		for _, p := range plan.Files {
			if p.Kind == kind {
				n++
				bytes += p.Bytes
			}
		}
		if n > 0 {
			fmt.Fprintf(w, "%s go: %d, %s\n", pruneWords[kind], n, humanize.IBytes(uint64(bytes)))
		}
	}
}

// printRemnants tells what is left in the store; idle is what becomes of what
// nothing keeps.
func printRemnants(w io.Writer, remnants []store.Remnant, idle string) {
	for _, r := range remnants {
		if r.Reason == "" {
			fmt.Fprintf(w, "%s %s\n", r.What, idle)
		} else {
			fmt.Fprintf(w, "%s still takes %s: %s\n", r.What, humanize.IBytes(uint64(r.Bytes)), r.Reason)
		}
	}
}

var pruneWords = map[image.PruneKind]string{
	image.PruneIndex:   "indexes of snapshots that are gone",
	image.PruneLog:     "logs of old builds",
	image.PrunePackage: "downloaded packages",
}

func printCollected(w io.Writer, r image.GCReport) {
	for _, s := range r.Collected {
		fmt.Fprintf(w, "deleted %s\n", s.Ref())
	}
	for _, v := range r.Kept {
		fmt.Fprintf(w, "%s stays after all: %s\n", v.Snapshot.Ref(), v.Reasons[0])
	}
	for _, left := range r.Retired {
		why := "" // it was not tried: gc was interrupted
		if left.Reason != "" {
			why = ": " + left.Reason
		}
		fmt.Fprintf(w, "%s is deleted, and still takes space%s; the next gc tries again\n", left.What, why)
	}
	printRemnants(w, r.Remnants, "could not be removed")
	fmt.Fprintf(w, "%s deleted, %s destroyed in the store",
		english.Plural(len(r.Collected), "snapshot", ""), english.Plural(len(r.Freed), "volume or snapshot", "volumes and snapshots"))
	if r.Files > 0 {
		fmt.Fprintf(w, ", %s removed (%s)", english.Plural(r.Files, "file", ""), humanize.IBytes(uint64(r.Bytes)))
	}
	if r.Sessions > 0 {
		fmt.Fprintf(w, ", %s forgotten", english.Plural(r.Sessions, "old boot", ""))
	}
	fmt.Fprintln(w)
}
