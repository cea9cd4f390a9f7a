// Package storebench measures what a store promises: that branch, snapshot and
// rollback take the same time however large a tree is, and that an export keeps
// up with the pipeline that an administrator would type.
//
//	go test -run '^$' -bench . ./tests/storebench
//	SIDUS_BENCH_STORE=zfs go test -run '^$' -bench . ./tests/storebench
//
// The store is an embedded one, in a file: of btrfs, or of what
// SIDUS_BENCH_STORE names (btrfs, zfs, lvm). TestInLab does it for zfs and lvm
// in a machine that has both.
package storebench
