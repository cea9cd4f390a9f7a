// Package index makes and reads the index of a snapshot: one flat,
// memory-mapped file that holds every inode of the tree with its attributes,
// the directories, the targets of symbolic links and the access control
// lists. An NFS server answers from it without asking the file system.
//
// # File IDs
//
// Inode numbers differ from one backend to the next, so the index numbers the
// inodes itself: an inode's ID is the rank, from 1, of its bytewise-smallest
// path among those of all inodes. The root directory, whose path is empty, is
// 1. Two trees with the same names, contents and attributes have the same
// IDs, wherever they lie.
//
// # Canonical attributes
//
// What depends on the backend is left out or derived from what does not:
// there is one time (the modification time), a directory's size and link
// count follow from its entries, a file's link count is the number of its
// names in the tree, and the space that a file takes follows from its size.
// So the index of a tree and that of its copy are the same bytes.
//
// # Trust
//
// An index is a cache made by the server itself. Open checks the header only;
// Verify checks the digest of the whole file. All lookups check the bounds of
// what they read, so that a damaged file gives errors and never a crash.
//
// The format is described in docs/index-format.md.
package index
