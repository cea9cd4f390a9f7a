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
	"github.com/urfave/cli/v2"

	"sidus/image/catalog"
	"sidus/image/store"
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
			"sidus init --path /srv/btrfs/sidus",
			"sidus init --dataset tank/sidus",
			"sidus init --thin-pool vg0/sidus --file-system xfs"),
		Flags: changes(storeFlags()...),
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
	size, err := parseSize("size", c.String("size"))
	if err != nil {
		return err
	}
	layout, err := layoutOf(c)
	if err != nil {
		return err
	}
	config, err := storeConfigOf(c, layout.StoreFile())
	if err != nil {
		return err
	}
	entries, _ := os.ReadDir(layout.Dir)
	fresh := len(entries) == 0 // what is in it later, this init has made
	defer func() {
		if fresh && err != nil {
			err = errors.Join(err, removeContents(layout.Dir))
		}
	}()
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
	old, noStore := readStoreConfig(ctx, cat)
	if noStore == nil {
		// Without a place, "what is there" is meant.
		if config.File != "" && c.String("backend") == "auto" {
			config = old
		}
		if old != config {
			return usagef("%s has a store already, %s; --state names another folder for a second one", layout.Dir, old.place())
		}
	}
	if err := makeSiteKey(layout.SiteKey()); err != nil {
		return fmt.Errorf("make the site's key: %w", err)
	}
	opened, err := config.make(ctx, size)
	if err != nil {
		return err
	}
	fresh = fresh && config.File == "" // else the store would go, too
	defer func() { err = errors.Join(err, opened.Close()) }()
	if noStore != nil {
		if err := refuseOwned(ctx, opened, config); err != nil {
			return err
		}
	}
	fresh = false
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

// refuseOwned returns an error if a store is that of another state folder: the
// first change would replace the copy of its catalog by an empty one.
func refuseOwned(ctx context.Context, s openStore, config storeConfig) error {
	keeper, ok := s.(store.Keeper)
	if !ok {
		return nil
	}
	kept, err := keeper.Kept(ctx, "sidus.db")
	if errors.Is(err, store.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	place := config.place()
	for option, value := range map[string]string{"--path": config.Path, "--dataset": config.Dataset, "--thin-pool": config.ThinPool} {
		if value != "" {
			place = option + " " + value
		}
	}
	return errors.Join(fmt.Errorf("%s: the store %w, with the catalog of another server or state folder; to take it over: `sidus restore --from-store %s`",
		config.place(), store.ErrExists, place), kept.Close())
}

// removeContents removes what is in a folder, and the folder if it can.
func removeContents(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	_ = os.Remove(dir) // it may be a mount point, or not ours
	return nil
}

// parseSize reads a number of bytes; K, M, G and T are powers of 1024.
func parseSize(option, text string) (int64, error) {
	size, err := parseBytes(text)
	if err != nil {
		return 0, usagef("--%s %s: %v", option, text, err)
	}
	return size, nil
}

var errNoSize = errors.New("it is a number of bytes, with K, M, G or T")

func parseBytes(text string) (int64, error) {
	size, err := humanize.ParseBytes(text + "iB")
	if err != nil {
		size, err = humanize.ParseBytes(text)
	}
	if err != nil || size > 1<<60 {
		return 0, errNoSize
	}
	return int64(size), nil
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
				return noStoreYet(layout, err)
			}
			config, err := readStoreConfig(c.Context, cat)
			if err := errors.Join(err, cat.Close()); err != nil {
				return err
			}
			opened, err := config.open(c.Context)
			if err != nil {
				return err
			}
			return opened.Detach(c.Context)
		},
	}
}
