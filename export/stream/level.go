package stream

import (
	"fmt"
	"strconv"

	"github.com/klauspost/compress/zstd"
)

// Level is how hard a stream is compressed: 1 to 19 as zstd(1) counts. What
// lies between the four levels that the encoder has gets the nearest of them.
// The zero value is DefaultLevel.
type Level int

// Levels with a name.
const (
	DefaultLevel Level = 3
	// Stored is not compressed at all. It is a valid zstd stream nevertheless.
	Stored Level = -1
)

// ParseLevel reads a level: a number from 1 to 19, "fast", "default",
// "better", "best", or "none".
func ParseLevel(text string) (Level, error) {
	switch text {
	case "none", "0":
		return Stored, nil
	case "fast":
		return 1, nil
	case "default", "":
		return DefaultLevel, nil
	case "better":
		return 7, nil
	case "best":
		return 19, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 19 {
		return 0, fmt.Errorf("compression level %q: it is none, fast, default, better, best, or 1 to 19", text)
	}
	return Level(n), nil
}

func (l Level) validate() error {
	if l != Stored && (l < 1 || l > 19) {
		return fmt.Errorf("compression level %d: it is 1 to 19", l)
	}
	return nil
}

// newEncoder returns an encoder of chunks, nil if they are stored. Its window
// holds a whole one.
func (l Level) newEncoder() (*zstd.Encoder, error) {
	if l == Stored {
		return nil, nil
	}
	encoder, err := zstd.NewWriter(nil,
		zstd.WithEncoderLevel(zstd.EncoderLevelFromZstd(int(l))),
		zstd.WithEncoderConcurrency(1), // one encoder a core, each with chunks of its own
		zstd.WithWindowSize(chunkSize),
		zstd.WithLowerEncoderMem(true),          // the other half of its history would never be used
		zstd.WithAllLitEntropyCompression(true), // as zstd(1) does
		zstd.WithEncoderCRC(true))               // zstd -t knows nothing of our digests
	if err != nil {
		return nil, fmt.Errorf("zstd: %w", err)
	}
	return encoder, nil
}
