package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/image"
	"sidus/image/backup"
	"sidus/image/catalog"
	"sidus/image/store"
)

func restoreCommand() *cli.Command {
	return &cli.Command{
		Name:      "restore",
		Usage:     "bring back the catalog and the site's key",
		ArgsUsage: "[FILE]",
		Description: describe("Brings back what `sidus backup` wrote, or, with --from-store, the copy of the newest catalog that the store\n"+
			"itself keeps. What is brought back is checked first; a file that is damaged, foreign or of a newer version\n"+
			"changes nothing. A state that is there is replaced only with --force, and is kept aside. Afterwards catalog\n"+
			"and store are compared, as `sidus check` does.\n\n"+
			"The store has no copy of the site's key. Without it running machines lose their root file system, and\n"+
			"nodes get another machine-id at their next boot: give --key, or --new-key if it is lost.",
			"sidus restore /srv/backup/sidus.tar.zst",
			"sidus restore --from-store --path /srv/btrfs/sidus --key site.key",
			"sidus restore --from-store --dataset tank/sidus --new-key",
			"sidus restore --from-store --force   # the newest catalog beside the key that is there"),
		Flags: changes(append(restorePlaces(),
			&cli.BoolFlag{Name: "from-store", Usage: "take the copy that the store keeps"},
			&cli.StringFlag{Name: "key", Usage: "--from-store: the site's key is in `FILE`"},
			&cli.BoolFlag{Name: "new-key", Usage: "--from-store: the key is lost, make a new one"},
			&cli.BoolFlag{Name: "force", Usage: "replace the state that is there, and keep it aside"},
			yesFlag(),
		)...),
		Action: func(c *cli.Context) error {
			setVerbosity(c)
			args, err := want(c)
			if err != nil {
				return err
			}
			if (args[0] == "") != c.Bool("from-store") {
				return usagef("give a FILE, or --from-store")
			}
			if !c.Bool("from-store") && (c.String("key") != "" || c.Bool("new-key")) || c.String("key") != "" && c.Bool("new-key") {
				return usagef("--key or --new-key goes with --from-store")
			}
			return restore(c.Context, c, args[0])
		},
	}
}

// restorePlaces are the options that say where the store is.
func restorePlaces() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "backend", Value: "auto", Usage: "the `KIND` of store: btrfs, zfs, lvm, or auto: what the place asks for"},
		&cli.StringFlag{Name: "file", Usage: "the store is the `FILE`; else, without a place, that of the state folder"},
		&cli.StringFlag{Name: "path", Usage: "btrfs: the store is the folder `DIR`"},
		&cli.StringFlag{Name: "dataset", Usage: "ZFS: the store is `POOL/NAME`"},
		&cli.StringFlag{Name: "thin-pool", Usage: "LVM: the store is `VG/POOL`"},
	}
}

// restored is what a restore brought back, for people and scripts.
type restored struct {
	State    string          `json:"state"`
	From     string          `json:"from"`
	Created  time.Time       `json:"created,omitzero"` // of the backup
	Aside    string          `json:"aside,omitempty"`  // where the old state is
	NewKey   bool            `json:"new_key"`
	Findings []image.Finding `json:"findings"`       // what catalog and store differ in
	Newer    time.Time       `json:"newer,omitzero"` // the store keeps a catalog of that time, which is newer than the backup
	Problem  string          `json:"problem,omitempty"`
}

func restore(ctx context.Context, c *cli.Context, file string) (err error) {
	if err := requireRoot(); err != nil {
		return err
	}
	layout, err := layoutOf(c)
	if err != nil {
		return err
	}
	if backup.Occupied(layout) {
		if !c.Bool("force") {
			return fmt.Errorf("the state in %s %w; --force replaces it and keeps it aside", layout.Dir, store.ErrExists)
		}
		if err := confirm(c, "replace the state in "+layout.Dir); err != nil {
			return err
		}
	}
	stage, err := backup.NewStage(layout)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stage.Discard()) }()
	report := restored{State: layout.Dir, From: file, Findings: []image.Finding{}}
	if file != "" {
		err = stageFile(ctx, c, stage, layout, file, &report)
	} else {
		err = stageFromStore(ctx, c, stage, layout, &report)
	}
	if err != nil {
		return err
	}
	if report.Aside, err = stage.Install(time.Now()); err != nil {
		return err
	}
	if err := layout.Make(); err != nil {
		return fmt.Errorf("make the state folder: %w", err)
	}
	compareRestored(ctx, c, &report)
	return print(c, report, func(w io.Writer) { printRestored(w, report) })
}

func stageFile(ctx context.Context, c *cli.Context, stage *backup.Stage, layout image.Layout, path string, report *restored) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	defer file.Close()
	m, err := backup.Unpack(ctx, file, stage.Layout.Dir)
	if err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	report.Created = m.Created
	err = stage.Prepare(ctx, func(tx *sql.Tx) error {
		if err := restoreConfig(c, tx, layout, m.State); err != nil {
			return err
		}
		return recordRestore(c, tx, fmt.Sprintf("brought back the backup of %s", when(m.Created)))
	})
	if err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	return nil
}

// restoreConfig says in a catalog from a backup where the store is today: at a
// place that is given, or in the new state folder if it was in the old one.
func restoreConfig(c *cli.Context, tx *sql.Tx, layout image.Layout, oldState string) error {
	text, found, err := catalog.Meta(tx, metaStore)
	if err != nil {
		return err
	}
	var config storeConfig
	if found {
		if err := json.Unmarshal([]byte(text), &config); err != nil {
			return fmt.Errorf("%w: the catalog's store: %w", backup.ErrDamaged, err)
		}
	}
	given := c.String("file") != "" || c.String("path") != "" || c.String("dataset") != "" || c.String("thin-pool") != ""
	switch {
	case given:
		place, err := placeOfStore(c, layout)
		if err != nil {
			return err
		}
		config.Backend, config.File, config.Path, config.Dataset, config.ThinPool = place.Backend, place.File, place.Path, place.Dataset, place.ThinPool
	case !found:
		return nil // `init` was cut before it had made one
	case config.File == (image.Layout{Dir: oldState}).StoreFile():
		config.File = layout.StoreFile()
	}
	return setStoreConfig(tx, config)
}

func setStoreConfig(tx *sql.Tx, config storeConfig) error {
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	return catalog.SetMeta(tx, metaStore, string(text))
}

func placeOfStore(c *cli.Context, layout image.Layout) (storeConfig, error) {
	file := layout.StoreFile()
	if given := c.String("file"); given != "" {
		if c.String("path")+c.String("dataset")+c.String("thin-pool") != "" {
			return storeConfig{}, usagef("give one of --file, --path, --dataset and --thin-pool")
		}
		absolute, err := filepath.Abs(given)
		if err != nil {
			return storeConfig{}, err
		}
		file = absolute
	}
	return storeConfigOf(c, file)
}

func recordRestore(c *cli.Context, tx *sql.Tx, text string) error {
	return catalog.Record(tx, catalog.CurrentActor(), "restore", "catalog", text, c.String("message"))
}

func stageFromStore(ctx context.Context, c *cli.Context, stage *backup.Stage, layout image.Layout, report *restored) error {
	config, err := placeOfStore(c, layout)
	if err != nil {
		return err
	}
	report.From = "the store " + config.place()
	if err := stageKey(c, stage, layout, report); err != nil {
		return err
	}
	if err := takeKept(ctx, config, stage); err != nil {
		return err
	}
	err = stage.Prepare(ctx, func(tx *sql.Tx) error {
		// What else was set of the store stays as it was.
		if text, found, err := catalog.Meta(tx, metaStore); err != nil {
			return err
		} else if found {
			var old storeConfig
			if err := json.Unmarshal([]byte(text), &old); err == nil && old.Backend == config.Backend {
				config.FileSystem, config.VolumeSize = old.FileSystem, old.VolumeSize
			}
		}
		if err := setStoreConfig(tx, config); err != nil {
			return err
		}
		return recordRestore(c, tx, "brought back the copy in the store")
	})
	if err != nil {
		return fmt.Errorf("restore from %s: %w", report.From, err)
	}
	return nil
}

// stageKey stages the key that is given, or a new one, if there is none.
func stageKey(c *cli.Context, stage *backup.Stage, layout image.Layout, report *restored) error {
	path := c.String("key")
	if path == "" {
		if _, err := os.Lstat(layout.SiteKey()); err == nil && !c.Bool("new-key") {
			return nil // it stays
		}
		if !c.Bool("new-key") {
			return usagef("the store keeps no copy of the site's key. Without that key machines that run lose their root file system, and\n" +
				"nodes get another machine-id at their next boot. Give --key FILE (in a backup it is secrets/site.key), or --new-key if it is lost")
		}
		report.NewKey = true
	}
	if err := os.MkdirAll(filepath.Dir(stage.Layout.SiteKey()), 0o700); err != nil {
		return err
	}
	if path == "" {
		return makeSiteKey(stage.Layout.SiteKey())
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("--key: %w", err)
	}
	if len(key) != 32 {
		return usagef("--key %s: it has %d bytes, the site's key has 32", path, len(key))
	}
	return os.WriteFile(stage.Layout.SiteKey(), key, 0o600)
}

// takeKept stages the copy of the catalog that a store keeps.
func takeKept(ctx context.Context, config storeConfig, stage *backup.Stage) (err error) {
	opened, err := config.open(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	keeper, ok := store.Store(opened).(store.Keeper)
	if !ok {
		return fmt.Errorf("the store %s keeps no copy of the catalog", config.place())
	}
	kept, err := keeper.Kept(ctx, "sidus.db")
	if err != nil {
		return fmt.Errorf("the copy of the catalog in the store %s: %w", config.place(), err)
	}
	defer kept.Close()
	return stage.TakeCatalog(kept)
}

// compareRestored looks whether the store holds what the catalog names. What
// goes wrong here is told; what was brought back stays.
func compareRestored(ctx context.Context, c *cli.Context, report *restored) {
	s, err := openSite(ctx, c)
	if err != nil {
		report.Problem = "the store cannot be opened: " + err.Error()
		return
	}
	findings, err := s.manager.Check(ctx)
	if !report.Created.IsZero() {
		if kept := newestKept(ctx, s); kept.After(report.Created) {
			report.Newer = kept
		}
	}
	if err := errors.Join(err, s.close()); err != nil {
		report.Problem = "catalog and store cannot be compared: " + err.Error()
		return
	}
	report.Findings = append(report.Findings, findings...)
}

// newestKept tells when what the store's copy of the catalog has on record last
// happened; the zero time if that cannot be told.
func newestKept(ctx context.Context, s *site) time.Time {
	keeper, ok := store.Store(s.store).(store.Keeper)
	if !ok {
		return time.Time{}
	}
	kept, err := keeper.Kept(ctx, "sidus.db")
	if err != nil {
		return time.Time{}
	}
	defer kept.Close()
	at, err := backup.NewestEvent(ctx, kept, s.layout.Dir)
	if err != nil {
		logrus.WithError(err).Warn("the copy of the catalog in the store is of no use")
	}
	return at
}

func printRestored(w io.Writer, r restored) {
	fmt.Fprintf(w, "brought back the state in %s from %s", r.State, r.From)
	if !r.Created.IsZero() {
		fmt.Fprintf(w, ", made %s", ago(r.Created))
	}
	fmt.Fprintln(w)
	if r.Aside != "" {
		fmt.Fprintf(w, "what was there is in %s; remove that when all is well\n", r.Aside)
	}
	if r.NewKey {
		fmt.Fprintln(w, "the site's key is new: machines that run lose their root file system (boot them again), and nodes get another machine-id")
	}
	for _, f := range r.Findings {
		fmt.Fprintf(w, "%s: %s\n", f.Kind, f.Text)
	}
	if !r.Newer.IsZero() {
		fmt.Fprintf(w, "the store keeps a newer catalog, of %s: `sidus restore --from-store --force` brings that back, beside the key of the backup.\n"+
			"Do that before anything else: the next change replaces the store's copy\n", when(r.Newer))
	}
	switch {
	case r.Problem != "":
		fmt.Fprintf(w, "%s\n", r.Problem)
	case len(r.Findings) == 0:
		fmt.Fprintln(w, "catalog and store agree")
	default:
		fmt.Fprintln(w, "`sidus check` tells this again")
	}
}
