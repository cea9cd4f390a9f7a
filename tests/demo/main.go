// Command demo does Sidus' main job once, for real: it makes an embedded
// store, builds a small Debian from recipes/demo.yaml, promotes it, serves it
// in a network namespace of its own, boots a virtual machine from it by PXE,
// and waits for the machine to report what it read from the promoted tree.
//
// Its last line is `demo: ok: …`, and it exits with 0, or `demo: failed: …`.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	d := &demo{started: time.Now()}
	err := d.run(ctx)
	stop()
	d.summary()
	if err != nil {
		fmt.Printf("demo: failed: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("demo: ok: a machine booted %s in %s and proved it (nonce %s)\n", d.snapshot, d.bootTime.Round(time.Second), d.nonce)
}
