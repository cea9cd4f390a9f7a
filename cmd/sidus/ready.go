package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"

	"sidus/image"
)

func readyCommand() *cli.Command {
	return &cli.Command{
		Name:  "ready",
		Usage: "could this server serve now?",
		Description: describe("Succeeds if this server could serve its channels at this moment: the store can be read, each channel's\n"+
			"snapshot is there, the site's key too, and nothing lags: on a replica, all channels point to what the primary\n"+
			"announced last. An index that is missing is made. A primary that can serve some channels and not others is\n"+
			"ready, and says which: nobody has more than it. A server that another took over from is never ready. It says\n"+
			"what is wrong and ends with status 1 otherwise. For keepalived's track_script and other watchers.",
			"sidus ready", "sidus ready --json", "sidus ready --max-lag 10m"),
		Flags: reads(&cli.DurationFlag{Name: "max-lag", Usage: "on a replica: not if the last transfer is older than `DURATION`; replicate --watch makes one each minute, also if nothing changes"}),
		Action: func(c *cli.Context) error {
			setVerbosity(c)
			if _, err := want(c); err != nil {
				return err
			}
			r := readiness{Problems: []string{}, Warnings: []string{}}
			s, err := openSite(c.Context, c)
			if err != nil {
				r.wrong("%v", err)
			} else {
				r.check(c.Context, c, s)
				if err := s.close(); err != nil {
					r.wrong("%v", err)
				}
			}
			r.Ready = len(r.Problems) == 0
			if err := print(c, r, r.text); err != nil {
				return err
			}
			if !r.Ready {
				return notReady
			}
			return nil
		},
	}
}

// notReady ends the command with status 1: what is wrong was said.
const notReady = programExit(exitFailed)

type readiness struct {
	Ready    bool       `json:"ready"`
	Role     image.Role `json:"role,omitempty"`
	AsOf     time.Time  `json:"as_of,omitzero"` // of a replica
	Channels int        `json:"channels"`
	Problems []string   `json:"problems"`
	// Warnings are what a server is ready in spite of.
	Warnings []string `json:"warnings"`
}

func (r *readiness) text(w io.Writer) {
	if r.Ready {
		fmt.Fprintf(w, "ready: %s, %s\n", r.Role, english.Plural(r.Channels, "channel", ""))
	}
	for _, warning := range r.Warnings {
		fmt.Fprintf(w, "cannot serve %s\n", warning)
	}
	for _, problem := range r.Problems {
		fmt.Fprintf(w, "not ready: %s\n", problem)
	}
}

func (r *readiness) wrong(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

func (r *readiness) check(ctx context.Context, c *cli.Context, s *site) {
	site, err := s.manager.Site(ctx)
	if err != nil {
		r.wrong("%v", err)
		return
	}
	r.Role, r.AsOf = site.Role, site.AsOf
	if site.Role == image.Superseded {
		r.wrong("%v", &image.ReadOnlyError{Site: site})
	}
	behind, err := s.manager.Lag(ctx)
	if err != nil {
		r.wrong("%v", err)
	}
	for _, what := range behind {
		r.wrong("lags behind %s: %s", dash(site.Host), what)
	}
	if limit := c.Duration("max-lag"); limit > 0 && site.Role == image.Replica && time.Since(site.AsOf) > limit {
		r.wrong("the last transfer is of %s", when(site.AsOf))
	}
	if _, err := s.siteKey(); err != nil {
		r.wrong("%v", err)
	}
	channels, err := s.manager.Channels(ctx)
	if err != nil {
		r.wrong("%v", err)
		return
	}
	if r.Channels = len(channels); r.Channels == 0 {
		r.wrong("there is no channel yet, so that no machine could boot")
	}
	for _, channel := range channels {
		if err := servable(ctx, s, channel); err != nil {
			r.Warnings = append(r.Warnings, fmt.Sprintf("channel %s: %v", channel.Name, err))
		}
	}
	// To give the address away, or to nobody, would not help the nodes of the
	// other channels.
	if site.Role == image.Primary && len(r.Warnings) < r.Channels {
		return
	}
	r.Problems, r.Warnings = append(r.Problems, r.Warnings...), []string{}
}

// servable reads what a node that boots from a channel would need first.
func servable(ctx context.Context, s *site, channel image.Channel) error {
	if err := s.manager.MakeIndex(ctx, channel.Snapshot.ID); err != nil {
		return err
	}
	mount, err := s.manager.MountSnapshot(ctx, channel.Snapshot.ID)
	if err != nil {
		return err
	}
	return mount.Unmount(context.WithoutCancel(ctx))
}
