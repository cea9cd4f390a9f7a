package system

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"testing"
	"time"

	"sidus/btrfs"
	"sidus/image/store"
	"sidus/tests/lab"
)

// world is what the lanes share: a site with three versions of the tree, a lab,
// a server in it that serves three networks, and what one lane waits for in
// the other.
type world struct {
	site   *site
	lab    *lab.Lab
	server *server

	v1, v2, v3 snapshot

	alpha1 identity // of alpha, once it is up

	alphaUp   event // alpha is up
	reads     event // alpha reads on and on
	restarted event // the server has been killed for the last time, and is back
}

// event is something that happens once.
type event struct {
	what string
	done chan struct{}
}

func newEvent(what string) event { return event{what, make(chan struct{})} }

func (e event) happened() { close(e.done) }

func (e event) wait(ctx context.Context, t *testing.T) {
	t.Helper()
	select {
	case <-e.done:
	case <-ctx.Done():
		t.Fatalf("waiting until %s: %v", e.what, context.Cause(ctx))
	}
}

// The networks of the lab. The server has the first address of each.
var (
	alphaNet = netip.MustParsePrefix("10.77.0.1/24") // leases of two minutes
	betaNet  = netip.MustParsePrefix("10.78.0.1/24")
	gammaNet = netip.MustParsePrefix("10.79.0.1/24") // another server gives the addresses
)

func needMachines(t *testing.T) {
	t.Helper()
	why := ""
	if os.Geteuid() != 0 {
		why = "they need root"
	}
	for _, program := range []string{"qemu-system-x86_64", "ip", "mmdebstrap", "mkfs.btrfs", "dnsmasq"} {
		if _, err := exec.LookPath(program); err != nil {
			why = fmt.Sprintf("%s is missing; tests/setup.sh test installs it", program)
		}
	}
	if why == "" {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("the whole-system tests cannot run: " + why)
	}
	t.Skip("SKIPPED: NO MACHINE WAS BOOTED: the whole-system tests cannot run: " + why)
}

// prepare builds the trees, makes the networks and starts the server.
func (w *world) prepare(ctx context.Context, t *testing.T) {
	t.Helper()
	w.site = newSite(ctx, t)
	// The head starts from what was built last: that is not the one to delete.
	w.v3 = w.site.build(ctx, t, "3")
	w.v1 = w.site.build(ctx, t, "1")
	w.v2 = w.site.build(ctx, t, "2")
	begun := time.Now()
	w.site.must(ctx, t, "promote", w.v1.ref, "--message", "the first")
	times.note("the first promotion: search for secrets, index", time.Since(begun))
	w.site.must(ctx, t, "promote", w.v1.ref, "--channel", "beta")
	w.site.must(ctx, t, "promote", w.v3.ref, "--channel", "beta")
	w.site.must(ctx, t, "network", "add", "alpha", "--subnet", alphaNet.Masked().String(), "--mode", "full",
		"--range", "10.77.0.100-10.77.0.199", "--lease", "2m", "--domain", "lab.example", "--dns", "10.77.0.1")
	w.site.must(ctx, t, "network", "add", "beta", "--subnet", betaNet.Masked().String(), "--mode", "full", "--range", "10.78.0.100-10.78.0.199")
	w.site.must(ctx, t, "network", "add", "gamma", "--subnet", gammaNet.Masked().String(), "--channel", "")

	var err error
	if w.lab, err = lab.New(lab.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.lab.Close(); err != nil {
			t.Error(err)
		}
	})
	for name, prefix := range map[string]netip.Prefix{"alpha": alphaNet, "beta": betaNet, "gamma": gammaNet, "dead": {}} {
		if _, err := w.lab.AddBridge(name, prefix); err != nil {
			t.Fatal(err)
		}
	}
	w.server = &server{site: w.site, lab: w.lab}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the server's log:\n%s", tail(w.server.log(), 120))
		}
	})
	begun = time.Now()
	if err := w.server.start(ctx, pxelinux); err != nil {
		t.Fatal(err)
	}
	times.note("start serving three networks", time.Since(begun))
}

// pxelinux makes the firmware of the machines, which is iPXE, load PXELINUX as
// other firmware would.
const pxelinux = "--no-ipxe-script"

// TestSystem runs the scenarios that doc.go tells of.
func TestSystem(t *testing.T) {
	needMachines(t)
	limited, stop := context.WithTimeoutCause(t.Context(), 35*time.Minute, errors.New("the time of the whole-system tests is over"))
	defer stop()
	ctx, cancel := context.WithCancelCause(limited)
	defer cancel(nil)
	w := &world{
		alphaUp:   newEvent("alpha is up"),
		reads:     newEvent("alpha reads"),
		restarted: newEvent("the server is back for good"),
	}
	w.prepare(ctx, t)
	t.Run("machines", func(t *testing.T) {
		lane := func(name string, run func(context.Context, *testing.T)) {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				// Nobody waits for a lane that has failed.
				defer func() {
					if t.Failed() {
						cancel(fmt.Errorf("%s has failed", name))
					}
				}()
				run(ctx, t)
			})
		}
		lane("alpha", w.alpha)
		lane("beta and gamma", func(ctx context.Context, t *testing.T) {
			w.beta(ctx, t)
			w.gamma(ctx, t)
		})
	})
	t.Run("afterwards", func(t *testing.T) {
		begun := time.Now()
		if err := w.server.stop(ctx); err != nil {
			t.Error(err)
		}
		times.note("stop the server", time.Since(begun))
		w.site.must(ctx, t, "check")
	})
}

// mounted calls use with the folder at which the store has a snapshot mounted.
func (w *world) mounted(ctx context.Context, t *testing.T, s snapshot, use func(dir string)) {
	t.Helper()
	opened, err := btrfs.Open(ctx, btrfs.Options{File: w.site.state + "/store/store.img"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := opened.Close(); err != nil {
			t.Error(err)
		}
	}()
	mount, err := opened.MountSnapshot(ctx, store.SnapshotID(s.id))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := mount.Unmount(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	use(mount.Path())
}
