package system

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
	"sidus/tests/labdisk"
)

// storeServer is a virtual machine with a store on ZFS or LVM, that has a card
// in each network, and one in a network of its own by which it is told what to
// do.
type storeServer struct {
	lab     *lab.Lab
	machine *labdisk.Server
	store   labdisk.Store
	cables  map[string]string // the server's end of each network
}

const (
	controlNet  = "10.76.0.1/24"
	controller  = "10.76.0.2/24" // of the lab in it
	controlName = "control"
	watcher     = 250 // the lab's last number in the networks that are served
	// sources is where the recipe and what it needs lie on the server.
	sources = "/root/sidus"
	// pidFile has the process ID of `sidus serve`.
	pidFile = "/run/sidus-serve.pid"
)

// newStoreServer boots the machine and makes its store. What needs packages is
// built on this machine and travels there as a stream; the rest of the phases
// is built there.
func newStoreServer(ctx context.Context, t *testing.T, l *lab.Lab, kind string, store labdisk.Store) *storeServer {
	t.Helper()
	begun := time.Now()
	stream := baseStream(ctx, t)
	times.note("the tree without what the tests add, as a stream, here", time.Since(begun))

	disk, err := labdisk.Ensure(ctx, os.Stdout, logrus.StandardLogger())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.AddBridge(controlName, netip.MustParsePrefix(controller)); err != nil {
		t.Fatal(err)
	}
	var cards []labdisk.Card
	for _, segment := range segments {
		prefix := netip.Prefix{}
		if segment.server.IsValid() {
			prefix = netip.PrefixFrom(watcherIn(segment.server), segment.server.Bits())
			cards = append(cards, labdisk.Card{Bridge: segment.name, Address: segment.server})
		}
		if _, err := l.AddBridge(segment.name, prefix); err != nil {
			t.Fatal(err)
		}
	}
	begun = time.Now()
	s := &storeServer{lab: l, store: store, cables: map[string]string{}}
	s.machine, err = disk.StartServer(ctx, l, labdisk.ServerOptions{
		Name: kind + "-server", Bridge: controlName, Address: netip.MustParsePrefix(controlNet), Cards: cards,
		Programs: map[string]string{"sidus": labtest.Program(t), "atsnapshot": atSnapshot(ctx, t), "walk": "testdata/walk"},
	})
	if err != nil {
		t.Fatal(err)
	}
	times.note("boot a server that has "+kind, time.Since(begun))
	for n, card := range cards {
		s.cables[card.Bridge] = s.machine.Taps[n+1]
	}

	begun = time.Now()
	if _, err := s.machine.Do(ctx, store.Make); err != nil {
		t.Fatal(err)
	}
	if _, err := s.sidus(ctx, "init", store.Option, store.At); err != nil {
		t.Fatal(err)
	}
	times.note("make its store", time.Since(begun))
	begun = time.Now()
	if err := s.feed(ctx, stream, "sidus", "import", "--stream", "-"); err != nil {
		t.Fatal(err)
	}
	times.note("import the stream there", time.Since(begun))
	archive := filepath.Join(t.TempDir(), "sources.tar")
	if _, err := l.Run(ctx, "tar", "-C", "../..", "-cf", archive, "recipes", "tests/system/testdata"); err != nil {
		t.Fatal(err)
	}
	if err := s.feed(ctx, archive, "sh", "-c", "mkdir -p "+sources+" && tar -C "+sources+" -xf -"); err != nil {
		t.Fatal(err)
	}
	return s
}

// watcherIn is the lab's own address in the network of a server's address.
func watcherIn(server netip.Prefix) netip.Addr {
	address := server.Addr().As4()
	address[3] = watcher
	return netip.AddrFrom4(address)
}

// baseStream is a file with a portable stream of the tree as the recipe is
// that testdata/client.yaml goes on from. It is kept in the cache, named by the
// key of its last phase.
func baseStream(ctx context.Context, t *testing.T) string {
	t.Helper()
	e := newEmbedded(ctx, t)
	must := func(args ...string) string {
		t.Helper()
		r, err := e.sidus(ctx, args...)
		if err != nil {
			t.Fatal(err)
		}
		return r.stdout
	}
	build := []string{"build", "../../recipes/demo.yaml", "--tree", "client"}
	kept, _ := labtest.TreeStream(t, "client", must(append(build, "--plan", "--json")...), func(path string) {
		must(build...)
		must("export", "client@latest", "--portable", "--replace", "-o", path)
	})
	return kept
}

// run runs a program of the server.
func (s *storeServer) run(ctx context.Context, name string, args ...string) (result, error) {
	cmd := s.machine.Command(ctx, name, args...)
	return finish(cmd, words(name, args), func() error { return s.lab.Do(cmd.Start) })
}

// feed runs a program of the server with a file of this machine as its standard
// input.
func (s *storeServer) feed(ctx context.Context, file, name string, args ...string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	cmd := s.machine.Command(ctx, name, args...)
	cmd.Stdin = in
	_, err = finish(cmd, words(name, args), func() error { return s.lab.Do(cmd.Start) })
	return err
}

func (s *storeServer) sidus(ctx context.Context, args ...string) (result, error) {
	return s.run(ctx, "sidus", args...)
}

func (s *storeServer) recipe() string { return filepath.Join(sources, "tests/system", recipe) }

// serve starts the server by a shell that becomes it, so that its process ID
// is known.
func (s *storeServer) serve(options ...string) (*lab.Process, error) {
	script := "echo $$ >" + pidFile + "; exec sidus serve \"$@\""
	return s.lab.StartCmd(s.machine.Command(context.Background(), "sh", append([]string{"-c", script, "sh"}, options...)...))
}

func (s *storeServer) kill(serving *lab.Process) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := s.machine.Do(ctx, "kill -9 $(cat "+pidFile+")"); err != nil {
		return err
	}
	select {
	case <-serving.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the server that was killed does not end: %w", ctx.Err())
	}
}

func (s *storeServer) stop(ctx context.Context, serving *lab.Process) error {
	if _, err := s.machine.Do(ctx, "kill $(cat "+pidFile+")"); err != nil {
		return err
	}
	return serving.Wait(ctx)
}

func (s *storeServer) walk(ctx context.Context, id string) (result, error) {
	return s.run(ctx, "atsnapshot", s.store.Option, s.store.At, id, "/lab/walk")
}

func (s *storeServer) cable(network string) string { return s.cables[network] }

func (s *storeServer) observer() netip.Addr { return watcherIn(alphaNet) }

func (s *storeServer) patience() time.Duration { return 3 }
