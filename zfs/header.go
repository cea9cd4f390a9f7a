package zfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// header is what Receive reads of the record that a stream of zfs send begins
// with (dmu_replay_record with drr_begin, sys/zfs_ioctl.h).
type header struct {
	to, from uint64 // GUIDs of the snapshot and of its base; from is 0 if the stream is a whole one
	resuming bool   // it is the rest of a stream that was cut
}

const (
	headerLen = 312 // of the record

	drrBegin       = 0             // drr_type
	drrMagic       = 0x2F5bacbac   // drr_magic
	drrSubstream   = 1             // drr_versioninfo, its lowest two bits: one snapshot
	drrResuming    = 1 << (20 + 2) // in drr_versioninfo: DMU_BACKUP_FEATURE_RESUMING
	drrTypeZFS     = 2             // drr_type of drr_begin: a file system
	offMagic       = 8
	offVersion     = 16
	offObjsetType  = 32
	offToGUID      = 40
	offFromGUID    = 48
	drrHeaderTypes = 3
)

var errNoStream = errors.New("it is no stream of zfs send, or it is damaged")

// parseHeader reads the beginning of a stream. One with several snapshots
// ("zfs send -R"), or of a volume, is refused.
func parseHeader(record []byte) (h header, err error) {
	if len(record) < headerLen {
		return h, fmt.Errorf("%w: it ends after %d bytes", errNoStream, len(record))
	}
	// The order of the bytes is the sender's.
	var order binary.ByteOrder = binary.LittleEndian
	if order.Uint64(record[offMagic:]) != drrMagic {
		order = binary.BigEndian
	}
	if order.Uint64(record[offMagic:]) != drrMagic || order.Uint32(record) != drrBegin {
		return h, errNoStream
	}
	version := order.Uint64(record[offVersion:])
	if version&drrHeaderTypes != drrSubstream {
		return h, fmt.Errorf("%w: it holds more than one snapshot", errNoStream)
	}
	if order.Uint32(record[offObjsetType:]) != drrTypeZFS {
		return h, fmt.Errorf("%w: it holds no file system", errNoStream)
	}
	return header{to: order.Uint64(record[offToGUID:]), from: order.Uint64(record[offFromGUID:]), resuming: version&drrResuming != 0}, nil
}

// readHeader reads it from r, and returns the bytes that it took.
func readHeader(r io.Reader) (h header, taken []byte, err error) {
	taken = make([]byte, headerLen)
	n, err := io.ReadFull(r, taken)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return h, nil, err
	}
	h, err = parseHeader(taken[:n])
	return h, taken, err
}
