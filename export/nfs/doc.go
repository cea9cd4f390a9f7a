// Package nfs serves snapshots by NFS version 3 over TCP (RFC 1813), with the
// MOUNT protocol on the same port. It is read-only.
//
// # How it answers
//
// A snapshot never changes, so its index (package image/index) holds the
// answer to every call but READ: no system call is made for metadata, and
// nothing is allocated. A connection has one goroutine. It takes what the
// socket has, answers each call into one buffer, and writes the buffer when
// no further request is waiting in memory: so replies are batched while many
// calls are in flight, and none is held back when there is one.
//
// File data comes by preadv2 into the same buffer if the read is small, and
// by sendfile if it is large. Both are tried without waiting (RWF_NOWAIT,
// RESOLVE_CACHED, cachestat). What the page cache lacks is given to another
// goroutine, of which some hundred may wait for disks, and is answered when it
// is there, after later calls of the same connection if need be. The same way
// is taken by a call that needs a snapshot that is not open yet.
//
// # Many clients
//
// A call is answered at once, unless its connection has been busy for long
// without having to wait for its client, or its client has very many
// connections. Where there are other clients, such connections take turns, in one
// place less than there are processors, a turn of some hundred microseconds each time, and who has many
// of them has no more turns (turns.go). Large reads are sent in pieces, and
// turns end in between. BenchmarkHonest shows what a flood from one client, of
// calls or of bytes, over few connections or many, does to the calls of another.
//
// # Handles
//
// A handle is made of snapshot ID, file ID and an authentication tag under the
// site's key (handle.go): nothing is remembered, so that a server that was
// started again, or another server of the site, goes on where the first
// stopped.
//
// # Why not go-nfs
//
// github.com/willscott/go-nfs answers one call at a time per connection, opens
// and closes a file for each READ, reflects on each reply, sends Go's idea of
// mode bits, ignores who calls, and has no EXPORT, DUMP or UMNTALL. What would
// be left to it behind a fast path are the dozen calls that a read-only server
// refuses with NFS3ERR_ROFS. Handing these over, on the same connection and in
// the same stream of records, takes more code than they do.
package nfs
