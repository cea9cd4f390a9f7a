package lab_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"sidus/tests/lab"
)

// A server in a lab, a machine that boots from it, and what the machine says.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	boot := func() error {
		l, err := lab.New(lab.Options{})
		if err != nil {
			return err
		}
		defer l.Close()
		if _, err := l.AddBridge("lan", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
			return err
		}
		traffic, err := l.Capture("lan")
		if err != nil {
			return err
		}
		reports, err := l.Reports("10.77.0.1:8081")
		if err != nil {
			return err
		}
		if _, err := l.Start("bin/sidus", "serve", "--interface", "lan", "--listen", "10.77.0.1", "--dhcp", "full"); err != nil {
			return err
		}
		machine, err := l.Boot(lab.MachineOptions{Name: "node1", NICs: []lab.NIC{{Bridge: "lan"}}})
		if err != nil {
			return err
		}
		if _, err := machine.WaitText(ctx, `login:`); err != nil {
			return err // with the end of the console
		}
		if _, err := reports.Wait(ctx, func(r lab.Report) bool { return strings.Contains(string(r.Body), "nonce") }); err != nil {
			return err
		}
		mounts, err := machine.Shell(ctx, "cat /proc/mounts") // needs lab.AutologinUnit in the tree
		fmt.Println(mounts, traffic)
		return err
	}
	fmt.Println(boot())
}
