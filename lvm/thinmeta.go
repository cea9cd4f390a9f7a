package lvm

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/gofrs/flock"

	"sidus/image/store"
)

// extent is a range of a thin volume, in bytes.
type extent struct {
	offset, length int64
	// gone: it is in the base only, and reads as zeros now.
	gone bool
}

// metadataLock is the name of the file that is locked while this machine uses
// the pool's metadata snapshot, of which there is one at a time. It holds a word
// while one is reserved: who finds it there follows one that was killed.
const metadataLock = "metadata-snapshot"

// changedExtents asks the pool's metadata which parts of the thin volume snap
// are mapped to other blocks than those of base; which ones are mapped at all if
// base is empty. Both are thin device IDs.
func (s *Store) changedExtents(ctx context.Context, snap, base string) (changed []extent, err error) {
	lock := flock.New(s.points.Path(metadataLock), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return nil, fmt.Errorf("wait for another who reads the metadata of the thin pool: %w", err)
	}
	defer lock.Close()
	if err := s.reserveMetadata(ctx); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.releaseMetadata(context.WithoutCancel(ctx))) }()
	device := filepath.Join("/dev/mapper", mapperName(s.group, s.pool+"_tmeta"))
	if base == "" {
		out, err := s.opts.output(ctx, "thin_dump", "--metadata-snap", "--dev-id", snap, device)
		if err != nil {
			return nil, fmt.Errorf("what thin volume %s holds: %w", snap, err)
		}
		return parseDump(out)
	}
	out, err := s.opts.output(ctx, "thin_delta", "--metadata-snap", "--snap1", base, "--snap2", snap, device)
	if err != nil {
		return nil, fmt.Errorf("how thin volume %s differs from %s: %w", snap, base, err)
	}
	return parseDelta(out)
}

// messagePool sends a message to the thin pool, see thin-provisioning.rst.
func (s *Store) messagePool(ctx context.Context, message string) error {
	return s.opts.run(ctx, "dmsetup", "message", mapperName(s.group, s.pool)+"-tpool", "0", message)
}

func (s *Store) reserveMetadata(ctx context.Context) error {
	path := s.points.Path(metadataLock)
	if info, err := os.Stat(path); err == nil && info.Size() > 0 {
		if err := s.messagePool(ctx, "release_metadata_snap"); err != nil {
			s.opts.Log.WithError(err).Debug("no metadata snapshot is left of one that was killed")
		}
	}
	// The word before the deed: a second release does no harm.
	if err := os.WriteFile(path, []byte("reserved\n"), 0o600); err != nil {
		return err
	}
	if err := s.messagePool(ctx, "reserve_metadata_snap"); err != nil {
		return errors.Join(fmt.Errorf("%s/%s: %w: its metadata cannot be read: does another program use the pool's metadata snapshot? (dmsetup message %s-tpool 0 release_metadata_snap takes it away): %w",
			s.group, s.pool, store.ErrInUse, mapperName(s.group, s.pool), err), os.Truncate(path, 0))
	}
	return nil
}

func (s *Store) releaseMetadata(ctx context.Context) error {
	if err := s.messagePool(ctx, "release_metadata_snap"); err != nil {
		return fmt.Errorf("%s/%s: give the metadata snapshot back: %w", s.group, s.pool, err)
	}
	return os.Truncate(s.points.Path(metadataLock), 0)
}

// attribute reads an attribute of an element; -1 if it is missing or not a number.
func attribute(e xml.StartElement, name string) int64 {
	for _, a := range e.Attr {
		if a.Name.Local == name {
			if n, err := strconv.ParseInt(a.Value, 10, 64); err == nil {
				return n
			}
		}
	}
	return -1
}

// collector turns ranges of blocks into extents, neighbours joined.
type collector struct {
	block   int64 // bytes
	extents []extent
}

func (c *collector) add(begin, length int64, gone bool) error {
	const most = maxVolumeSize
	if c.block <= 0 || begin < 0 || length <= 0 || begin > most/c.block || length > most/c.block {
		return fmt.Errorf("a range of %d blocks of %d bytes at %d", length, c.block, begin)
	}
	e := extent{offset: begin * c.block, length: length * c.block, gone: gone}
	if n := len(c.extents); n > 0 {
		last := &c.extents[n-1]
		if e.offset < last.offset+last.length {
			return fmt.Errorf("ranges that overlap at %d", e.offset)
		}
		if e.offset == last.offset+last.length && e.gone == last.gone {
			last.length += e.length
			return nil
		}
	}
	c.extents = append(c.extents, e)
	return nil
}

// parseDump reads what thin_dump says of one device: which parts are mapped.
func parseDump(text []byte) ([]extent, error) {
	devices := 0
	var c collector
	err := eachElement(text, func(e xml.StartElement) error {
		switch e.Name.Local {
		case "superblock":
			c.block = attribute(e, "data_block_size") * sector
		case "device":
			devices++
		case "single_mapping":
			return c.add(attribute(e, "origin_block"), 1, false)
		case "range_mapping":
			return c.add(attribute(e, "origin_begin"), attribute(e, "length"), false)
		}
		return nil
	})
	if err == nil && devices != 1 {
		err = fmt.Errorf("%d devices", devices)
	}
	if err != nil {
		return nil, fmt.Errorf("what thin_dump says cannot be read: %w", err)
	}
	return c.extents, nil
}

// parseDelta reads what thin_delta says of two devices: which parts of the
// second are mapped otherwise, and which only the first has.
func parseDelta(text []byte) ([]extent, error) {
	diffs := 0
	var c collector
	err := eachElement(text, func(e xml.StartElement) error {
		switch e.Name.Local {
		case "superblock":
			c.block = attribute(e, "data_block_size") * sector
		case "diff":
			diffs++
		case "different", "right_only":
			return c.add(attribute(e, "begin"), attribute(e, "length"), false)
		case "left_only":
			return c.add(attribute(e, "begin"), attribute(e, "length"), true)
		}
		return nil
	})
	if err == nil && diffs != 1 {
		err = fmt.Errorf("%d comparisons", diffs)
	}
	if err != nil {
		return nil, fmt.Errorf("what thin_delta says cannot be read: %w", err)
	}
	return c.extents, nil
}

func eachElement(text []byte, do func(xml.StartElement) error) error {
	decoder := xml.NewDecoder(bytes.NewReader(text))
	for {
		token, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if e, ok := token.(xml.StartElement); ok {
			if err := do(e); err != nil {
				return err
			}
		}
	}
}
