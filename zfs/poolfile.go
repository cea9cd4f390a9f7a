package zfs

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sidus/image/store"
	"sidus/image/store/backend"
)

// poolPrefix begins the name of a pool in a file; eight random hexadecimal
// digits follow, since a machine's pools share one space of names.
const poolPrefix = "sidus-"

// makePool makes the file and a pool in it, and tells whether it did. Nothing
// is there under the file's name until all is done.
func (o Options) makePool(ctx context.Context) (made bool, err error) {
	if _, err := os.Lstat(o.File); err == nil {
		return false, nil
	}
	undo := backend.Undo{Log: o.Log}
	defer func() { undo.Unwind(&err) }()
	file, err := backend.BeginFile(backend.FileOptions{Path: o.File, Size: o.Size, MinSize: MinSize, DiskReserve: o.DiskReserve, Step: o.step}, &undo)
	if errors.Is(err, store.ErrExists) { // another process was faster
		return false, nil
	} else if err != nil {
		return false, err
	}
	defer file.Close()
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := poolPrefix + hex.EncodeToString(random[:])
	if err := o.step("create pool"); err != nil {
		return false, err
	}
	// cachefile=none: nobody imports it at boot but Sidus. autotrim: what is
	// freed becomes a hole in the file, so that the disk gets it back.
	args := []string{"create", "-o", "ashift=12", "-o", "cachefile=none", "-o", "autotrim=on", "-m", "none", "-O", "compression=" + compression, "-O", propStore + "=" + layoutVersion}
	for _, p := range required {
		args = append(args, "-O", p)
	}
	if err := o.run(ctx, "zpool", append(args, name, file.Path())...); err != nil {
		return false, classify(o.File, dataset(name), err)
	}
	undo.Add(func() error { return o.run(context.WithoutCancel(ctx), "zpool", "destroy", "-f", name) })
	if err := o.step("name file"); err != nil {
		return false, err
	}
	if err := o.run(ctx, "zpool", "export", name); err != nil {
		return false, classify(o.File, dataset(name), err)
	}
	undo.Keep(1) // the pool is in the file and nowhere else
	return true, file.Name()
}

// removePool takes back makePool.
func (o Options) removePool(ctx context.Context) error {
	name, err := o.poolName(ctx)
	if err != nil {
		return err
	}
	if imported, err := o.imported(ctx); err != nil {
		return err
	} else if slices.Contains(imported, name) {
		if err := o.run(ctx, "zpool", "destroy", name); err != nil {
			return err
		}
	}
	return os.Remove(o.File)
}

var labelName = regexp.MustCompile(`(?m)^\s+name: '([^']+)'$`)

// poolName reads the name of the pool in the file from its label.
func (o Options) poolName(ctx context.Context) (string, error) {
	if _, err := os.Stat(o.File); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%s: %w; `sidus init` makes a store", o.File, store.ErrNotFound)
	} else if err != nil {
		return "", err
	}
	out, err := o.output(ctx, "zdb", "-l", o.File)
	if errors.Is(err, ErrTimeout) || ctx.Err() != nil {
		return "", err
	}
	m := labelName.FindSubmatch(out)
	if err != nil || m == nil {
		return "", fmt.Errorf("%s: %w: there is no ZFS pool in it, or it is damaged", o.File, ErrNotAStore)
	}
	name := string(m[1])
	if !strings.HasPrefix(name, poolPrefix) {
		return "", fmt.Errorf("%s: %w: it holds the pool %q, which Sidus did not make", o.File, ErrNotAStore, name)
	}
	return name, ValidateDataset(name)
}

// imported lists the pools that are imported.
func (o Options) imported(ctx context.Context) ([]string, error) {
	out, err := o.output(ctx, "zpool", "list", "-H", "-o", "name")
	if err != nil {
		return nil, classify(o.place(), "", err)
	}
	return parseNames(out), nil
}

// importPool imports the pool of the file, unless it is imported, and returns
// its name.
func (o Options) importPool(ctx context.Context) (string, error) {
	name, err := o.poolName(ctx)
	if err != nil {
		return "", err
	}
	file, err := os.Open(o.File)
	if err != nil {
		return "", err
	}
	defer file.Close()
	// Of several processes one imports it.
	err = o.within(ctx, o.File+": wait for the process that imports the pool", func(ctx context.Context) error {
		return backend.FlockWhenFree(ctx, file, unix.LOCK_EX)
	})
	if err != nil {
		return "", err
	}
	imported, err := o.imported(ctx)
	if err != nil {
		return "", err
	}
	if slices.Contains(imported, name) {
		return name, o.sameFile(ctx, name)
	}
	if err := o.step("import pool"); err != nil {
		return "", err
	}
	err = o.run(ctx, "zpool", "import", "-N", "-o", "cachefile=none", "-d", o.File, name)
	if text := said(err); strings.Contains(text, "in use from another system") || strings.Contains(text, "last accessed by another system") || strings.Contains(text, "last accessed by") {
		return "", fmt.Errorf("%s: %w: another machine used the pool %s last and did not export it; if it does not use it any more: zpool import -f -N -d %s %s: %w", o.File, store.ErrUnavailable, name, o.File, name, err)
	}
	return name, classify(o.File, dataset(name), err)
}

// sameFile makes sure that the pool that is imported lies in this file and not
// in a copy of it.
func (o Options) sameFile(ctx context.Context, name string) error {
	out, err := o.output(ctx, "zpool", "list", "-v", "-H", "-P", name)
	if err != nil {
		return classify(o.File, dataset(name), err)
	}
	here, err := os.Stat(o.File)
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(out)) {
		if !strings.HasPrefix(word, "/") {
			continue
		}
		if there, err := os.Stat(word); err == nil && os.SameFile(here, there) {
			return nil
		}
		return fmt.Errorf("%s: %w: the pool %s is imported from %s: is the file a copy?", o.File, store.ErrInUse, name, word)
	}
	return nil
}

// exportPool exports a pool that lies in a file.
func (o Options) exportPool(ctx context.Context, name string) error {
	if err := o.step("export pool"); err != nil {
		return err
	}
	return classify(o.File, dataset(name), o.run(ctx, "zpool", "export", name))
}
