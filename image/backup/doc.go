// Package backup writes what a state folder holds, without the store's bytes
// and what can be made again, to one file, and brings it back.
//
// The file is a tar archive compressed with zstd. Its first entry,
// manifest.json, names all others with their SHA-256; then come a consistent
// copy of the catalog (sidus.db) and the files of secrets/. It holds the site's
// key: who has it can be the server.
//
// What is brought back is checked whole, in a folder of its own beside the
// state, before anything of the old state is touched.
package backup
