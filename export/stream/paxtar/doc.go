// Package paxtar writes a directory tree as a pax archive that tar(1) unpacks
// with everything that a system's tree can hold: owners by number, modes,
// modification times in nanoseconds, hard links, device nodes, FIFOs, holes,
// extended attributes, POSIX ACLs, and names of arbitrary bytes.
//
// Extensions to POSIX are those of GNU tar and star: holes in GNU's sparse
// format 1.0 ("GNU.sparse.*"), extended attributes as "SCHILY.xattr.*", ACLs
// as "SCHILY.acl.access" and "SCHILY.acl.default" in the text form of acl(5)
// with numbers for names. Sockets have no form in tar and are left out.
//
// The same tree gives the same bytes: names are sorted bytewise, and nothing
// of the moment (access times, process IDs) is written. Where holes lie is the
// file system's word; it may differ between two copies of a tree.
package paxtar
