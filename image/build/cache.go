package build

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/gofrs/flock"
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
	work   string
	lock   *flock.Flock
}

// openPackageCache makes the folder of one build under folder/packages, and
// removes those of builds that were cut. Without a folder, it is in /tmp.
func openPackageCache(folder string) (*packageCache, error) {
	c := &packageCache{}
	parent := os.TempDir()
	if folder != "" {
		c.shared = filepath.Join(folder, "packages")
		parent = filepath.Join(folder, "work")
		for _, dir := range []string{c.shared, parent} {
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return nil, fmt.Errorf("package cache: %w", err)
			}
		}
		collectWork(parent)
	}
	var err error
	if c.work, err = os.MkdirTemp(parent, "sidus-build-*"); err != nil {
		return nil, fmt.Errorf("package cache: %w", err)
	}
	c.lock = flock.New(c.work + ".lock")
	if _, err := c.lock.TryLock(); err != nil {
		c.close()
		return nil, fmt.Errorf("package cache: %w", err)
	}
	if err := os.Chmod(c.work, 0o755); err != nil {
		c.close()
		return nil, err
	}
	for _, dir := range []string{c.archives(), filepath.Join(c.archives(), "partial"), c.lists(), filepath.Join(c.lists(), "partial")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			c.close()
			return nil, fmt.Errorf("package cache: %w", err)
		}
	}
	return c, nil
}

// collectWork removes the folders whose build is dead.
func collectWork(parent string) {
	locks, _ := filepath.Glob(filepath.Join(parent, "sidus-build-*.lock"))
	for _, name := range locks {
		lock := flock.New(name)
		if held, err := lock.TryLock(); err != nil || !held {
			continue
		}
		os.RemoveAll(strings.TrimSuffix(name, ".lock"))
		os.Remove(name)
		_ = lock.Unlock()
	}
}

func (c *packageCache) archives() string { return filepath.Join(c.work, "archives") }
func (c *packageCache) lists() string    { return filepath.Join(c.work, "lists") }

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

func (c *packageCache) close() {
	os.RemoveAll(c.work)
	if c.lock != nil {
		os.Remove(c.lock.Path())
		_ = c.lock.Unlock()
	}
}
