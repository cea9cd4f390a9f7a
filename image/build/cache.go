package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sidus/image"
	"sidus/image/scratch"
)

// packageCache lends a phase the downloaded packages of earlier builds.
//
// The phase sees hard links in a folder of its own, so that builds do not
// stand in each other's way and a script that cleans the cache cleans its
// links only. What was downloaded is taken over when the phase has ended
// well. Package lists live in the folder too: they last for one build and
// never lie in the tree.
type packageCache struct {
	shared string // "" if there is no cache
	work   *scratch.Folder
}

// openPackageCache makes the folder of one build below folder, and removes those
// of builds that were cut. Without a folder, it is in /tmp.
func openPackageCache(folder string) (c *packageCache, err error) {
	c = &packageCache{}
	parent := os.TempDir()
	if folder != "" {
		c.shared = filepath.Join(folder, "packages")
		parent = filepath.Join(folder, image.BuildWork)
		if err := os.MkdirAll(c.shared, 0o755); err != nil {
			return nil, fmt.Errorf("package cache: %w", err)
		}
		_ = scratch.Sweep(parent) // `sidus check` says what stays
	}
	if c.work, err = scratch.Make(parent, "sidus-build"); err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	for _, dir := range []string{c.archives(), filepath.Join(c.archives(), "partial"), c.lists(), filepath.Join(c.lists(), "partial")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, errors.Join(fmt.Errorf("package cache: %w", err), c.close())
		}
	}
	if err := os.Chmod(c.work.Path(), 0o755); err != nil {
		return nil, errors.Join(err, c.close())
	}
	return c, nil
}

func (c *packageCache) archives() string { return filepath.Join(c.work.Path(), "archives") }
func (c *packageCache) lists() string    { return filepath.Join(c.work.Path(), "lists") }

// lend links every package of the shared cache into the build's folder.
func (c *packageCache) lend() error {
	if c.shared == "" {
		return nil
	}
	return linkPackages(c.shared, c.archives())
}

// keep takes what was downloaded over into the shared cache.
func (c *packageCache) keep() error {
	if c.shared == "" {
		return nil
	}
	return linkPackages(c.archives(), c.shared)
}

func linkPackages(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fmt.Errorf("package cache: %w", err)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".deb") {
			continue
		}
		err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name()))
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("package cache: %w", err)
		}
	}
	return nil
}

func (c *packageCache) close() error { return c.work.Remove() }
