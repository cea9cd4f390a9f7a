package main

import (
	"cmp"
	"context"
	"fmt"
	"path/filepath"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/lvm"
	"sidus/zfs"
)

// storeConfig says which store a state folder uses. It is kept in the catalog
// under metaStore. One of File, Path, Dataset and ThinPool is set.
type storeConfig struct {
	Backend    string `json:"backend"`               // btrfs, zfs or lvm
	File       string `json:"file,omitempty"`        // a file that holds the store: its own file system, pool or volume group
	Path       string `json:"path,omitempty"`        // btrfs: a folder in a file system that exists
	Dataset    string `json:"dataset,omitempty"`     // zfs: POOL/NAME in a pool that exists
	ThinPool   string `json:"thin_pool,omitempty"`   // lvm: VG/POOL, a thin pool that exists
	FileSystem string `json:"file_system,omitempty"` // lvm: ext4 or xfs
	VolumeSize int64  `json:"volume_size,omitempty"` // lvm: of new volumes, in bytes
}

// The backends.
const (
	backendBtrfs = "btrfs"
	backendZFS   = "zfs"
	backendLVM   = "lvm"
)

// openStore is a store as commands use it.
type openStore interface {
	store.Store
	// Detach closes the store and lets go of what it lies on.
	Detach(ctx context.Context) error
}

func (c storeConfig) btrfs(size int64) btrfs.Options {
	return btrfs.Options{File: c.File, Path: c.Path, Size: size, Log: logrus.StandardLogger()}
}

func (c storeConfig) zfs(size int64) zfs.Options {
	return zfs.Options{File: c.File, Dataset: c.Dataset, Size: size, Log: logrus.StandardLogger()}
}

func (c storeConfig) lvm(size int64) lvm.Options {
	return lvm.Options{File: c.File, ThinPool: c.ThinPool, Size: size, FileSystem: lvm.FileSystem(c.FileSystem), VolumeSize: c.VolumeSize,
		Log: logrus.StandardLogger()}
}

// make makes the store, or adopts what is there. size is that of a new file,
// in bytes.
func (c storeConfig) make(ctx context.Context, size int64) (openStore, error) {
	switch c.Backend {
	case backendZFS:
		return opened(zfs.Init(ctx, c.zfs(size)))
	case backendLVM:
		return opened(lvm.Init(ctx, c.lvm(size)))
	}
	return opened(btrfs.Init(ctx, c.btrfs(size)))
}

// open opens a store that make has made.
func (c storeConfig) open(ctx context.Context) (openStore, error) {
	switch c.Backend {
	case backendBtrfs:
		return opened(btrfs.Open(ctx, c.btrfs(0)))
	case backendZFS:
		return opened(zfs.Open(ctx, c.zfs(0)))
	case backendLVM:
		return opened(lvm.Open(ctx, c.lvm(0)))
	}
	return nil, fmt.Errorf("the catalog names a store of the kind %q, which this sidus does not know: use a newer sidus", c.Backend)
}

// opened keeps a nil pointer from becoming an interface that is not nil.
func opened[S openStore](s S, err error) (openStore, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// mounts tells whether reading a snapshot needs a mount, and so CAP_SYS_ADMIN.
func (c storeConfig) mounts() bool { return c.Backend != backendBtrfs }

// place names the store for people.
func (c storeConfig) place() string {
	for _, place := range []string{c.File, c.Path, c.Dataset} {
		if place != "" {
			return place
		}
	}
	return c.ThinPool
}

// storeFlags are the options that say where a new store is.
func storeFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "backend", Value: "auto", Usage: "the `KIND` of store: btrfs, zfs, lvm, or auto: what the place asks for"},
		&cli.StringFlag{Name: "path", Usage: "btrfs: an empty folder `DIR` of a file system that exists"},
		&cli.StringFlag{Name: "dataset", Usage: "ZFS: `POOL/NAME`, a dataset in a pool that exists; nothing else in the pool is touched"},
		&cli.StringFlag{Name: "thin-pool", Usage: "LVM: `VG/POOL`, a thin pool that exists"},
		&cli.StringFlag{Name: "size", Value: "40G", Usage: "without such a place: the size of the file that holds the store, `BYTES` with K, M, G or T"},
		&cli.StringFlag{Name: "file-system", Usage: "LVM: the `KIND` of file system in new volumes: ext4 or xfs; --property chooses for one tree"},
		&cli.StringFlag{Name: "volume-size", Usage: "LVM: the size of new volumes, `BYTES` with K, M, G or T; space is taken as it is written, and they grow"},
	}
}

// storeConfigOf reads the options of storeFlags. file is where a store without
// a place of its own lies.
func storeConfigOf(c *cli.Context, file string) (storeConfig, error) {
	config := storeConfig{Backend: c.String("backend"), Path: c.String("path"), Dataset: c.String("dataset"), ThinPool: c.String("thin-pool"),
		FileSystem: c.String("file-system")}
	places := map[string]string{backendBtrfs: config.Path, backendZFS: config.Dataset, backendLVM: config.ThinPool}
	given := ""
	for backend, place := range places {
		if place == "" {
			continue
		}
		if given != "" {
			return config, usagef("give one of --path, --dataset and --thin-pool")
		}
		given = backend
	}
	switch config.Backend {
	case "auto":
		config.Backend = backendBtrfs
		if given != "" {
			config.Backend = given
		}
	case backendBtrfs, backendZFS, backendLVM:
		if given != "" && given != config.Backend {
			return config, usagef("--backend %s does not go with a place for %s", config.Backend, given)
		}
	default:
		return config, usagef("--backend %s: it is auto, btrfs, zfs or lvm", config.Backend)
	}
	if given == "" {
		config.File = file
	}
	if config.Path != "" {
		absolute, err := filepath.Abs(config.Path)
		if err != nil {
			return config, err
		}
		config.Path = absolute
	}
	if text := c.String("volume-size"); text != "" {
		size, err := parseSize("volume-size", text)
		if err != nil {
			return config, err
		}
		config.VolumeSize = size
	}
	if config.FileSystem == "" && config.VolumeSize == 0 {
		return config, nil
	}
	if config.Backend != backendLVM {
		return config, usagef("--file-system and --volume-size are for LVM")
	}
	if err := lvm.CheckVolume(cmp.Or(lvm.FileSystem(config.FileSystem), lvm.Ext4), cmp.Or(config.VolumeSize, lvm.DefaultVolumeSize)); err != nil {
		return config, usagef("--file-system, --volume-size: %v", err)
	}
	return config, nil
}
