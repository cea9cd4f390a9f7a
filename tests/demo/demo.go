package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/gofrs/flock"

	"sidus/tests/lab"
	"sidus/tests/labdisk"
)

const (
	bridge      = "lan"
	labAddr     = "10.77.0.1" // of this machine, which is the server if it has the store
	reportAddr  = labAddr + ":8081"
	reportPath  = "/demo"
	bootTimeout = 5 * time.Minute
)

// demo is one run.
type demo struct {
	started  time.Time
	store    string // the kind of store: btrfs here, zfs or lvm in a machine of its own
	sidusBin string
	state    string
	nonce    string
	lab      *lab.Lab
	machine  *labdisk.Server // with the store zfs or lvm: what serves; else nil
	snapshot string          // tree@number
	bootTime time.Duration
	traffic  string
	steps    []step
}

// step is a line of the summary.
type step struct {
	name string
	took time.Duration
	err  error
}

// do runs a step and notes how long it took.
func (d *demo) do(name string, work func() error) error {
	fmt.Printf("== %s\n", name)
	begun := time.Now()
	err := work()
	d.steps = append(d.steps, step{name, time.Since(begun), err})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

func (d *demo) summary() {
	fmt.Println()
	for _, s := range d.steps {
		mark := ""
		if s.err != nil {
			mark = "  FAILED"
		}
		fmt.Printf("%8.1f s  %s%s\n", s.took.Seconds(), s.name, mark)
	}
	fmt.Printf("%8.1f s  in all\n", time.Since(d.started).Seconds())
	if d.traffic != "" {
		fmt.Printf("\nwhat went over the wire for this boot:\n%s", d.traffic)
	}
	fmt.Println()
}

func (d *demo) run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it mounts file systems and makes network namespaces: run it as root")
	}
	if d.sidusBin, err = filepath.Abs("bin/sidus"); err != nil {
		return err
	}
	if _, err := os.Stat(d.sidusBin); err != nil {
		return fmt.Errorf("%w: `make build` makes it", err)
	}
	// The state folder stays, so that the next run finds its phases.
	d.state = os.Getenv("SIDUS_DEMO_DIR")
	if d.state == "" {
		d.state = "/var/lib/sidus-demo"
	}
	if err := os.MkdirAll(d.state, 0o700); err != nil {
		return err
	}
	alone := flock.New(filepath.Join(d.state, "demo.lock"))
	if locked, err := alone.TryLock(); err != nil || !locked {
		return errors.Join(fmt.Errorf("another demo runs in %s; SIDUS_DEMO_DIR names another folder", d.state), err)
	}
	defer func() { err = errors.Join(err, alone.Close()) }()
	d.nonce = strings.ToLower(rand.Text())

	if _, ok := labdisk.Stores[d.store]; !ok && d.store != "btrfs" {
		return fmt.Errorf("there is no kind of store %q: btrfs, zfs and lvm are", d.store)
	}
	defer func() {
		err = errors.Join(err, d.do("clean up", func() error { return d.commandHere(context.WithoutCancel(ctx), []string{"unmount"}).Run() }))
	}()
	if d.lab, err = lab.New(lab.Options{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.lab.Close()) }()
	if _, err := d.lab.AddBridge(bridge, netip.MustParsePrefix(labAddr+"/24")); err != nil {
		return err
	}
	if d.store == "btrfs" {
		err = d.makeHere(ctx, d.nonce)
	} else {
		err = d.makeInMachine(ctx)
	}
	if err != nil {
		return err
	}
	if err := d.do("promote it", func() error {
		return d.sidus(ctx, "promote", "demo@latest", "--message", "make demo")
	}); err != nil {
		return err
	}
	return d.boot(ctx)
}

// makeHere builds the tree on an embedded store in the state folder.
func (d *demo) makeHere(ctx context.Context, nonce string) error {
	if err := d.do("make the store", func() error {
		return d.sidus(ctx, "init", "--size", "20G")
	}); err != nil {
		return err
	}
	return d.do("build the tree", func() error {
		return d.sidus(ctx, "build", "recipes/demo.yaml", "--set", "nonce="+nonce, "--set", "report=http://"+reportAddr+reportPath)
	})
}

// boot serves the tree in a network of its own and boots a machine from it.
func (d *demo) boot(ctx context.Context) (err error) {
	var reports *lab.Reports
	var capture *lab.Capture
	var server *lab.Process
	if err := d.do("serve it in a network of its own", func() error {
		if reports, err = d.lab.Reports(reportAddr); err != nil {
			return err
		}
		if err := d.addNetwork(ctx); err != nil {
			return err
		}
		if server, err = d.serve(); err != nil {
			return err
		}
		return waitText(ctx, server, "giving addresses|answering", time.Minute)
	}); err != nil {
		return d.explain(err, server, nil)
	}
	var machine *lab.Machine
	begun := time.Now()
	err = d.do("boot a virtual machine from it", func() error {
		if machine, err = d.lab.Boot(lab.MachineOptions{Name: "demo", NICs: []lab.NIC{{Bridge: bridge}}}); err != nil {
			return err
		}
		// Its own cable is looked at: not all that goes through the bridge passes
		// this machine.
		if capture, err = d.lab.Capture(machine.Taps[0]); err != nil {
			return err
		}
		waiting, cancel := context.WithTimeout(ctx, bootTimeout)
		defer cancel()
		report, err := reports.Wait(waiting, func(r lab.Report) bool { return r.Path == reportPath })
		if err != nil {
			return err
		}
		d.bootTime = time.Since(begun)
		return d.checkReport(ctx, string(report.Body))
	})
	if err != nil {
		return d.explain(err, server, machine)
	}
	d.traffic = capture.String()
	err = d.do("what the server says of it", func() error { return d.waitUp(ctx) })
	if err != nil {
		return d.explain(err, server, machine)
	}
	return d.do("stop the machine and the server", func() error {
		if err := machine.Quit(); err != nil {
			return err
		}
		stopping, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		return d.stop(stopping, server)
	})
}

// addNetwork tells Sidus of the demo's network, once.
func (d *demo) addNetwork(ctx context.Context) error {
	text, err := d.sidusOutput(ctx, "network", "list", "--json")
	if err != nil {
		return err
	}
	if strings.Contains(text, `"name": "demo"`) {
		return nil
	}
	return d.sidus(ctx, "network", "add", "demo", "--subnet", "10.77.0.0/24", "--mode", "full", "--range", "10.77.0.100-10.77.0.199")
}

// checkReport compares what the machine says with what was promoted.
func (d *demo) checkReport(ctx context.Context, report string) error {
	text, err := d.sidusOutput(ctx, "show", "demo@latest", "--json")
	if err != nil {
		return err
	}
	var shown struct {
		Snapshot struct {
			ID     string
			Tree   string
			Number int
		}
	}
	if err := json.Unmarshal([]byte(text), &shown); err != nil {
		return err
	}
	d.snapshot = fmt.Sprintf("%s@%d", shown.Snapshot.Tree, shown.Snapshot.Number)
	fmt.Printf("the machine reports:\n%s", indent(report))
	for what, wanted := range map[string]string{
		"the nonce of this run":          "nonce: " + d.nonce,
		"the ID of the promoted tree":    "snapshot: " + shown.Snapshot.ID,
		"an overlay as its root":         "mount: overlay / overlay ",
		"the snapshot as its lower NFS":  "/snapshot/" + shown.Snapshot.ID,
		"NFS version 3 by TCP read-only": " /run/sidus/ro nfs ro,",
	} {
		if !strings.Contains(report, wanted) {
			return fmt.Errorf("the machine did not report %s (%q)", what, wanted)
		}
	}
	return nil
}

// waitUp waits until the agent has reported, and shows the status.
func (d *demo) waitUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		text, err := d.sidusOutput(ctx, "status", "--json")
		if err != nil {
			return err
		}
		var nodes []struct {
			Session *struct {
				Step        string
				FailedUnits []string `json:"failed_units"`
			}
		}
		if err := json.Unmarshal([]byte(text), &nodes); err != nil {
			return err
		}
		for _, node := range nodes {
			if node.Session != nil && node.Session.Step == "up" {
				if len(node.Session.FailedUnits) > 0 {
					return fmt.Errorf("units failed on the machine: %s", strings.Join(node.Session.FailedUnits, " "))
				}
				return d.sidus(ctx, "status")
			}
		}
		select {
		case <-time.After(500 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("the agent did not report within a minute: %s", text)
		}
	}
}

func waitText(ctx context.Context, p *lab.Process, pattern string, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	_, _, err := p.Output.WaitFor(ctx, 0, compile(pattern))
	return err
}

// explain shows the ends of what server and machine said.
func (d *demo) explain(err error, server *lab.Process, machine *lab.Machine) error {
	if server != nil {
		fmt.Printf("the server said:\n%s", indent(tail(server.Output.String(), 40)))
	}
	if machine != nil {
		fmt.Printf("the machine's console:\n%s", indent(tail(machine.Console.String(), 40)))
	}
	return err
}
