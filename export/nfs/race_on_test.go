//go:build race

package nfs

// raceEnabled: the race detector makes pools forget and memory grow.
const raceEnabled = true
