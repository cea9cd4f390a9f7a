package system

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sidus/tests/lab"
	"sidus/tests/labdisk"
)

// storeEnv is the environment variable with the kind of store that the tests
// run on.
const storeEnv = "SIDUS_TEST_STORE"

// onMachine tells whether the store is on a virtual machine.
func onMachine() bool { return labdisk.Stores[os.Getenv(storeEnv)].Make != "" }

// host is the machine that has the store and the server: all that differs from
// one kind of store to another. The embedded store is on this machine
// (embedded), ZFS and LVM are on a virtual one (storeServer).
type host interface {
	// sidus runs a command of sidus.
	sidus(ctx context.Context, args ...string) (result, error)
	// recipe is the file with the recipe of the tree.
	recipe() string
	// serve starts `sidus serve`. kill ends it with SIGKILL, stop with SIGTERM;
	// both return when it has ended.
	serve(options ...string) (*lab.Process, error)
	kill(serving *lab.Process) error
	stop(ctx context.Context, serving *lab.Process) error
	// walk runs testdata/walk where the store has a snapshot mounted.
	walk(ctx context.Context, id string) (result, error)
	// cable is the device of the lab that sees what the server says in a network.
	cable(network string) string
	// observer is an address in the network alpha at which the lab itself can be
	// reached.
	observer() netip.Addr
	// patience is how many times as long as on this machine things may take.
	patience() time.Duration
}

// The networks of the lab. The server has the first address of each.
var (
	alphaNet = netip.MustParsePrefix("10.77.0.1/24") // short leases
	betaNet  = netip.MustParsePrefix("10.78.0.1/24")
	gammaNet = netip.MustParsePrefix("10.79.0.1/24") // another server gives the addresses
)

// network is a segment of the lab.
type network struct {
	name   string
	server netip.Prefix // the server's address; not valid: it is not there
}

var segments = []network{{"alpha", alphaNet}, {"beta", betaNet}, {"gamma", gammaNet}, {name: "dead"}}

// newHost makes the segments of a lab, a host in it, and a store with all that
// is needed to build the tree there.
func newHost(ctx context.Context, t *testing.T, l *lab.Lab) host {
	t.Helper()
	switch kind := os.Getenv(storeEnv); kind {
	case "", "btrfs":
		for _, segment := range segments {
			if _, err := l.AddBridge(segment.name, segment.server); err != nil {
				t.Fatal(err)
			}
		}
		e := newEmbedded(ctx, t)
		e.lab, e.walker = l, atSnapshot(ctx, t)
		return e
	default:
		store, ok := labdisk.Stores[kind]
		if !ok {
			t.Fatalf("%s=%s: there is no such kind of store: btrfs, zfs and lvm are", storeEnv, kind)
		}
		return newStoreServer(ctx, t, l, kind, store)
	}
}

// atSnapshot compiles the program of that name, which needs nothing of the
// machine that it runs on.
func atSnapshot(ctx context.Context, t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "atsnapshot")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", to, "./atsnapshot")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build ./atsnapshot: %v: %s", err, out)
	}
	return to
}

// result is what a program printed, and how it ended.
type result struct {
	stdout, stderr string
	status         int
}

// finish starts a program and waits for its end.
func finish(cmd *exec.Cmd, what string, start func() error) (result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := start()
	if err == nil {
		err = cmd.Wait()
	}
	r := result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", what, err, tail(r.stdout+r.stderr, 30))
	}
	return r, err
}

// words are a program and its arguments for a message.
func words(name string, args []string) string {
	return strings.Join(append([]string{name}, args...), " ")
}
