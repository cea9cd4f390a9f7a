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
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/export/stream"
	"sidus/export/transfer"
	"sidus/image"
	"sidus/image/scratch"
	"sidus/image/store"
)

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write a snapshot, or the difference between two, to one file",
		ArgsUsage: "TREE@SNAP",
		Description: describe("Writes a stream: compressed, with a digest of each part and of the whole. `sidus import --stream` takes it\n"+
			"on another server, where the snapshot has the same ID. The native kind keeps most and needs a store of the\n"+
			"same kind there; --portable goes into any, and `zstd -dc FILE | tar x` opens it. With --base only what\n"+
			"differs is written, and the other server must have that snapshot. The file is whole or not there.\n\n"+
			"What is encrypted in a ZFS store leaves it encrypted; the portable kind would not be, and is refused\n"+
			"without --decrypt.",
			"sidus export debian@14 -o debian-14.stream", "sidus export debian@15 --base debian@14 -o 14-to-15.stream",
			"sidus export debian@14 --portable | ssh other sidus import --stream -"),
		Flags: reads(
			&cli.StringFlag{Name: "output", Aliases: []string{"o"}, Value: "-", Usage: "write `FILE`; - is standard output"},
			&cli.StringFlag{Name: "base", Usage: "only what differs from `TREE@SNAP`"},
			&cli.BoolFlag{Name: "portable", Usage: "an archive of tar that any store takes"},
			decryptFlag(),
			&cli.StringFlag{Name: "level", Value: "default", Usage: "compress at `N`: 1 to 19, fast, default, better, best, or none"},
			&cli.BoolFlag{Name: "replace", Usage: "replace FILE if it is there"},
		),
		Action: siteAction(exportSnapshot),
	}
}

// exported is what was written.
type exported struct {
	File     string          `json:"file"`
	Manifest stream.Manifest `json:"manifest"`
	Payload  int64           `json:"payload"` // bytes
	Stream   int64           `json:"stream"`  // bytes
	Digest   string          `json:"digest"`
	Omitted  int             `json:"omitted"` // sockets, which a portable stream cannot hold
}

func exportSnapshot(ctx context.Context, c *cli.Context, s *site) (err error) {
	args, err := want(c)
	if err != nil {
		return err
	}
	level, err := stream.ParseLevel(c.String("level"))
	if err != nil {
		return usagef("--level: %s", err)
	}
	path := c.String("output")
	if path == "-" && term.IsTerminal(int(os.Stdout.Fd())) {
		return usagef("a stream is no text: give -o FILE, or send it through a pipe")
	}
	snapshot, err := s.manager.Resolve(ctx, args[0])
	if err != nil {
		return err
	}
	source, release, err := exportSource(ctx, c, s, snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	out, err := openOutput(path, c.Bool("replace"))
	if err != nil {
		return errors.Join(err, closeSource(source))
	}
	defer out.discard()
	bar := newByteProgress("export " + snapshot.Ref())
	result, err := stream.Export(ctx, out, source, stream.WriterOptions{Level: level, Progress: func(p stream.Progress) { bar.update(p.Payload, p.Total, p.Stream) }})
	bar.finish()
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err() // how it came to an end is no news
		}
		return err
	}
	if err := out.keep(); err != nil {
		return err
	}
	for _, socket := range result.Omitted {
		logrus.Debugf("left out: the socket %s", socket)
	}
	report := exported{path, source.Manifest, result.Payload, result.Stream, result.Digest, result.OmittedCount}
	if path == "-" {
		return nil // the stream is what there is to print
	}
	return print(c, report, func(w io.Writer) {
		fmt.Fprintf(w, "wrote %s: %s, %s of %s\n", path, snapshot.Ref(), humanize.IBytes(uint64(report.Stream)), humanize.IBytes(uint64(report.Payload)))
		if report.Omitted > 0 {
			fmt.Fprintf(w, "%d sockets were left out\n", report.Omitted)
		}
	})
}

// exportSource begins to read a snapshot. release gives back what was taken.
func exportSource(ctx context.Context, c *cli.Context, s *site, snapshot image.Snapshot) (source stream.Source, release func() error, err error) {
	release = func() error { return nil }
	source.Manifest = transfer.ManifestOf(snapshot, "sidus "+version)
	if base := c.String("base"); base != "" {
		found, err := s.manager.Resolve(ctx, base)
		if err != nil {
			return source, release, err
		}
		if found.ID == snapshot.ID {
			return source, release, usagef("--base %s is the snapshot itself", base)
		}
		source.Manifest.Base = found.ID
	}
	sender, native := store.Store(s.store).(store.NativeSender)
	if c.Bool("portable") || !native {
		if source.Manifest.Base != "" {
			return source, release, usagef("a portable stream is a whole tree: --base goes with the native kind of a store that has one")
		}
		if !c.Bool("decrypt") {
			if err := s.manager.RefuseClear(ctx, snapshot); err != nil {
				return source, release, fmt.Errorf("a portable stream of %w; --decrypt allows that", err)
			}
		}
		mount, err := s.manager.MountSnapshot(ctx, snapshot.ID)
		if err != nil {
			return source, release, err
		}
		source.Manifest.Kind, source.Root = stream.Portable, mount.Path()
		source.Manifest.Size = stream.Estimate(ctx, mount.Path(), "")
		return source, func() error { return mount.Unmount(context.WithoutCancel(ctx)) }, nil
	}
	source.Manifest.Kind = stream.Kind(sender.SendKind())
	if source.Manifest.Size, err = transfer.PayloadSize(ctx, s.manager, snapshot.ID, source.Manifest.Base); err != nil {
		return source, release, err
	}
	send := sender.Send
	if level, err := stream.ParseLevel(c.String("level")); err != nil {
		return source, release, err
	} else if compressed, ok := store.Store(s.store).(store.CompressedSender); ok && level == stream.Stored {
		send = compressed.SendCompressed
	}
	source.Native, err = send(ctx, snapshot.ID, source.Manifest.Base)
	return source, release, err
}

func closeSource(source stream.Source) error {
	if source.Native == nil {
		return nil
	}
	return source.Native.Close()
}

// output is a file that appears whole or not at all, or standard output.
type output struct {
	*os.File
	file *scratch.File // nil: standard output
}

func openOutput(path string, replace bool) (output, error) {
	if path == "-" {
		// A reader that goes away is an error of Write, and not the end of
		// this process, which has mounts to give back.
		signal.Ignore(syscall.SIGPIPE)
		return output{File: os.Stdout}, nil
	}
	file, err := scratch.NewFile(path, replace)
	if err != nil {
		return output{}, takenFile(path, err)
	}
	return output{file.File, file}, nil
}

// keep makes the file appear.
func (o output) keep() error {
	if o.file == nil {
		return nil
	}
	return takenFile(o.Name(), o.file.Keep())
}

// discard removes the file, unless it was kept.
func (o output) discard() {
	if o.file != nil {
		o.file.Discard()
	}
}

// takenFile says what can be done if a file is there already.
func takenFile(path string, err error) error {
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%s: %w; --replace replaces a file", path, store.ErrExists)
	}
	return err
}
