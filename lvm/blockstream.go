package lvm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"

	"sidus/image/store"
)

// A block stream is what Send writes and Receive reads:
//
//	magic    "sidus-lvm-1\n"
//	header   32 bits with its length, then JSON, see streamHeader
//	records  in the order of the device, never overlapping:
//	  'D'    64 bits offset, 32 bits length, that many bytes: what is there
//	  'Z'    64 bits offset, 64 bits length: zeros are there
//	  'E'    the SHA-256 of all bytes before the 'E'; nothing follows
//
// Numbers are little-endian, offsets and lengths are in bytes and multiples of 512.
// What no record names is as in the base, or zeros without one.
const (
	streamMagic  = "sidus-lvm-"
	streamFormat = streamMagic + "1\n"

	maxHeader = 4 << 10
	// maxData is the most that one record carries, in bytes.
	maxData = 1 << 20
	sector  = 512
)

// streamHeader says what a block stream is of.
type streamHeader struct {
	Size       int64      `json:"size"` // of the device, in bytes
	FileSystem FileSystem `json:"file_system"`
	// Image names the blocks of the snapshot, Base those that it is a
	// difference from, see imageOf.
	Image string `json:"image"`
	Base  string `json:"base,omitempty"`
}

func (h streamHeader) check() error {
	switch {
	case h.Size < MinVolumeSize || h.Size > maxVolumeSize || h.Size%sector != 0:
		return fmt.Errorf("the stream is of a device of %d bytes", h.Size)
	case h.FileSystem != Ext4 && h.FileSystem != XFS:
		return fmt.Errorf("the stream is of a file system %q: %w", h.FileSystem, store.ErrUnsupported)
	case !validImage(h.Image) || h.Base != "" && !validImage(h.Base):
		return errors.New("the stream does not say what it is of")
	}
	return nil
}

// streamWriter writes a block stream.
type streamWriter struct {
	w   io.Writer
	sum hash.Hash
}

func newStreamWriter(w io.Writer, h streamHeader) (*streamWriter, error) {
	text, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	s := &streamWriter{w: w, sum: sha256.New()}
	head := append([]byte(streamFormat), binary.LittleEndian.AppendUint32(nil, uint32(len(text)))...)
	return s, s.write(append(head, text...))
}

func (s *streamWriter) write(p []byte) error {
	_, _ = s.sum.Write(p)
	_, err := s.w.Write(p)
	return err
}

// data writes at most maxData bytes.
func (s *streamWriter) data(offset int64, p []byte) error {
	head := binary.LittleEndian.AppendUint64([]byte{'D'}, uint64(offset))
	if err := s.write(binary.LittleEndian.AppendUint32(head, uint32(len(p)))); err != nil {
		return err
	}
	return s.write(p)
}

func (s *streamWriter) zeros(offset, length int64) error {
	head := binary.LittleEndian.AppendUint64([]byte{'Z'}, uint64(offset))
	return s.write(binary.LittleEndian.AppendUint64(head, uint64(length)))
}

func (s *streamWriter) end() error {
	_, err := s.w.Write(s.sum.Sum([]byte{'E'}))
	return err
}

// streamReader reads a block stream.
type streamReader struct {
	r      io.Reader
	sum    hash.Hash
	header streamHeader
	at     int64 // where the last record ended
	buffer []byte
}

func newStreamReader(r io.Reader) (*streamReader, error) {
	s := &streamReader{r: r, sum: sha256.New()}
	magic := make([]byte, len(streamFormat))
	if err := s.read(magic); err != nil {
		return nil, err
	}
	if string(magic) != streamFormat {
		if strings.HasPrefix(string(magic), streamMagic) {
			return nil, fmt.Errorf("the stream was made by a newer Sidus (%q): %w", magic, store.ErrUnsupported)
		}
		return nil, errors.New("this is no stream of changed blocks")
	}
	var length [4]byte
	if err := s.read(length[:]); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(length[:])
	if n > maxHeader {
		return nil, fmt.Errorf("the stream's header has %d bytes", n)
	}
	text := make([]byte, n)
	if err := s.read(text); err != nil {
		return nil, err
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s.header); err != nil {
		return nil, fmt.Errorf("the stream's header: %w", err)
	}
	return s, s.header.check()
}

func (s *streamReader) read(p []byte) error {
	if _, err := io.ReadFull(s.r, p); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return fmt.Errorf("the stream was cut: %w", io.ErrUnexpectedEOF)
		}
		return err
	}
	_, _ = s.sum.Write(p)
	return nil
}

// next reads a record: data that is valid until the next call, or a number of
// zeros. io.EOF is said when the whole stream, its digest and the end of the
// reader have been seen.
func (s *streamReader) next() (offset int64, data []byte, zeros int64, err error) {
	before := s.sum.Sum(nil)
	var kind [1]byte
	if err := s.read(kind[:]); err != nil {
		return 0, nil, 0, err
	}
	switch kind[0] {
	case 'D':
		var head [12]byte
		if err := s.read(head[:]); err != nil {
			return 0, nil, 0, err
		}
		length := int64(binary.LittleEndian.Uint32(head[8:]))
		if offset, err = s.place(binary.LittleEndian.Uint64(head[:]), length); err != nil {
			return 0, nil, 0, err
		}
		if length > maxData {
			return 0, nil, 0, fmt.Errorf("the stream is damaged: a record of %d bytes", length)
		}
		if s.buffer == nil {
			s.buffer = make([]byte, maxData)
		}
		data = s.buffer[:length]
		return offset, data, 0, s.read(data)
	case 'Z':
		var head [16]byte
		if err := s.read(head[:]); err != nil {
			return 0, nil, 0, err
		}
		length := binary.LittleEndian.Uint64(head[8:])
		if length > uint64(s.header.Size) {
			return 0, nil, 0, errors.New("the stream is damaged: a record ends after the device")
		}
		offset, err = s.place(binary.LittleEndian.Uint64(head[:]), int64(length))
		return offset, nil, int64(length), err
	case 'E':
		var want [sha256.Size]byte
		if err := s.read(want[:]); err != nil {
			return 0, nil, 0, err
		}
		if !bytes.Equal(want[:], before) {
			return 0, nil, 0, errors.New("the stream is damaged: its digest is another")
		}
		if n, err := io.Copy(io.Discard, s.r); err != nil {
			return 0, nil, 0, err
		} else if n > 0 {
			return 0, nil, 0, fmt.Errorf("%d bytes follow the end of the stream", n)
		}
		return 0, nil, 0, io.EOF
	}
	return 0, nil, 0, fmt.Errorf("the stream is damaged: a record of kind %q", kind[0])
}

// place checks where a record belongs.
func (s *streamReader) place(offset uint64, length int64) (int64, error) {
	if length <= 0 || length%sector != 0 || offset%sector != 0 || offset < uint64(s.at) || offset > uint64(s.header.Size-length) {
		return 0, fmt.Errorf("the stream is damaged: a record of %d bytes at %d", length, offset)
	}
	s.at = int64(offset) + length
	return int64(offset), nil
}
