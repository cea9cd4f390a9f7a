package stream

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
)

// Unit is a part of a stream that can be checked alone: the manifest, or a
// chunk with its record. A Writer hands each of them to what it writes to in
// one Write, and the end record in another one. So a stream that was cut can go
// on: whoever has some units names their sums, and whoever makes the stream
// again leaves those out that come out the same.
type Unit struct {
	End int64             // where it ends, in bytes from the beginning of the stream
	Sum [sha256.Size]byte // SHA-256 of all its bytes
}

// Units reads the beginning of a stream, and returns its units as far as they
// are whole and right: what follows was cut off or damaged. It fails only if r
// does.
func Units(r io.Reader) (units []Unit, err error) {
	tee := &sumReader{r: r}
	frames := frameReader{r: bufio.NewReaderSize(tee, readAhead)}
	// The reader is ahead: what is summed up is what the frames take.
	next := func(read func() error) error {
		if err := read(); err != nil {
			return err
		}
		n := int(frames.n - tee.taken)
		units = append(units, Unit{End: frames.n, Sum: sha256.Sum256(tee.take(n))})
		return nil
	}
	err = next(func() error {
		record, err := frames.skippable(tagSize + digestSize + maxManifest)
		if err != nil {
			return err
		}
		if len(record) < tagSize+digestSize || string(record[:tagSize]) != tagManifest {
			return ErrDamaged
		}
		if sum := sha256.Sum256(record[tagSize+digestSize:]); !bytes.Equal(sum[:], record[tagSize:tagSize+digestSize]) {
			return ErrDamaged
		}
		return nil
	})
	var frame []byte
	for index := uint64(0); err == nil; index++ {
		err = next(func() error {
			magic, err := frames.magic()
			if err != nil || magic != dataMagic {
				return fmt.Errorf("%w: no chunk", ErrTruncated)
			}
			if frame, _, err = frames.data(frame); err != nil {
				return err
			}
			content, err := frames.skippable(chunkRecordSize)
			if err != nil {
				return err
			}
			record, err := decodeChunkRecord(content)
			if err == nil && (record.index != index || record.sum != sha256.Sum256(frame)) {
				err = ErrDamaged
			}
			return err
		})
	}
	return units, tee.err
}

// sumReader remembers what was read and not taken yet.
type sumReader struct {
	r     io.Reader
	kept  []byte
	taken int64
	err   error // other than io.EOF
}

func (s *sumReader) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	s.kept = append(s.kept, p[:n]...)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// take returns the next n bytes that were read, until the next call of Read.
func (s *sumReader) take(n int) []byte {
	part := bytes.Clone(s.kept[:n])
	s.kept = append(s.kept[:0], s.kept[n:]...)
	s.taken += int64(n)
	return part
}
