package stream

import "errors"

// The classes of what can be wrong with a stream. Errors of a Reader wrap one
// of them, or are those of what it reads from.
var (
	// ErrForeign: it is no stream of Sidus.
	ErrForeign = errors.New("not a Sidus stream")
	// ErrVersion: it was written by a newer Sidus.
	ErrVersion = errors.New("written by a newer version of Sidus")
	// ErrTruncated: its end is missing.
	ErrTruncated = errors.New("the stream is cut off")
	// ErrDamaged: it is not what was written.
	ErrDamaged = errors.New("the stream is damaged")
	// ErrManifest: its manifest makes no sense, or that of an export does not.
	ErrManifest = errors.New("bad manifest")
	// ErrKind: the kind of its payload is not taken here.
	ErrKind = errors.New("the payload's kind is not taken here")
)
