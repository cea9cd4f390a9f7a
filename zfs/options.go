package zfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image/store"
)

// Options says where a store is. One of Dataset and File is set.
type Options struct {
	// Dataset is the parent dataset, POOL/NAME, in a pool that is imported.
	// Init makes it if it is missing; its parents must be there.
	Dataset string
	// File holds a pool of its own, which Init makes.
	File string
	// Size is the size of the file that Init makes, in bytes; zero means
	// DefaultSize. It may be more than the disk has: the file is sparse.
	Size int64
	// RunDir is where volumes and snapshots are mounted, in a folder named by
	// the parent dataset's GUID; empty means /run/sidus. Every process that
	// opens a store in one mount namespace uses the same.
	RunDir string
	// DiskReserve is what the file leaves free on the disk beneath it, in
	// bytes; zero means DefaultDiskReserve. Without a meaning for Dataset.
	DiskReserve int64
	// Timeout is how long one zfs or zpool command may take; zero means
	// DefaultTimeout.
	Timeout time.Duration
	// Log gets warnings, and what is done at debug level; nil means none.
	Log logrus.FieldLogger
	// Step is called before each step that changes something, with its name.
	// An error from it fails the step. For tests; nil means no such call.
	Step func(name string) error
}

const (
	// DefaultSize is the size of a new pool's file, in bytes.
	DefaultSize = 40 << 30
	// MinSize is the least size of a new pool's file, in bytes.
	MinSize = 512 << 20
	// DefaultDiskReserve is what the file leaves free on its disk, in bytes.
	DefaultDiskReserve = 1 << 30
	// DefaultTimeout is how long one command may take. Importing and a busy
	// pool's transactions take seconds; what takes minutes hangs.
	DefaultTimeout = 2 * time.Minute

	defaultRunDir = "/run/sidus"
)

// normal checks o and fills in its zero values.
func (o Options) normal() (Options, error) {
	if (o.Dataset == "") == (o.File == "") {
		return o, errors.New("zfs: give a dataset or a file, one of them")
	}
	if o.Dataset != "" {
		if err := ValidateDataset(o.Dataset); err != nil {
			return o, err
		}
	}
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	if o.RunDir == "" {
		o.RunDir = defaultRunDir
	}
	if o.DiskReserve == 0 {
		o.DiskReserve = DefaultDiskReserve
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.Log == nil {
		log := logrus.New()
		log.SetOutput(io.Discard)
		o.Log = log
	}
	for _, path := range []*string{&o.File, &o.RunDir} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return o, fmt.Errorf("zfs: %w", err)
		}
		*path = abs
	}
	if os.Geteuid() != 0 {
		return o, fmt.Errorf("%s: a ZFS store is used as root: %w", o.place(), os.ErrPermission)
	}
	return o, nil
}

// place names the store in messages.
func (o Options) place() string {
	if o.File != "" {
		return o.File
	}
	return o.Dataset
}

// step calls the hook for tests, if there is one.
func (o Options) step(name string) error {
	if o.Step == nil {
		return nil
	}
	return o.Step(name)
}

var _ store.Store = (*Store)(nil)
