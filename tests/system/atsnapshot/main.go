// Command atsnapshot runs a program with the folder at which a store has a
// snapshot mounted as its last argument:
//
//	atsnapshot -dataset tank/sidus 687626eebb70798d3a60888fdecf7f7e ls -l
//
// It exits with the program's status.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/lvm"
	"sidus/zfs"
)

func main() {
	file := flag.String("file", "", "the store is the embedded one in `FILE`")
	dataset := flag.String("dataset", "", "the store is the ZFS dataset `POOL/NAME`")
	pool := flag.String("thin-pool", "", "the store is in the LVM thin pool `VG/POOL`")
	flag.Parse()
	if flag.NArg() < 2 || flag.NFlag() != 1 {
		fmt.Fprintln(os.Stderr, "usage: atsnapshot -file FILE|-dataset POOL/NAME|-thin-pool VG/POOL SNAPSHOT PROGRAM [ARGUMENT]...")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, *file, *dataset, *pool, store.SnapshotID(flag.Arg(0)), flag.Args()[1:])
	stop()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Exited() {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "atsnapshot:", err)
		os.Exit(1)
	}
}

// run opens the store, mounts the snapshot and runs the program.
func run(ctx context.Context, file, dataset, pool string, id store.SnapshotID, program []string) (err error) {
	var opened store.Store
	switch {
	case dataset != "":
		opened, err = zfs.Open(ctx, zfs.Options{Dataset: dataset})
	case pool != "":
		opened, err = lvm.Open(ctx, lvm.Options{ThinPool: pool})
	default:
		opened, err = btrfs.Open(ctx, btrfs.Options{File: file})
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	mount, err := opened.MountSnapshot(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, mount.Unmount(context.WithoutCancel(ctx))) }()
	cmd := exec.CommandContext(ctx, program[0], append(program[1:], mount.Path())...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}
