// Package build turns a recipe into a tree: phase by phase, each in its own
// sandbox, each ending in a snapshot.
//
// Load reads and checks a recipe. Plan compares it with the snapshots that
// exist and says which phases must run, and why; it is a pure function. A
// Builder carries a plan out on a Head, which the caller locks and provides.
//
// # Keys
//
// A phase's key is the SHA-256 of its parent's key and of everything that the
// phase uses: its text after substitution, the bytes and modes of the files
// that it copies, its tool, and the version of this format. A phase whose key
// has a snapshot is not run again. What is outside of the key on purpose: the
// phase's name, comments and layout of the recipe, the version of Sidus, the
// machine's own mirror, and what the mirror holds today (--rebuild asks it
// again).
//
// # Failures
//
// A phase that fails, or is cut, leaves the snapshots before it as they were.
// The head goes back to the last good snapshot; the kernel has killed what
// the phase started and dropped what it mounted.
package build
