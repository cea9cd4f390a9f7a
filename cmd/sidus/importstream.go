package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/export/stream"
	"sidus/export/transfer"
	"sidus/image"
	"sidus/image/store"
)

// importStream takes what export wrote. tree is the name to list it under; ""
// is that of the sender. A tree that is made gets properties.
func importStream(ctx context.Context, c *cli.Context, s *site, path, tree string, properties map[string]string) (err error) {
	file := os.Stdin
	if path != "-" {
		if file, err = os.Open(path); err != nil {
			return fmt.Errorf("--stream: %w", err)
		}
		defer file.Close()
	} else if term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("--stream -: a stream is read from a pipe, not from a terminal")
	}
	var bar *byteProgress
	r, err := stream.Open(file, stream.ReaderOptions{Progress: func(p stream.Progress) { bar.update(p.Payload, p.Total, p.Stream) }})
	if err != nil {
		return fmt.Errorf("import %s: %w", path, err)
	}
	m := r.Manifest()
	if m.Base != "" {
		lost, err := s.manager.IsLost(ctx, m.Base)
		if err == nil && lost {
			err = &image.LostError{What: "snapshot " + string(m.Base)}
		}
		if err != nil {
			return fmt.Errorf("import %s: it only holds what differs from a snapshot that has to be here first: %w", path, err)
		}
	}
	bar = newByteProgress(fmt.Sprintf("import %s@%d", m.Tree, m.Number))
	defer func() { bar.finish() }()
	options := image.ReceiveOptions{Snapshot: transfer.SnapshotOf(m), Tree: tree, Base: m.Base, Source: path}
	if path == "-" {
		options.Source = "standard input"
	}
	var snapshot image.Snapshot
	err = guardSpace(ctx, s.store, func(ctx context.Context) (err error) {
		options.Take = func(ctx context.Context, scratch store.VolumeID) error {
			return stream.Import(ctx, s.store, r, stream.ImportOptions{Volume: scratch, Properties: properties, PortableOnly: c.Bool("portable-only"), Log: logrus.StandardLogger()})
		}
		snapshot, err = s.manager.WithProperties(properties).Receive(ctx, options)
		return err
	})
	if err != nil {
		return fmt.Errorf("import %s: %w", options.Source, err)
	}
	bar.finish()
	return print(c, snapshot, func(w io.Writer) {
		fmt.Fprintf(w, "imported %s (%s, %s of %s)\n", snapshot.Ref(), snapshot.ID, m.Kind, path)
	})
}
