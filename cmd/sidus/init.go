package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/dustin/go-humanize"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/btrfs"
	"sidus/image/catalog"
)

func initCommand() *cli.Command {
	return &cli.Command{
		Name:  "init",
		Usage: "make a store, or adopt what is there",
		Description: describe(
			"Makes the state folder with its catalog, the site's key and a store. Without a place for the\n"+
				"store it is a sparse loop file with a btrfs in the state folder, which needs no disk and no\n"+
				"kernel module; it grows as it is used and never fills the disk that it lies on. A second\n"+
				"`init` with the same options does nothing.",
			"sidus init",
			"sidus init --size 200G",
			"sidus init --path /srv/btrfs/sidus"),
		Flags: changes(
			&cli.StringFlag{Name: "backend", Value: "auto", Usage: "`KIND` of store: auto or btrfs"},
			&cli.StringFlag{Name: "path", Usage: "an empty folder `DIR` of a btrfs file system that exists"},
			&cli.StringFlag{Name: "size", Value: "40G", Usage: "the size of the loop file: `BYTES`, with K, M, G or T"},
		),
		Action: func(c *cli.Context) error {
			setVerbosity(c)
			if _, err := want(c); err != nil {
				return err
			}
			return initSite(c.Context, c)
		},
	}
}

func initSite(ctx context.Context, c *cli.Context) (err error) {
	if err := requireRoot(); err != nil {
		return err
	}
	if backend := c.String("backend"); backend != "auto" && backend != "btrfs" {
		return usagef("--backend %s: this sidus knows auto and btrfs", backend)
	}
	size, err := humanize.ParseBytes(c.String("size") + "iB")
	if err != nil {
		if size, err = humanize.ParseBytes(c.String("size")); err != nil {
			return usagef("--size %s: it is a number of bytes, with K, M, G or T", c.String("size"))
		}
	}
	layout, err := layoutOf(c)
	if err != nil {
		return err
	}
	if err := layout.Make(); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	cat, err := catalog.Open(ctx, layout.Catalog())
	if errors.Is(err, fs.ErrNotExist) {
		cat, err = catalog.Create(ctx, layout.Catalog())
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, cat.Close()) }()
	config := storeConfig{Backend: "btrfs"}
	if path := c.String("path"); path != "" {
		if config.Path, err = filepath.Abs(path); err != nil {
			return err
		}
	} else {
		config.File = layout.StoreFile()
	}
	if old, err := readStoreConfig(ctx, cat); err == nil {
		// Without a place, "what is there" is meant.
		if c.String("path") == "" {
			config = old
		}
		if old != config {
			return usagef("%s has a store already, %s; --state names another folder for a second one", layout.Dir, old.place())
		}
	}
	if err := makeSiteKey(layout.SiteKey()); err != nil {
		return fmt.Errorf("make the site's key: %w", err)
	}
	options := config.options()
	options.Size = int64(size)
	opened, err := btrfs.Init(ctx, options)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	if err := writeStoreConfig(ctx, cat, config, c.String("message")); err != nil {
		return err
	}
	usage, err := opened.Usage(ctx)
	if err != nil {
		return err
	}
	return print(c, map[string]any{"state": layout.Dir, "store": config, "usage": usage}, func(w io.Writer) {
		fmt.Fprintf(w, "state folder %s, store %s: %s can be written\n", layout.Dir, config.place(), humanize.IBytes(uint64(max(0, usage.Available))))
		fmt.Fprintln(w, "next: `sidus build RECIPE`, or `sidus import TREE --dir DIR`")
	})
}

// place names the store for people.
func (c storeConfig) place() string {
	if c.File != "" {
		return c.File
	}
	return c.Path
}

func writeStoreConfig(ctx context.Context, cat *catalog.Catalog, config storeConfig, message string) error {
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return cat.Update(ctx, func(tx *sql.Tx) error {
		old, found, err := catalog.Meta(tx, metaStore)
		if err != nil || found && old == string(text) {
			return err
		}
		if err := catalog.SetMeta(tx, metaStore, string(text)); err != nil {
			return err
		}
		return catalog.Record(tx, catalog.CurrentActor(), "init", "store", "made the store "+config.place(), message)
	})
}

func unmountCommand() *cli.Command {
	return &cli.Command{
		Name:  "unmount",
		Usage: "unmount the embedded store; the next command mounts it again",
		Description: describe("Takes the loop file of the embedded store from its mount point, for example before the disk below\n"+
			"it is unmounted. Refused while anything uses the store.", "sidus unmount"),
		Flags: reads(),
		Action: func(c *cli.Context) error {
			setVerbosity(c)
			if err := requireRoot(); err != nil {
				return err
			}
			layout, err := layoutOf(c)
			if err != nil {
				return err
			}
			cat, err := catalog.Open(c.Context, layout.Catalog())
			if err != nil {
				return err
			}
			config, err := readStoreConfig(c.Context, cat)
			if err := errors.Join(err, cat.Close()); err != nil {
				return err
			}
			if config.File == "" {
				logrus.Infof("%s is not a store of its own: nothing to unmount", config.Path)
				return nil
			}
			if _, err := os.Stat(config.File); err != nil {
				return err
			}
			return btrfs.Detach(c.Context, config.options())
		},
	}
}
