// Package stream writes a snapshot, or the difference between two, as one
// compressed stream of bytes, and reads it back.
//
// A stream is a sequence of zstd frames: the manifest first, then the payload
// in chunks, each followed by its digest, and a digest of the whole last. What
// is not payload lies in skippable frames, so that zstd(1) yields the payload
// alone. docs/stream-format.md is the specification.
//
// The payload is of one of several kinds. A portable one is a pax archive of
// the tree (see sidus/export/stream/paxtar), which tar(1) unpacks anywhere; a
// native one is what a backend writes for its like ("btrfs", "zfs", "lvm").
//
// A Reader passes a chunk on when its digest is right, and says io.EOF when the
// digest of the whole is: who shows nothing before that shows nothing of a
// stream that was cut, altered or mixed up. The digests are no signature:
// whoever can make a stream can make its digests. Who may send is for the
// transport to decide.
package stream
