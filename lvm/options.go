package lvm

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/image/store/backend"
)

// FileSystem is what a volume is formatted with.
type FileSystem string

// The file systems.
const (
	Ext4 FileSystem = "ext4"
	XFS  FileSystem = "xfs"
)

// Options says where a store is. One of ThinPool and File is set.
type Options struct {
	// ThinPool is VG/POOL, a thin pool that exists.
	ThinPool string
	// File is a loop file with a volume group of its own, which Init makes.
	File string
	// Size is the size of the file that Init makes, in bytes; zero means
	// DefaultSize. It may be more than the disk has: the file is sparse.
	Size int64
	// VolumeSize is the size of a new volume's file system, in bytes; zero
	// means DefaultVolumeSize. It takes space only as it is written.
	VolumeSize int64
	// FileSystem is that of new volumes; empty means Ext4.
	FileSystem FileSystem
	// RunDir is where volumes and snapshots are mounted, in a folder named by
	// the pool's UUID; empty means /run/sidus. Every process that opens a
	// store in one mount namespace uses the same.
	RunDir string
	// DiskReserve is what the file leaves free on the disk beneath it, in
	// bytes; zero means DefaultDiskReserve. Without a meaning for ThinPool.
	DiskReserve int64
	// Timeout is how long one LVM command may take; zero means
	// DefaultTimeout.
	Timeout time.Duration
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
	MinSize = 512 << 20
	// DefaultVolumeSize is the size of a new volume's file system, in bytes.
	DefaultVolumeSize = 40 << 30
	// MinVolumeSize is the least size of a volume, in bytes: mkfs.xfs makes
	// none that is smaller.
	MinVolumeSize = 320 << 20
	maxVolumeSize = 1 << 50
	// DefaultDiskReserve is what a loop file leaves free on its disk, in bytes.
	DefaultDiskReserve = 1 << 30
	// DefaultTimeout is how long one command may take; mkfs too.
	DefaultTimeout = 5 * time.Minute

	defaultRunDir = "/run/sidus"
)

// normal checks o and fills in its zero values.
func (o Options) normal() (Options, error) {
	if (o.ThinPool == "") == (o.File == "") {
		return o, errors.New("lvm: give a thin pool or a loop file, one of them")
	}
	if o.ThinPool != "" {
		if _, _, err := splitThinPool(o.ThinPool); err != nil {
			return o, err
		}
	}
	if o.Size == 0 {
		o.Size = DefaultSize
	}
	if o.VolumeSize == 0 {
		o.VolumeSize = DefaultVolumeSize
	}
	if o.FileSystem == "" {
		o.FileSystem = Ext4
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
			return o, fmt.Errorf("lvm: %w", err)
		}
		*path = abs
	}
	if err := CheckVolume(o.FileSystem, o.VolumeSize); err != nil {
		return o, err
	}
	if os.Geteuid() != 0 {
		return o, fmt.Errorf("%s: an LVM store is used as root: %w", o.place(), os.ErrPermission)
	}
	return o, nil
}

// CheckVolume checks what a volume shall be: its file system and its size in bytes.
func CheckVolume(fs FileSystem, size int64) error {
	if fs != Ext4 && fs != XFS {
		return fmt.Errorf("the file system %q: it is %s or %s", fs, Ext4, XFS)
	}
	if size < MinVolumeSize || size > maxVolumeSize {
		return fmt.Errorf("a volume has %s at least and 1 PiB at most, not %s", backend.Human(MinVolumeSize), backend.Human(size))
	}
	return nil
}

// place names the store in messages.
func (o Options) place() string {
	if o.File != "" {
		return o.File
	}
	return o.ThinPool
}

// step calls the hook for tests, if there is one.
func (o Options) step(name string) error {
	if o.Step == nil {
		return nil
	}
	return o.Step(name)
}
