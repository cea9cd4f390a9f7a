package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"sidus/tests/lab"
)

// sidus runs a command of Sidus where the store is, and shows what it says.
func (d *demo) sidus(ctx context.Context, args ...string) error {
	where := ""
	if d.machine != nil {
		where = d.store + "-server"
	}
	fmt.Printf("%s# sidus %s\n", where, strings.Join(args, " "))
	cmd := d.command(ctx, args)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return d.runCommand(cmd)
}

func (d *demo) sidusOutput(ctx context.Context, args ...string) (string, error) {
	cmd := d.command(ctx, args)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	err := d.runCommand(cmd)
	return out.String(), err
}

func (d *demo) command(ctx context.Context, args []string) *exec.Cmd {
	if d.machine != nil {
		return d.machine.Command(ctx, "sidus", args...)
	}
	return d.commandHere(ctx, args)
}

// commandHere works on the embedded store in the state folder.
func (d *demo) commandHere(ctx context.Context, args []string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, d.sidusBin, append([]string{"--state", d.state}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// runCommand runs a command in the lab's network if that leads to the machine
// with the store.
func (d *demo) runCommand(cmd *exec.Cmd) error {
	if d.machine == nil {
		return cmd.Run()
	}
	if err := d.lab.Do(cmd.Start); err != nil {
		return err
	}
	return cmd.Wait()
}

// serve starts the server. PXELINUX by TFTP is what cards of all ages can
// load; QEMU's own firmware would otherwise take the iPXE script.
func (d *demo) serve() (*lab.Process, error) {
	args := []string{"serve", "--no-ipxe-script", "--interface"}
	if d.machine != nil {
		return d.machine.Start("sidus", append(args, "eth0")...)
	}
	return d.lab.Start(d.sidusBin, append([]string{"--state", d.state}, append(args, bridge)...)...)
}

// stop ends the server.
func (d *demo) stop(ctx context.Context, server *lab.Process) error {
	if d.machine == nil {
		return server.Stop(ctx)
	}
	if _, err := d.machine.Do(ctx, "pkill -TERM -x sidus"); err != nil {
		return err
	}
	return server.Wait(ctx)
}
