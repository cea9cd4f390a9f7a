package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/image/build/sandbox"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run a program inside the head of a tree",
		ArgsUsage: "TREE -- PROGRAM [ARGUMENT...]",
		Description: describe("Runs the program in a sandbox: its own mounts, processes and devices, no services started, the host's\n"+
			"network and name resolution. When it ends, everything that it started ends, too. The exit status is the\n"+
			"program's. Nothing is seen by nodes before a snapshot of it is promoted.",
			"sidus exec debian -- apt-get install -y gcc", "sidus exec debian -- cat /etc/os-release"),
		Flags: changes(waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args := c.Args().Slice()
			if len(args) < 2 {
				return usagef("usage: sidus exec TREE -- PROGRAM [ARGUMENT...]")
			}
			return runInHead(ctx, c, s, args[0], args[1:])
		}),
	}
}

func shellCommand() *cli.Command {
	return &cli.Command{
		Name:      "shell",
		Usage:     "work inside the head of a tree",
		ArgsUsage: "TREE",
		Description: describe("Opens a shell in the sandbox that `sidus exec` uses. `sidus snapshot` keeps what was done; `sidus rollback`\n"+
			"undoes it.", "sidus shell debian"),
		Flags: changes(waitFlag()),
		Action: siteAction(func(ctx context.Context, c *cli.Context, s *site) error {
			args, err := want(c)
			if err != nil {
				return err
			}
			return runInHead(ctx, c, s, args[0], []string{"/bin/sh", "-c", "[ -x /bin/bash ] && exec /bin/bash -l; exec /bin/sh -l"})
		}),
	}
}

// runInHead runs a program in the head of a tree, which is locked meanwhile.
func runInHead(ctx context.Context, c *cli.Context, s *site, tree string, args []string) (err error) {
	lock, err := s.manager.LockHead(ctx, tree, c.Bool("wait"))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Release()) }()
	mount, err := s.manager.MountHead(ctx, lock)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	terminal := term.IsTerminal(int(os.Stdin.Fd())) && term.IsTerminal(int(os.Stdout.Fd()))
	err = guardSpaceInside(ctx, s.store, func(ctx context.Context) error {
		return sandbox.Run(ctx, sandbox.Options{
			Root: mount.Path(), Args: args, Hostname: tree,
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Terminal: terminal,
		})
	})
	var ended *sandbox.ExitError
	if errors.As(err, &ended) {
		if ended.Signal != 0 {
			fmt.Fprintf(os.Stderr, "sidus: %s: %v\n", args[0], ended)
			return programExit(128 + int(ended.Signal))
		}
		return programExit(ended.Code)
	}
	return err
}
