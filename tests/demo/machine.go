package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/sirupsen/logrus"

	"sidus/tests/labdisk"
)

// machineAddr is the address of the machine with the store.
const machineAddr = "10.77.0.2"

// makeInMachine boots a machine with the store, and takes the tree there as a
// stream from the embedded store that it is built on.
func (d *demo) makeInMachine(ctx context.Context) error {
	kind := labdisk.Stores[d.store]
	// The nonce there never changes, so that the tree is built once.
	if err := d.makeHere(ctx, "none"); err != nil {
		return err
	}
	if err := d.do("boot a server that has "+d.store, func() error {
		disk, err := labdisk.Ensure(ctx, os.Stdout, logrus.StandardLogger())
		if err != nil {
			return err
		}
		d.machine, err = disk.StartServer(ctx, d.lab, labdisk.ServerOptions{
			Name: d.store + "-server", Bridge: bridge, Address: netip.MustParsePrefix(machineAddr + "/24"),
			Programs: map[string]string{"sidus": d.sidusBin},
		})
		return err
	}); err != nil {
		return err
	}
	if err := d.do("make its store", func() error {
		if _, err := d.machine.Do(ctx, kind.Make); err != nil {
			return err
		}
		return d.sidus(ctx, "init", kind.Option, kind.At)
	}); err != nil {
		return err
	}
	if err := d.do("take the tree there as a stream", func() error { return d.stream(ctx) }); err != nil {
		return err
	}
	return d.do("change it there", func() error {
		if err := d.sidus(ctx, "exec", "demo", "--", "/bin/sh", "-c", "echo "+d.nonce+" > /etc/sidus-demo/nonce"); err != nil {
			return err
		}
		return d.sidus(ctx, "snapshot", "demo", "--message", "the nonce of this run")
	})
}

// stream sends the tree from the embedded store to the machine's.
func (d *demo) stream(ctx context.Context) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	from := d.commandHere(ctx, []string{"export", "demo@latest", "--portable", "-o", "-"})
	from.Stdout, from.Stderr = writer, os.Stderr
	to := d.command(ctx, []string{"import", "demo", "--stream", "-"})
	to.Stdin, to.Stdout, to.Stderr = reader, os.Stdout, os.Stderr
	fmt.Println("# sidus export demo@latest --portable -o - | ssh … sidus import demo --stream -")
	err = from.Start()
	err = errors.Join(err, writer.Close())
	if err != nil {
		return errors.Join(err, reader.Close())
	}
	err = d.lab.Do(to.Start)
	err = errors.Join(err, reader.Close())
	if err != nil {
		return errors.Join(err, from.Wait())
	}
	return errors.Join(to.Wait(), from.Wait())
}
