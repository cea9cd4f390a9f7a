package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/export/replicate"
	"sidus/export/transfer"
	"sidus/image"
	"sidus/image/store"
)

func replicateCommand() *cli.Command {
	return &cli.Command{
		Name:      "replicate",
		Usage:     "make other servers hold what this one holds",
		ArgsUsage: "[NAME...]",
		Description: describe("Brings the targets, or those named, up to date: snapshots first, each as the difference to the newest one\n"+
			"that the target has, then channels, networks, nodes, sessions, leases, recipes, the history, the site's\n"+
			"key and the secrets, in one step. A target is a replica from then on: it refuses changes until `sidus\n"+
			"takeover` makes it the primary. What was cut goes on where it was. --watch goes on until it is stopped,\n"+
			"and replicates each change; --status tells how far each target is behind, without asking it.\n\n"+
			"A target that holds snapshots which this server does not know is left alone; --discard drops them there.",
			"sidus replicate add second ssh://root@store2", "sidus replicate", "sidus replicate --watch", "sidus replicate --status"),
		Flags: reads(
			&cli.BoolFlag{Name: "watch", Usage: "go on, and replicate each change"},
			&cli.DurationFlag{Name: "every", Value: 5 * time.Second, Usage: "with --watch: at most once in `DURATION`"},
			&cli.BoolFlag{Name: "status", Usage: "how far is each target behind?"},
			&cli.BoolFlag{Name: "discard", Usage: "drop on the targets what only they have"},
			levelFlag(), yesFlag(),
		),
		Subcommands: []*cli.Command{targetAdd(), targetList(), targetRemove()},
		Action:      siteAction(runReplicate),
	}
}

func targetAdd() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "add a target", ArgsUsage: "NAME ssh://[USER@]HOST[:PORT][/STATE]|tls://HOST[:PORT]",
		Description: describe("The target needs a store (`sidus init`) and nothing else: it gets the rest. Nothing is sent yet. A token is\n"+
			"kept in the state folder, where only root reads it.\n\n"+
			"What is encrypted in a ZFS store goes to another one as it is. To a target that takes portable streams\n"+
			"only it goes in the clear, and with --decrypt alone.",
			"sidus replicate add second ssh://root@store2", "ssh store2 sidus receive --token | sidus replicate add second tls://store2 --token-file -"),
		Flags: reads(tokenFileFlag(), rateFlag(), &cli.BoolFlag{Name: "portable", Usage: "send portable streams only"}, decryptFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			target := image.Target{Name: args[0], Portable: c.Bool("portable"), Decrypt: c.Bool("decrypt")}
			if err := image.ValidateName("target", target.Name); err != nil {
				return err
			}
			token := ""
			if _, err := dialerOf(args[1], func() (string, error) {
				token, err = readToken(c)
				return token, err
			}); err != nil {
				return err
			}
			address, err := transfer.ParseAddress(args[1])
			if err != nil {
				return err
			}
			target.URL = address.String()
			if target.Rate, err = rateOf(c); err != nil {
				return err
			}
			if err := s.manager.AddTarget(ctx, target); err != nil {
				return err
			}
			if token != "" {
				if err := s.keepToken(target.Name, token); err != nil {
					return errors.Join(err, s.manager.RemoveTarget(ctx, target.Name))
				}
			}
			return print(c, target, func(w io.Writer) {
				fmt.Fprintf(w, "added the target %s; `sidus replicate %s` sends, `sidus replicate --watch` keeps sending\n", target.Name, target.Name)
			})
		}),
	}
}

func targetList() *cli.Command {
	return &cli.Command{
		Name: "list", Aliases: []string{"ls"}, Usage: "list the targets",
		Description: describe("Lists the targets, and when each was last brought up to date.", "sidus replicate list"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			if _, err := want(c); err != nil {
				return err
			}
			targets, err := s.manager.Targets(ctx)
			if err != nil {
				return err
			}
			if targets == nil {
				targets = []image.Target{}
			}
			return print(c, targets, func(w io.Writer) {
				var rows [][]string
				for _, t := range targets {
					rate := "-"
					if t.Rate > 0 {
						rate = humanize.IBytes(uint64(t.Rate)) + "/s"
					}
					rows = append(rows, []string{t.Name, t.URL, rate, ago(t.Done), dash(t.Error)})
				}
				table(w, []string{"TARGET", "ADDRESS", "RATE", "DONE", "LAST ERROR"}, rows)
			})
		}),
	}
}

func targetRemove() *cli.Command {
	return &cli.Command{
		Name: "remove", Aliases: []string{"rm", "delete"}, Usage: "remove a target", ArgsUsage: "NAME",
		Description: describe("Sends nothing to the target any more and ends its holds. What it has it keeps.", "sidus replicate remove second"),
		Flags:       reads(),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			if err := errors.Join(s.manager.RemoveTarget(ctx, args[0]), s.dropToken(args[0])); err != nil {
				return err
			}
			return print(c, map[string]string{"removed": args[0]}, func(w io.Writer) { fmt.Fprintf(w, "removed the target %s\n", args[0]) })
		}),
	}
}

func runReplicate(ctx context.Context, c *cli.Context, s *site) error {
	if c.Bool("status") {
		return replicateStatus(ctx, c, s)
	}
	targets, err := chosenTargets(ctx, c, s)
	if err != nil {
		return err
	}
	if c.Bool("watch") {
		if c.Duration("every") <= 0 {
			return usagef("--every %s: it is more than 0", c.Duration("every"))
		}
		return watchTargets(ctx, c, s)
	}
	if len(targets) == 0 {
		return usagef("there is no target yet: `sidus replicate add NAME ssh://HOST` adds one")
	}
	if err := s.manager.Writable(ctx); err != nil {
		return err
	}
	reports, errs := []transfer.Report{}, []error{}
	for _, t := range targets {
		report, err := runTarget(ctx, c, s, t, true)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", t.Name, err))
			if ctx.Err() != nil {
				break
			}
			continue
		}
		reports = append(reports, report)
	}
	if err := errors.Join(errs...); err != nil {
		return transferProblem(ctx, err)
	}
	return print(c, reports, func(w io.Writer) {
		for i, r := range reports {
			fmt.Fprintf(w, "%s (%s): %s\n", targets[i].Name, r.Host, summaryOf(r))
		}
	})
}

func summaryOf(r transfer.Report) string {
	text := fmt.Sprintf("%s, %s in %s", english.Plural(len(r.Snapshots), "snapshot", ""), humanize.IBytes(uint64(r.Bytes)), time.Duration(r.Seconds*float64(time.Second)).Round(10*time.Millisecond))
	if len(r.Moved) > 0 {
		text += "; moved the channels " + strings.Join(r.Moved, ", ")
	}
	return text
}

// chosenTargets are the targets that the command line names, or all.
func chosenTargets(ctx context.Context, c *cli.Context, s *site) ([]image.Target, error) {
	if !c.Args().Present() {
		return s.manager.Targets(ctx)
	}
	var targets []image.Target
	for _, name := range c.Args().Slice() {
		t, err := s.manager.Target(ctx, name)
		if err != nil {
			return nil, err
		}
		targets = append(targets, t)
	}
	return targets, nil
}

// runTarget brings one target up to date, and notes in the catalog how that
// went.
func runTarget(ctx context.Context, c *cli.Context, s *site, t image.Target, ask bool) (report transfer.Report, err error) {
	defer func() {
		if err == nil {
			return
		}
		if noteErr := s.manager.TargetFailed(context.WithoutCancel(ctx), t.Name, err); noteErr != nil {
			logrus.WithError(noteErr).Warn("the failure is not on record")
		}
	}()
	if err := s.manager.TargetTried(ctx, t.Name); err != nil {
		return report, err
	}
	dial, err := dialerOf(t.URL, func() (string, error) {
		text, err := os.ReadFile(s.targetToken(t.Name))
		if err != nil {
			return "", fmt.Errorf("the token of %s: %w; remove the target and add it again", t.Name, err)
		}
		return string(text), nil
	})
	if err != nil {
		return report, err
	}
	sender, err := newSender(c, s)
	if err != nil {
		return report, err
	}
	sender.Rate, sender.Portable, sender.Decrypt = t.Rate, t.Portable, t.Decrypt
	if !ask {
		sender.Progress = nil
	}
	if c.Bool("discard") && ask {
		sender.Discard = func(conflicts error) error {
			return confirm(c, "drop on "+t.Name+" what only it has ("+conflicts.Error()+")")
		}
	}
	report, err = sender.Replicate(ctx, dial)
	var conflicts replicate.Conflicts
	if errors.As(err, &conflicts) {
		return report, fmt.Errorf("%w\nor let `sidus replicate %s --discard` drop on %s all that only it has", err, t.Name, t.Name)
	}
	if errors.Is(err, image.ErrEncrypted) {
		return report, fmt.Errorf("%w: remove the target %s and add it again with it", err, t.Name)
	}
	if err != nil && !onlyLost(err, report) {
		return report, err
	}
	return report, errors.Join(err, s.manager.TargetDone(ctx, t.Name, report.Run()))
}

// onlyLost tells whether a run has failed in nothing but what the store has lost:
// nothing more can be done then, and the target has the catalog.
func onlyLost(err error, report transfer.Report) bool {
	var lost *transfer.LostError
	return errors.As(err, &lost) && !report.AsOf.IsZero()
}

func replicateStatus(ctx context.Context, c *cli.Context, s *site) error {
	lags, err := s.manager.Lags(ctx)
	if err != nil {
		return err
	}
	if c.Args().Present() {
		var chosen []image.TargetLag
		for _, name := range c.Args().Slice() {
			if _, err := s.manager.Target(ctx, name); err != nil {
				return err
			}
			for _, lag := range lags {
				if lag.Name == name {
					chosen = append(chosen, lag)
				}
			}
		}
		lags = chosen
	}
	return print(c, lags, func(w io.Writer) {
		var rows [][]string
		for _, lag := range lags {
			behind := "nothing"
			switch {
			case lag.Never:
				behind = "never run"
			case lag.Changed:
				behind = time.Duration(lag.Seconds * int64(time.Second)).String()
			}
			rows = append(rows, []string{lag.Name, behind, strconv.Itoa(lag.Snapshots), strconv.Itoa(lag.Sessions), dash(strings.Join(lag.Channels, ",")), ago(lag.Done), strconv.Itoa(lag.Holds), dash(lag.Error)})
		}
		table(w, []string{"TARGET", "BEHIND", "SNAPSHOTS", "SESSIONS", "CHANNELS", "DONE", "HOLDS", "LAST ERROR"}, rows)
	})
}

// The pauses of --watch.
const (
	watchPoll  = time.Second      // between looks at the catalog
	retryFirst = 5 * time.Second  // after a failure; each time twice as long
	retryLast  = 60 * time.Second // but never longer
	// confirmEvery is how often a target hears that nothing has changed: `sidus
	// ready --max-lag` on it tells a site where nothing happens from one whose
	// primary is gone, and a target that has lost its state gets it again.
	confirmEvery = time.Minute
)

// watchTargets replicates each change until ctx ends. Targets are looked for
// anew all the time; on a server that is no primary it waits.
func watchTargets(ctx context.Context, c *cli.Context, s *site) error {
	logrus.Info("replicating each change")
	notifyReady()
	var running sync.WaitGroup
	defer running.Wait()
	active := map[string]context.CancelFunc{}
	primary := true
	for {
		err := s.manager.Writable(ctx)
		if err != nil && !errors.Is(err, store.ErrInUse) {
			return stopped(ctx, err)
		}
		if (err == nil) != primary {
			if primary = err == nil; !primary {
				logrus.WithError(err).Warn("waiting until this server is the primary")
			} else {
				logrus.Info("this server is the primary: replicating again")
			}
		}
		wanted := map[string]bool{}
		if primary {
			targets, err := chosenTargets(ctx, c, s)
			if err != nil {
				return stopped(ctx, err)
			}
			for _, t := range targets {
				wanted[t.Name] = true
				if active[t.Name] == nil {
					following, cancel := context.WithCancel(ctx)
					active[t.Name] = cancel
					running.Go(func() { followTarget(following, c, s, t.Name) })
				}
			}
		}
		for name, cancel := range active {
			if !wanted[name] {
				cancel()
				delete(active, name)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPoll):
		}
	}
}

func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// followTarget brings one target up to date after each change, and once a minute.
func followTarget(ctx context.Context, c *cli.Context, s *site, name string) {
	log := logrus.WithField("target", name)
	done, retry, lastError := "", retryFirst, ""
	var confirmed time.Time
	for ctx.Err() == nil {
		pause := watchPoll
		mark, err := s.manager.ChangeMark(ctx)
		if err == nil && (mark != done || time.Since(confirmed) >= confirmEvery) {
			var t image.Target
			var report transfer.Report
			if t, err = s.manager.Target(ctx, name); err == nil {
				report, err = runTarget(ctx, c, s, t, false)
			}
			failure := "" // that does not stop it
			if onlyLost(err, report) {
				if failure = err.Error(); failure != lastError {
					log.WithError(err).Warn("all else is up to date")
				}
				err = nil
			}
			if err == nil {
				if len(report.Snapshots)+len(report.Moved) > 0 {
					log.Info(summaryOf(report))
				}
				done, retry, lastError, pause = mark, retryFirst, failure, c.Duration("every")
				confirmed = time.Now()
			}
		}
		if err != nil && ctx.Err() == nil {
			if text := err.Error(); text != lastError { // one line for each kind of failure
				log.WithError(err).Warn("it is not up to date; trying again")
				lastError = text
			}
			pause, retry = retry, min(2*retry, retryLast)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
