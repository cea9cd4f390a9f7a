package node

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"sidus/boot/dhcp"
	"sidus/image/catalog"
	"sidus/image/store"
)

// The tests of this file run the test binary again, as other processes that
// use the same catalog.

const childMachines = 40

// child is the main function of such a process: it does SIDUS_TEST_CHILD with
// the catalog SIDUS_TEST_CATALOG, and writes what it got to standard output.
func child() int {
	ctx := context.Background()
	cat, err := catalog.Open(ctx, os.Getenv("SIDUS_TEST_CATALOG"))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer cat.Close()
	clock := newClock()
	r := New(cat, Options{Now: clock.Now, LocalAddrs: func() ([]netip.Addr, error) { return nil, nil }})
	var work func(int) (string, error)
	switch os.Getenv("SIDUS_TEST_CHILD") {
	case "boot":
		work = func(i int) (string, error) {
			b, err := r.Boot(ctx, MAC{2, 0, 0, 0, 0, byte(i)}, client1, "ipxe")
			return fmt.Sprintf("%d %s %s", i, b.Session.ID, b.Session.Snapshot.ID), err
		}
	case "lease":
		work = func(i int) (string, error) {
			mac := MAC{2, 0, 0, 0, byte(os.Getpid() >> 8), byte(os.Getpid())}
			err := r.PutLease(ctx, dhcp.Lease{
				Network: "lab", MAC: mac.HardwareAddr(), Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(100 + i)}),
				State: dhcp.Bound, Expires: clock.Now().Add(time.Hour),
			})
			if errors.Is(err, store.ErrInUse) {
				return "", nil
			}
			return fmt.Sprintf("%d %s", i, mac), err
		}
	}
	status := 0
	var group sync.WaitGroup
	var out sync.Mutex
	for worker := range 4 {
		group.Go(func() {
			for n := range childMachines {
				line, err := work((n + worker*7) % childMachines)
				out.Lock()
				if err != nil {
					fmt.Fprintln(os.Stderr, err)
					status = 1
				} else if line != "" {
					fmt.Println(line)
				}
				out.Unlock()
			}
		})
	}
	group.Wait()
	return status
}

func childCommand(t *testing.T, s *site, what string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "SIDUS_TEST_CHILD="+what, "SIDUS_TEST_CATALOG="+s.path)
	return cmd
}

// runChildren runs three processes at once and returns their lines.
func runChildren(t *testing.T, s *site, what string) []string {
	t.Helper()
	var cmds []*exec.Cmd
	var outs [3]bytes.Buffer
	for i := range outs {
		cmd := childCommand(t, s, what)
		cmd.Stdout, cmd.Stderr = &outs[i], &outs[i]
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	var lines []string
	for i, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outs[i].String())
		}
		lines = append(lines, strings.Split(strings.TrimSpace(outs[i].String()), "\n")...)
	}
	return lines
}

// Three processes with four workers each boot the same machines while another
// promotes: each machine gets one session and one snapshot, whoever asks.
func TestBootInProcesses(t *testing.T) {
	s := newSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	promoted := make(chan int)
	go func() {
		n := 0
		// SQLite is not fair between processes: without a pause the others
		// would hardly come to their turn.
		pause := time.NewTicker(3 * time.Millisecond)
		defer pause.Stop()
		for ; ctx.Err() == nil; n++ {
			<-pause.C
			if err := promote(s.cat, s.clock.Now(), "default", id(1+n%3), "promote"); err != nil {
				t.Error(err)
				break
			}
		}
		promoted <- n
	}()
	lines := runChildren(t, s, "boot")
	cancel()
	t.Logf("%d promotions meanwhile", <-promoted)
	if len(lines) != 3*4*childMachines {
		t.Fatalf("%d answers", len(lines))
	}
	answers := map[string]string{}
	for _, line := range lines {
		machine, rest, _ := strings.Cut(line, " ")
		if before, ok := answers[machine]; ok && before != rest {
			t.Errorf("machine %s got %s and %s", machine, before, rest)
		}
		answers[machine] = rest
	}
	users, err := s.SnapshotsInUse(t.Context())
	total := 0
	for _, list := range users {
		total += len(list)
	}
	if err != nil || total != childMachines {
		t.Errorf("%d live sessions, %v", total, err)
	}
}

// A process that is killed has told nothing that is not on record.
func TestBootSurvivesKill(t *testing.T) {
	s := newSite(t)
	for range 5 {
		cmd := childCommand(t, s, "boot")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		told := map[string]string{}
		lines := bufio.NewScanner(out)
		for lines.Scan() {
			machine, rest, _ := strings.Cut(lines.Text(), " ")
			told[machine] = rest
			if len(told) == 10 {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait() // it was killed
		s.promote("default", id(2))
		s.restart()
		for machine, rest := range told {
			var i int
			fmt.Sscan(machine, &i)
			b := s.boot(MAC{2, 0, 0, 0, 0, byte(i)}, client1)
			if got := fmt.Sprintf("%s %s", b.Session.ID, b.Session.Snapshot.ID); got != rest {
				t.Fatalf("machine %s was told %s and is told %s now", machine, rest, got)
			}
		}
	}
}

// No address is given to two machines, whichever process gives it.
func TestLeasesInProcesses(t *testing.T) {
	s := newSite(t)
	holders := map[string]string{}
	for _, line := range runChildren(t, s, "lease") {
		if line == "" {
			continue
		}
		address, mac, _ := strings.Cut(line, " ")
		if before, ok := holders[address]; ok && before != mac {
			t.Errorf("address %s was given to %s and %s", address, before, mac)
		}
		holders[address] = mac
	}
	list, err := s.Leases(t.Context(), "lab")
	if err != nil || len(list) != childMachines || len(holders) != childMachines {
		t.Errorf("%d leases, %d holders, %v", len(list), len(holders), err)
	}
}
