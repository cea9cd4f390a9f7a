package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/urfave/cli/v2"

	"sidus/image"
)

func promoteCommand() *cli.Command {
	return &cli.Command{
		Name:      "promote",
		Usage:     "make a channel point to a snapshot: what its nodes boot from now on",
		ArgsUsage: "TREE@SNAP",
		Description: describe("One atomic change: a boot that asks before gets the old snapshot, one that asks after the new one, and\n"+
			"running nodes keep what they booted. Only a complete snapshot can be promoted. A tree with known secrets\n"+
			"in it (password hashes, host keys, the munge key, keytabs, private keys) is refused, since whoever may\n"+
			"boot it can read it; --allow-secret makes exceptions.",
			"sidus promote debian@latest",
			"sidus promote debian@14 --channel canary --message 'new MPI'",
			"sidus promote debian@14 --allow-secret /etc/shadow"),
		Flags: changes(
			&cli.StringFlag{Name: "channel", Aliases: []string{"c"}, Value: "default", Usage: "the channel `NAME`; it is made if it is not there"},
			&cli.StringSliceFlag{Name: "allow-secret", Usage: "a file, or a pattern, that may stay in the tree: `PATH`; may be repeated"},
		),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			snapshot, err := s.manager.Resolve(ctx, args[0])
			if err != nil {
				return err
			}
			channel, before, err := promote(ctx, s, snapshot, c.String("channel"), c.StringSlice("allow-secret"))
			if err != nil {
				return err
			}
			return print(c, map[string]any{"channel": channel, "before": before}, func(w io.Writer) { printMove(w, channel, before) })
		}),
	}
}

func promote(ctx context.Context, s *site, snapshot image.Snapshot, channel string, allowed []string) (image.Channel, image.Snapshot, error) {
	// Cheap refusals first.
	if err := image.ValidateName("channel", channel); err != nil {
		return image.Channel{}, image.Snapshot{}, err
	}
	if snapshot.Complete {
		if err := refuseSecrets(ctx, s, snapshot, allowed); err != nil {
			return image.Channel{}, image.Snapshot{}, err
		}
		if err := s.manager.MakeIndex(ctx, snapshot.ID); err != nil {
			return image.Channel{}, image.Snapshot{}, err
		}
	}
	note := ""
	if len(allowed) > 0 {
		note = fmt.Sprintf("secrets allowed: %v", allowed)
	}
	return s.manager.Promote(ctx, snapshot.ID, channel, note)
}

func refuseSecrets(ctx context.Context, s *site, snapshot image.Snapshot, allowed []string) (err error) {
	mount, err := s.manager.MountSnapshot(ctx, snapshot.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	secrets, err := image.FindSecrets(ctx, mount.Path(), allowed)
	if err != nil {
		return err
	}
	if len(secrets) > 0 {
		return &image.SecretsError{Snapshot: snapshot, Secrets: secrets}
	}
	return nil
}

// printMove says where a channel points, and what that changes.
func printMove(w io.Writer, channel image.Channel, before image.Snapshot) {
	switch before.ID {
	case "":
		fmt.Fprintf(w, "channel %s points to %s\n", channel.Name, channel.Snapshot.Ref())
	case channel.Snapshot.ID:
		fmt.Fprintf(w, "channel %s still points to %s\n", channel.Name, channel.Snapshot.Ref())
	default:
		fmt.Fprintf(w, "channel %s points to %s, before it was %s; nodes boot it from now on, running ones keep what they have\n",
			channel.Name, channel.Snapshot.Ref(), before.Ref())
	}
}
