// Command demo does Sidus' main job once, for real: it makes an embedded
// store, builds a small Debian from recipes/demo.yaml, promotes it, serves it
// in a network namespace of its own, boots a virtual machine from it by PXE,
// and waits for the machine to report what it read from the promoted tree.
//
// With -store zfs or lvm the server is a second virtual machine, which has
// OpenZFS or LVM with a thin pool: the tree travels there as a stream, is
// changed, promoted and served there.
//
// Its last line is `demo: ok: …`, and it exits with 0, or `demo: failed: …`.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	store := flag.String("store", "btrfs", "the `KIND` of store that the machine boots from: btrfs, or zfs or lvm on a virtual machine that has it")
	flag.Parse()
	d := &demo{started: time.Now(), store: *store}
	err := d.run(ctx)
	stop()
	d.summary()
	if err != nil {
		fmt.Printf("demo: failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("demo: ok: a machine booted %s in %s and proved it (nonce %s)\n", d.snapshot, d.bootTime.Round(time.Second), d.nonce)
}
