package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"

	"github.com/dustin/go-humanize"
	"github.com/dustin/go-humanize/english"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/image/backup"
	"sidus/image/catalog"
)

func backupCommand() *cli.Command {
	return &cli.Command{
		Name:      "backup",
		Usage:     "write the catalog and the site's key to one file",
		ArgsUsage: "FILE",
		Description: describe("Writes what the state folder holds, without the store's bytes and what can be made again: a consistent\n"+
			"copy of the catalog and the secrets, the site's key above all. Everything may go on working meanwhile. The\n"+
			"file is whole or not there, and only its owner can read it: who has it can be this server. - is standard\n"+
			"output. `sidus restore` brings it back.",
			"sidus backup /srv/backup/sidus-$(date +%F).tar.zst", "sidus backup - | ssh vault 'cat > sidus.tar.zst'"),
		Flags: reads(&cli.BoolFlag{Name: "replace", Usage: "replace FILE if it is there"}),
		Action: func(c *cli.Context) (err error) {
			setVerbosity(c)
			args, err := want(c)
			if err != nil {
				return err
			}
			return writeBackup(c.Context, c, args[0])
		},
	}
}

// writeBackup does not open the store, which may be what is broken.
func writeBackup(ctx context.Context, c *cli.Context, path string) (err error) {
	if err := requireRoot(); err != nil {
		return err
	}
	layout, err := layoutOf(c)
	if err != nil {
		return err
	}
	cat, err := catalog.Open(ctx, layout.Catalog())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("there is nothing in %s to back up (--state names another folder)", layout.Dir)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cat.Close()) }()
	program := "sidus " + version
	if path == "-" {
		if term.IsTerminal(int(os.Stdout.Fd())) {
			return usagef("a backup holds the site's key and is no text: give a FILE, or send it through a pipe")
		}
		signal.Ignore(syscall.SIGPIPE) // a reader that goes away is an error of Write
		_, err := backup.Write(ctx, os.Stdout, layout, cat, program)
		return err
	}
	m, err := backup.WriteFile(ctx, path, c.Bool("replace"), layout, cat, program)
	if err != nil {
		return takenFile(path, err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if !m.Secrets() {
		fmt.Fprintf(os.Stderr, "warning: there is no site key in %s\n", layout.Dir)
	}
	return print(c, map[string]any{"file": path, "bytes": info.Size(), "manifest": m}, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s: %s of %s, %s; keep it where only you can read it\n", path, english.Plural(len(m.Files), "file", ""), layout.Dir, humanize.IBytes(uint64(info.Size())))
	})
}
