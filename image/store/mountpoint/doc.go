// Package mountpoint shares mounts between the goroutines and processes of one
// mount namespace. It serves backends whose volumes and snapshots are file
// systems of their own, which someone has to mount and unmount.
//
// A [Table] is a folder. For a thing that can be mounted it holds
//
//	<name>       the folder that it is mounted on
//	<name>.gate  locked by whoever mounts, unmounts or destroys it
//	<name>.held  locked, shared, by each of those who use it
//
// The first who holds a thing mounts it, the last who gives it back unmounts
// it. Locks are flocks, which the kernel drops with the process: what a killed
// holder leaves is a mount that nobody holds. The next one to hold, exclude or
// sweep it takes care of that.
//
// Names of locks come and go: whoever gets a lock checks that its file still
// has its name.
package mountpoint
