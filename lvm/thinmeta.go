package lvm

import (
	"bufio"
	"context"
	"encoding/binary"
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

// extents are ranges that follow each other, neighbours joined. A volume of a
// terabyte may have some millions: each takes a few bytes.
type extents struct {
	block  int64  // what offsets and lengths are multiples of, in bytes
	packed []byte // of all but the last: blocks between it and the one before, blocks, 1 if gone
	end    int64  // where those end, in bytes
	last   extent
}

// add adds a range of blocks.
func (x *extents) add(begin, length int64, gone bool) error {
	const most = maxVolumeSize
	if x.block <= 0 || begin < 0 || length <= 0 || begin > most/x.block || length > most/x.block {
		return fmt.Errorf("a range of %d blocks of %d bytes at %d", length, x.block, begin)
	}
	e := extent{offset: begin * x.block, length: length * x.block, gone: gone}
	end := x.last.offset + x.last.length
	if e.offset < end {
		return fmt.Errorf("ranges that overlap at %d", e.offset)
	}
	if e.offset == end && e.gone == x.last.gone {
		x.last.length += e.length
		return nil
	}
	x.pack()
	x.last = e
	return nil
}

func (x *extents) pack() {
	if x.last.length == 0 {
		return
	}
	x.packed = binary.AppendUvarint(x.packed, uint64((x.last.offset-x.end)/x.block))
	gone := uint64(0)
	if x.last.gone {
		gone = 1
	}
	x.packed = binary.AppendUvarint(x.packed, uint64(x.last.length/x.block)<<1|gone)
	x.end = x.last.offset + x.last.length
}

// each calls do for each range, in their order.
func (x *extents) each(do func(extent) error) error {
	end := int64(0)
	for rest := x.packed; len(rest) > 0; {
		gap, n := binary.Uvarint(rest)
		length, m := binary.Uvarint(rest[n:])
		rest = rest[n+m:]
		e := extent{offset: end + int64(gap)*x.block, length: int64(length>>1) * x.block, gone: length&1 != 0}
		if err := do(e); err != nil {
			return err
		}
		end = e.offset + e.length
	}
	if x.last.length == 0 {
		return nil
	}
	return do(x.last)
}

// metadataLock is the name of the file that is locked while this machine uses
// the pool's metadata snapshot, of which there is one at a time.
const metadataLock = "metadata-snapshot"

// tagReading is the pool's tag while that is reserved: the metadata snapshot
// outlives who reserved it, and the machine's reset.
const tagReading = "sidus.reading"

// changedExtents asks the pool's metadata which parts of the thin volume snap
// are mapped to other blocks than those of base; which ones are mapped at all if
// base is empty. Both are thin device IDs.
func (s *Store) changedExtents(ctx context.Context, snap, base string) (changed extents, err error) {
	lock := s.metadataLock()
	if _, err := lock.TryLockContext(ctx, 50*time.Millisecond); err != nil {
		return changed, fmt.Errorf("wait for another who reads the metadata of the thin pool: %w", err)
	}
	defer lock.Close()
	if err := s.reserveMetadata(ctx); err != nil {
		return changed, err
	}
	defer func() { err = errors.Join(err, s.releaseMetadata(context.WithoutCancel(ctx))) }()
	device := filepath.Join("/dev/mapper", mapperName(s.group, s.pool+"_tmeta"))
	parse := func(read func(io.Reader) (extents, error)) func(io.Reader) error {
		return func(r io.Reader) (err error) {
			changed, err = read(r)
			return err
		}
	}
	if base == "" {
		if err := s.opts.read(ctx, parse(parseDump), "thin_dump", "--metadata-snap", "--dev-id", snap, device); err != nil {
			return changed, fmt.Errorf("what thin volume %s holds: %w", snap, err)
		}
		return changed, nil
	}
	if err := s.opts.read(ctx, parse(parseDelta), "thin_delta", "--metadata-snap", "--snap1", base, "--snap2", snap, device); err != nil {
		return changed, fmt.Errorf("how thin volume %s differs from %s: %w", snap, base, err)
	}
	return changed, nil
}

func (s *Store) metadataLock() *flock.Flock {
	return flock.New(s.points.Path(metadataLock), flock.SetFlag(os.O_CREATE|os.O_RDWR), flock.SetPermissions(0o600))
}

// messagePool sends a message to the thin pool, see thin-provisioning.rst.
func (s *Store) messagePool(ctx context.Context, message string) error {
	return s.opts.run(ctx, "dmsetup", "message", mapperName(s.group, s.pool)+"-tpool", "0", message)
}

// reserveMetadata reserves the metadata snapshot. The lock is held.
func (s *Store) reserveMetadata(ctx context.Context) error {
	status, err := s.poolStatus(ctx)
	if err != nil {
		return err
	}
	// While it is reserved, what changes in the metadata is there twice.
	if status.metadataUsed*100 >= status.metadataSize*maxMetadataSnapshot {
		return fmt.Errorf("%w: %s", store.ErrNoSpace, metadataFull(s.group+"/"+s.pool, status))
	}
	if status.held {
		ours, err := s.reading(ctx)
		if err != nil {
			return err
		}
		if !ours {
			return fmt.Errorf("%s/%s: %w: another program uses the pool's metadata snapshot, of which there is one; if none does any more, `dmsetup message %s-tpool 0 release_metadata_snap` takes it away",
				s.group, s.pool, store.ErrInUse, mapperName(s.group, s.pool))
		}
		if err := s.messagePool(ctx, "release_metadata_snap"); err != nil {
			return fmt.Errorf("%s/%s: take away the metadata snapshot that was left: %w", s.group, s.pool, err)
		}
	}
	// The word before the deed.
	if err := s.tagPool(ctx, "--addtag"); err != nil {
		return err
	}
	if err := s.messagePool(ctx, "reserve_metadata_snap"); err != nil {
		return fmt.Errorf("%s/%s: %w: its metadata cannot be read: %w", s.group, s.pool, store.ErrUnavailable, err)
	}
	return nil
}

func (s *Store) releaseMetadata(ctx context.Context) error {
	if err := s.messagePool(ctx, "release_metadata_snap"); err != nil {
		return fmt.Errorf("%s/%s: give the metadata snapshot back: %w", s.group, s.pool, err)
	}
	return s.tagPool(ctx, "--deltag")
}

func (s *Store) tagPool(ctx context.Context, option string) error {
	_, err := s.lvm(ctx, "lvchange", option, tagReading, s.group+"/"+s.pool)
	return classify(s.opts.place(), lv(s.pool), err)
}

// reading tells whether the pool says that its metadata is read by Sidus.
func (s *Store) reading(ctx context.Context) (bool, error) {
	rows, err := s.report(ctx, "lvs", "lv_name,lv_tags", s.group+"/"+s.pool)
	if err != nil {
		return false, classify(s.opts.place(), lv(s.pool), err)
	}
	return len(rows) == 1 && rows[0].has("lv_tags", tagReading), nil
}

// Remnants implements store.Collector: a process that was killed, or a machine
// that was reset, while it read the pool's metadata has left that reserved.
func (s *Store) Remnants(ctx context.Context) ([]store.Remnant, error) {
	ours, err := s.reading(ctx)
	if err != nil || !ours {
		return nil, err
	}
	lock := s.metadataLock()
	defer lock.Close()
	if alone, err := lock.TryLock(); err != nil || !alone {
		return nil, err // somebody reads it now
	}
	return []store.Remnant{{What: fmt.Sprintf("the metadata snapshot of the thin pool %s/%s, which an export that was cut has left", s.group, s.pool)}}, nil
}

// Collect implements store.Collector.
func (s *Store) Collect(ctx context.Context) error {
	if ours, err := s.reading(ctx); err != nil || !ours {
		return err
	}
	lock := s.metadataLock()
	defer lock.Close()
	if alone, err := lock.TryLock(); err != nil || !alone {
		return err
	}
	status, err := s.poolStatus(ctx)
	if err != nil {
		return err
	}
	if status.held {
		return s.releaseMetadata(ctx)
	}
	return s.tagPool(ctx, "--deltag")
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

// parseDump reads what thin_dump says of one device: which parts are mapped.
func parseDump(r io.Reader) (c extents, err error) {
	devices := 0
	err = eachElement(r, func(e xml.StartElement) error {
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
		return c, fmt.Errorf("what thin_dump says cannot be read: %w", err)
	}
	return c, nil
}

// parseDelta reads what thin_delta says of two devices: which parts of the
// second are mapped otherwise, and which only the first has.
func parseDelta(r io.Reader) (c extents, err error) {
	diffs := 0
	err = eachElement(r, func(e xml.StartElement) error {
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
		return c, fmt.Errorf("what thin_delta says cannot be read: %w", err)
	}
	return c, nil
}

func eachElement(r io.Reader, do func(xml.StartElement) error) error {
	decoder := xml.NewDecoder(bufio.NewReaderSize(r, 64<<10))
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
