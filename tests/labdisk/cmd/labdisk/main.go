// Command labdisk makes the disk of the test machine, if it is missing, and
// prints where its files are.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"

	"sidus/tests/labdisk"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	disk, err := labdisk.Ensure(ctx, os.Stderr, logrus.StandardLogger())
	if err != nil {
		fmt.Fprintln(os.Stderr, "labdisk:", err)
		os.Exit(1)
	}
	fmt.Printf("image=%s\nkernel=%s\ninitrd=%s\nversion=%s\n", disk.Image, disk.Kernel, disk.Initrd, disk.Version)
}
