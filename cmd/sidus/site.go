package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/catalog"
	"sidus/image/scratch"
)

// site is an open state folder: catalog, store, and what works on them.
type site struct {
	layout  image.Layout
	catalog *catalog.Catalog
	store   openStore
	config  storeConfig
	manager *image.Manager
	actor   catalog.Actor
	message string
}

// metaStore is the catalog's key for the storeConfig.
const metaStore = "store"

// siteAction is a command that works on an open state folder.
func siteAction(body func(ctx context.Context, c *cli.Context, s *site) error) cli.ActionFunc {
	return func(c *cli.Context) (err error) {
		setVerbosity(c)
		// A wrong command line is said before anything is opened.
		if !strings.Contains(c.Command.ArgsUsage, "...") {
			if _, err := want(c); err != nil {
				return err
			}
		}
		s, err := openSite(c.Context, c)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, s.close()) }()
		if changesSite(c.Command) {
			if err := s.manager.Writable(c.Context); err != nil {
				return err
			}
			if err := s.manager.NoteCatalog(c.Context); err != nil {
				return err
			}
			defer s.manager.KeepChanges(context.WithoutCancel(c.Context))
		}
		return body(c.Context, c, s)
	}
}

// changesSite tells whether a command changes what a replica has from its
// primary: those do whose reason is kept in the history. What check mends is of
// one server alone; gc, which can also only plan, takeover, demote and holds
// look at the role themselves.
func changesSite(command *cli.Command) bool {
	for _, flag := range command.Flags {
		if slices.Contains(flag.Names(), "message") {
			return !slices.Contains([]string{"check", "gc", "takeover", "demote", "release"}, command.Name)
		}
	}
	return false
}

func setVerbosity(c *cli.Context) {
	if c.Bool("verbose") {
		logrus.SetLevel(logrus.DebugLevel)
	}
}

func requireRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("sidus mounts file systems and keeps the files of all users: it must run as root; try sudo")
	}
	return nil
}

func layoutOf(c *cli.Context) (image.Layout, error) {
	dir, err := filepath.Abs(c.String("state"))
	return image.Layout{Dir: dir}, err
}

func openSite(ctx context.Context, c *cli.Context) (s *site, err error) {
	if err := requireRoot(); err != nil {
		return nil, err
	}
	layout, err := layoutOf(c)
	if err != nil {
		return nil, err
	}
	s = &site{layout: layout, actor: catalog.CurrentActor(), message: c.String("message")}
	if s.catalog, err = catalog.Open(ctx, layout.Catalog()); err != nil {
		return nil, noStoreYet(layout, err)
	}
	// Somebody may have removed a cache, logs or locks as a whole.
	if err := layout.Make(); err != nil {
		return nil, errors.Join(fmt.Errorf("the state folder: %w", err), s.catalog.Close())
	}
	if s.config, err = readStoreConfig(ctx, s.catalog); err == nil {
		s.store, err = s.config.open(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.catalog.Close())
	}
	s.manager = image.New(image.Options{Layout: layout, Catalog: s.catalog, Store: s.store, Actor: s.actor, Message: s.message})
	return s, nil
}

// noStoreYet says what to do if the catalog is not there.
func noStoreYet(layout image.Layout, err error) error {
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, statErr := os.Stat(layout.StoreFile()); statErr == nil {
		return fmt.Errorf("there is a store in %s, but no catalog: `sidus restore --from-store --force` brings it back (or `sidus restore FILE`)", layout.Dir)
	}
	return fmt.Errorf("there is no store in %s yet: `sidus init` makes one (or --state names another folder); `sidus restore` brings back one that was there", layout.Dir)
}

func (s *site) close() error {
	return errors.Join(s.store.Close(), s.catalog.Close())
}

func readStoreConfig(ctx context.Context, c *catalog.Catalog) (config storeConfig, err error) {
	err = c.View(ctx, func(tx *sql.Tx) error {
		text, found, err := catalog.Meta(tx, metaStore)
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("the catalog %s names no store: `sidus init` was cut; run it again", c.Path())
		}
		return json.Unmarshal([]byte(text), &config)
	})
	return config, err
}

// siteKey reads the key that authenticates file handles and derives machine
// IDs.
func (s *site) siteKey() (key [32]byte, err error) {
	text, err := os.ReadFile(s.layout.SiteKey())
	if err != nil {
		return key, fmt.Errorf("the site's key: %w; without it running nodes lose their root: bring it back from a backup", err)
	}
	if len(text) != len(key) {
		return key, fmt.Errorf("the site's key %s has %d bytes instead of %d: bring it back from a backup", s.layout.SiteKey(), len(text), len(key))
	}
	return [32]byte(text), nil
}

// makeSiteKey makes the site's key, if there is none. It has its name when all
// of it is on disk, and takes the place of nothing.
func makeSiteKey(path string) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // never fails, see crypto/rand
	file, err := scratch.NewFile(path, false)
	if err != nil {
		return err
	}
	defer file.Discard()
	if _, err := file.Write(key[:]); err != nil {
		return err
	}
	if err := file.Keep(); !errors.Is(err, fs.ErrExist) { // else another init was quicker
		return err
	}
	return nil
}
