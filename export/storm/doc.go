// Package storm measures how many machines an NFS server can boot at once.
//
// A recording (recording.go; docs/boot-recording.md has the format) holds the
// NFS calls of one real boot: by path, not by handle, so that they can be made
// again to any server that has the same tree; with what each waited for, and
// how long the machine then thought. Record makes one from the packets of a
// network interface or of a capture file, whatever the server is.
//
// Run lets many virtual nodes, each with a connection of its own, make these
// calls at the same time, and checks what they are answered.
//
// Skeleton makes a tree for a recording: to measure a server, the tree that
// was booted is not needed.
package storm
