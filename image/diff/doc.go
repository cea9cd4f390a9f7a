// Package diff tells exactly what differs between two trees: files, with what
// about them changed, and Debian packages.
//
// Files are compared by what they are: content byte by byte (times prove
// nothing), owner, mode, type, link target, device number, extended attributes
// with ACLs and capabilities, and which names are one file. It does not matter
// where the trees come from. For two snapshots that share a history in one
// store, Options.Common spares reading what neither side has touched.
//
// Packages are those of dpkg. The databases of rpm are not read.
package diff
