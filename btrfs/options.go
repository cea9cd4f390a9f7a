package btrfs

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/sirupsen/logrus"
)

// Options says where a store is. One of File and Path is set.
type Options struct {
	// File is the loop file.
	File string
	// Path is a folder on a btrfs file system that exists already.
	Path string
	// Size is the size of the loop file that Init makes, in bytes; zero means
	// DefaultSize. It may be more than the disk has: the file is sparse.
	Size int64
	// RunDir is where loop files are mounted, each in a folder named by the
	// UUID of its file system; empty means /run/sidus. Every process that
	// opens a store in one mount namespace uses the same.
	RunDir string
	// DiskReserve is what the loop file leaves free on the disk beneath it, in
	// bytes; zero means DefaultDiskReserve.
	DiskReserve int64
	// Log gets warnings, and what is done at debug level; nil means none.
	Log logrus.FieldLogger
	// Step is called before each step that changes something, with its name.
	// An error from it fails the step. For tests; nil means no such call.
	Step func(name string) error
}

const (
	// DefaultSize is the size of a new loop file, in bytes.
	DefaultSize = 40 << 30
	// MinSize is the least size of a new loop file, in bytes.
	MinSize = 256 << 20
	// DefaultDiskReserve is what a loop file leaves free on its disk, in bytes.
	DefaultDiskReserve = 1 << 30

	defaultRunDir = "/run/sidus"
)

// normal checks o and fills in its zero values.
func (o Options) normal() (Options, error) {
	if (o.File == "") == (o.Path == "") {
		return o, errors.New("btrfs: give a loop file or a folder, one of them")
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
	if o.Log == nil {
		log := logrus.New()
		log.SetOutput(io.Discard)
		o.Log = log
	}
	for _, path := range []*string{&o.File, &o.Path, &o.RunDir} {
		if *path == "" {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil {
			return o, fmt.Errorf("btrfs: %w", err)
		}
		*path = abs
	}
	if os.Geteuid() != 0 {
		return o, fmt.Errorf("%s: a btrfs store is used as root: %w", o.place(), os.ErrPermission)
	}
	return o, nil
}

// place names the store in messages.
func (o Options) place() string {
	if o.File != "" {
		return o.File
	}
	return o.Path
}

// step calls the hook for tests, if there is one.
func (o Options) step(name string) error {
	if o.Step == nil {
		return nil
	}
	return o.Step(name)
}
