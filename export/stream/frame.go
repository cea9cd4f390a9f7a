package stream

import (
	"bufio"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/bits"
)

// The frames of RFC 8878. Numbers are little-endian.
const (
	dataMagic = 0xFD2FB528
	// skipMagic marks every skippable frame of ours. The low nibble is free to
	// choose; the bytes on the wire are "S*M\x18".
	skipMagic     = 0x184D2A53
	skipMagicMin  = 0x184D2A50
	skipMagicMask = 0xFFFFFFF0

	// chunkSize is the length of every chunk but the last, in bytes of
	// payload. Chunks are compressed each for itself: longer ones shrink more,
	// shorter ones take less memory.
	chunkSize = 16 << 20
	// maxEncoded is the longest data frame that is written for a chunk, and the
	// record that follows it, in bytes: a frame has at most 18 bytes besides its
	// blocks, which have three bytes more than what they hold.
	maxEncoded = chunkSize + chunkSize/minBlock*3 + 18 + 8 + chunkRecordSize
	// minBlock is the least that an encoder puts into a block that is not the last.
	minBlock = 64 << 10
	// maxChunk is the longest chunk that is read.
	maxChunk = 32 << 20
	// maxFrame is the longest data frame that is read, in compressed bytes: no
	// encoder makes a chunk larger than by its block headers.
	maxFrame = maxChunk + maxChunk>>8
	// maxBlock is Block_Maximum_Size.
	maxBlock = 128 << 10
)

// The tags that the content of a skippable frame begins with.
const (
	tagSize     = 8
	tagManifest = "SIDUS-M\x00"
	tagChunk    = "SIDUS-C\x00"
	tagEnd      = "SIDUS-E\x00"
)

const digestSize = sha256.Size

type digest = [digestSize]byte

// chunkRecord follows each data frame.
type chunkRecord struct {
	index  uint64 // from 0
	length uint32 // of the chunk, uncompressed
	sum    digest // SHA-256 of the data frame, as it is in the stream
}

const chunkRecordSize = tagSize + 8 + 4 + digestSize

func (c chunkRecord) encode() []byte {
	b := append(make([]byte, 0, chunkRecordSize), tagChunk...)
	b = binary.LittleEndian.AppendUint64(b, c.index)
	b = binary.LittleEndian.AppendUint32(b, c.length)
	return append(b, c.sum[:]...)
}

// endRecord is the last frame.
type endRecord struct {
	chunks uint64
	length uint64 // of the payload
	sum    digest // SHA-256 of the contents of all skippable frames before it
}

const endRecordSize = tagSize + 8 + 8 + digestSize

func (e endRecord) encode() []byte {
	b := append(make([]byte, 0, endRecordSize), tagEnd...)
	b = binary.LittleEndian.AppendUint64(b, e.chunks)
	b = binary.LittleEndian.AppendUint64(b, e.length)
	return append(b, e.sum[:]...)
}

// manifestRecord is the first frame: tag, SHA-256 of the text, the text.
func manifestRecord(text []byte) []byte {
	sum := sha256.Sum256(text)
	b := append(make([]byte, 0, tagSize+digestSize+len(text)), tagManifest...)
	return append(append(b, sum[:]...), text...)
}

// appendSkippable appends a skippable frame.
func appendSkippable(dst, content []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, skipMagic)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(content)))
	return append(dst, content...)
}

// appendStored appends a data frame that holds content in raw blocks. It is a
// single segment, with its length in four bytes and no checksum.
func appendStored(dst, content []byte) []byte {
	dst = binary.LittleEndian.AppendUint32(dst, dataMagic)
	dst = append(dst, 2<<6|1<<5)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(content)))
	for {
		n := min(len(content), maxBlock)
		header := uint32(n) << 3 // type 0: raw
		if n == len(content) {
			header |= 1 // last block
		}
		dst = append(dst, byte(header), byte(header>>8), byte(header>>16))
		dst = append(dst, content[:n]...)
		if content = content[n:]; len(content) == 0 {
			return dst
		}
	}
}

// frameReader reads frames one by one, and never more than one of them.
type frameReader struct {
	r *bufio.Reader
	n int64 // bytes read
}

func (f *frameReader) full(p []byte) error {
	n, err := io.ReadFull(f.r, p)
	f.n += int64(n)
	return cut(err)
}

// cut turns the end of the input inside a frame into ErrTruncated.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return ErrTruncated
	}
	return err
}

// magic tells which frame comes next: 0 at the end of the input.
func (f *frameReader) magic() (uint32, error) {
	head, err := f.r.Peek(4)
	if len(head) == 4 {
		return binary.LittleEndian.Uint32(head), nil
	}
	if len(head) == 0 && errors.Is(err, io.EOF) {
		return 0, nil
	}
	return 0, cut(err)
}

// skippable reads the content of a skippable frame, which may have limit
// bytes. What is longer than that is damage.
func (f *frameReader) skippable(limit int) ([]byte, error) {
	var head [8]byte
	if err := f.full(head[:]); err != nil {
		return nil, err
	}
	if binary.LittleEndian.Uint32(head[:]) != skipMagic {
		return nil, fmt.Errorf("%w: a frame of something else", ErrDamaged)
	}
	size := binary.LittleEndian.Uint32(head[4:])
	if int64(size) > int64(limit) {
		return nil, fmt.Errorf("%w: a record of %d bytes", ErrDamaged, size)
	}
	content := make([]byte, size)
	return content, f.full(content)
}

// data appends a whole data frame, its header included, to dst[:0], and tells
// how long it says its content is, or -1 if it does not. It walks from block to block and looks into
// none of them.
func (f *frameReader) data(dst []byte) (frame []byte, length int64, err error) {
	frame = dst[:0]
	take := func(n int) ([]byte, error) {
		begin := len(frame)
		if begin+n > maxFrame {
			return nil, fmt.Errorf("%w: a frame of more than %d bytes", ErrDamaged, maxFrame)
		}
		if cap(frame) < begin+n {
			grown := make([]byte, begin, min(maxFrame, max(2*cap(frame), begin+n)))
			copy(grown, frame)
			frame = grown
		}
		frame = frame[:begin+n]
		return frame[begin:], f.full(frame[begin:])
	}
	head, err := take(5)
	if err != nil {
		return frame, 0, err
	}
	descriptor := head[4]
	single := descriptor>>5&1 == 1
	if descriptor>>3&1 == 1 || descriptor&3 != 0 {
		return frame, 0, fmt.Errorf("%w: a frame with a dictionary or a reserved bit", ErrDamaged)
	}
	sizeBytes := 1 << (descriptor >> 6) &^ 1 // 0, 2, 4, 8
	if single && sizeBytes == 0 {
		sizeBytes = 1
	}
	if !single {
		if _, err := take(1); err != nil { // Window_Descriptor
			return frame, 0, err
		}
	}
	size, err := take(sizeBytes)
	if err != nil {
		return frame, 0, err
	}
	var whole [8]byte
	copy(whole[:], size)
	switch told := binary.LittleEndian.Uint64(whole[:]); {
	case told > maxChunk:
		return frame, 0, fmt.Errorf("%w: a chunk of %d bytes", ErrDamaged, told)
	case sizeBytes == 0:
		length = -1
	case sizeBytes == 2:
		length = int64(told) + 256
	default:
		length = int64(told)
	}
	for {
		head, err := take(3)
		if err != nil {
			return frame, 0, err
		}
		block := uint32(head[0]) | uint32(head[1])<<8 | uint32(head[2])<<16
		n := int(block >> 3)
		switch block >> 1 & 3 {
		case 1: // RLE: one byte stands for n
			n = 1
		case 3:
			return frame, 0, fmt.Errorf("%w: a block of a reserved type", ErrDamaged)
		}
		if n > maxBlock {
			return frame, 0, fmt.Errorf("%w: a block of %d bytes", ErrDamaged, n)
		}
		if _, err := take(n); err != nil {
			return frame, 0, err
		}
		if block&1 == 1 {
			break
		}
	}
	if descriptor>>2&1 == 1 {
		if _, err := take(4); err != nil { // Content_Checksum
			return frame, 0, err
		}
	}
	return frame, length, nil
}

// sizeClass rounds up to a power of two, so that buffers are used again.
func sizeClass(n uint64) int {
	if n <= 4096 {
		return 4096
	}
	return 1 << bits.Len64(n-1)
}

func decodeChunkRecord(b []byte) (c chunkRecord, err error) {
	if len(b) != chunkRecordSize || string(b[:tagSize]) != tagChunk {
		return c, fmt.Errorf("%w: no digest follows it", ErrDamaged)
	}
	b = b[tagSize:]
	c.index = binary.LittleEndian.Uint64(b)
	c.length = binary.LittleEndian.Uint32(b[8:])
	c.sum = digest(b[12:])
	return c, nil
}

func decodeEndRecord(b []byte) (e endRecord, err error) {
	if len(b) != endRecordSize || string(b[:tagSize]) != tagEnd {
		return e, fmt.Errorf("%w: a record in the wrong place", ErrDamaged)
	}
	b = b[tagSize:]
	e.chunks = binary.LittleEndian.Uint64(b)
	e.length = binary.LittleEndian.Uint64(b[8:])
	e.sum = digest(b[16:])
	return e, nil
}
