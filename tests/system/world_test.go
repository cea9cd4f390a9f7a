package system

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"sidus/tests/lab"
)

// world is what the lanes share: a site with three versions of the tree, a lab,
// a server in it that serves three networks, and what one lane waits for in
// the other.
type world struct {
	lab    *lab.Lab
	host   host
	site   *site
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

// prepare makes the networks and the store, builds the trees and starts the
// server.
func (w *world) prepare(ctx context.Context, t *testing.T) {
	t.Helper()
	var err error
	if w.lab, err = lab.New(lab.Options{}); err != nil {
		t.Fatal(err)
	}
	closeLab := func() {
		if err := w.lab.Close(); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(closeLab)
	w.host = newHost(ctx, t, w.lab)
	// What serves ends before the store of the host is unmounted.
	t.Cleanup(closeLab)
	w.site = &site{w.host}
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
		"--range", "10.77.0.100-10.77.0.199", "--lease", w.lease().String(), "--domain", "lab.example", "--dns", "10.77.0.1")
	w.site.must(ctx, t, "network", "add", "beta", "--subnet", betaNet.Masked().String(), "--mode", "full", "--range", "10.78.0.100-10.78.0.199")
	w.site.must(ctx, t, "network", "add", "gamma", "--subnet", gammaNet.Masked().String(), "--channel", "")
	w.server = &server{host: w.host}
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

// lease is how long a lease of the network alpha lasts. A machine that serves
// may be away for most of it.
func (w *world) lease() time.Duration { return time.Minute * (1 + w.host.patience()) }

// pxelinux makes the firmware of the machines, which is iPXE, load PXELINUX as
// other firmware would.
const pxelinux = "--no-ipxe-script"

// TestSystem runs the scenarios that doc.go tells of.
func TestSystem(t *testing.T) {
	needMachines(t)
	limit := 35 * time.Minute
	if onMachine() {
		limit = 90 * time.Minute
	}
	limited, stop := context.WithTimeoutCause(t.Context(), limit, errors.New("the time of the whole-system tests is over"))
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
