package reset

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
	"sidus/tests/labdisk"
)

// A run without SIDUS_LONG_TESTS=1 resets the machine so often when all commands
// stand still, and any run so often at the instant in which the first does.
const (
	samples  = 2
	instants = 1
)

// kind is a kind of store: how two of them are made on the empty disk /dev/vdc,
// what options init gets for each, and what the machine's own units, which the
// lab has switched off, do at boot.
type kind struct{ name, make, site, other, atBoot string }

var kinds = []kind{
	{"zfs", "zpool create -O mountpoint=none tank /dev/vdc1; zpool create -O mountpoint=none other /dev/vdc2",
		"--dataset tank/sidus", "--dataset other/sidus", "systemctl start zfs-import-cache"},
	{"lvm", "for p in 1 2; do vg=vg; [ $p = 1 ] || vg=other; vgcreate -q --metadatasize 64m $vg /dev/vdc$p; " +
		"lvcreate -q --type thin-pool --extents 90%FREE --name pool $vg; done",
		"--thin-pool vg/pool --volume-size 1G", "--thin-pool other/pool --volume-size 1G", "udevadm settle"},
}

// task is a command that is cut. -N in its words is the number of the round.
type task struct {
	name, command string
	// again is the status with which the command ends when it is given once
	// more after all of it was done.
	again int
	// reads says that it changes nothing in the site.
	reads bool
}

// The first two take turns: one transfer comes in at a time.
var tasks = []task{
	{name: "whole", command: "sidus receive </var/lib/said.whole", again: 1},
	{name: "parts", command: "sidus receive </var/lib/said.parts", again: 1},
	{name: "branch", command: "sidus branch deb@1 branch-N", again: 4},
	{name: "rollback", command: "sidus rollback rollback-N@1"},
	{name: "gc", command: "sidus gc --tree gc-N --keep 1 --yes"},
	{name: "import", command: "sidus import import-N --dir /var/lib/tree", again: 4},
	{name: "export", command: "sidus export deb@2 --base deb@1 -o - >/dev/null", reads: true},
}

// tasksOf are those of a round.
func tasksOf(round int) []task {
	return append([]task{tasks[(round+1)%2]}, tasks[2:]...)
}

// prepareRound is what a round begins with.
const prepareRound = `sidus branch deb@1 rollback-N; sidus snapshot rollback-N; sidus exec rollback-N -- /bin/sh -c 'echo changed > /etc/marker'
sidus branch deb@2 gc-N; for n in 1 2 3; do sidus snapshot gc-N; done; sync`

// received is what the round's transfer brings, and must not be there when it
// comes again.
func received(round int) string { return []string{"parts@2", "whole"}[round%2] }

// site is the machine under test.
type site struct {
	*testing.T
	*labdisk.Server
	kind kind
}

func needs(t *testing.T) *labdisk.Disk {
	t.Helper()
	why := ""
	var disk *labdisk.Disk
	if os.Geteuid() != 0 {
		why = "it needs root"
	} else if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		why = err.Error()
	} else if disk, err = labdisk.Ensure(t.Context(), os.Stderr, logrus.StandardLogger()); errors.Is(err, labdisk.ErrCannotBuild) {
		why = err.Error()
	} else if err != nil {
		t.Fatal(err)
	} else if _, err := labtest.FindProgram(); err != nil {
		why = err.Error()
	}
	if why != "" && os.Getenv("CI") == "true" {
		t.Fatal("resets of the machine were not tested: " + why)
	} else if why != "" {
		t.Skip("SKIPPED: RESETS OF THE MACHINE WERE NOT TESTED: " + why)
	}
	return disk
}

// newSite boots the machine and makes what is to be kept.
func newSite(t *testing.T, kind kind) *site {
	t.Helper()
	disk := needs(t)
	l := labtest.New(t, lab.Options{})
	if _, err := l.AddBridge("lan", netip.MustParsePrefix("10.81.0.1/24")); err != nil {
		t.Fatal(err)
	}
	programs := map[string]string{"sidus": labtest.Program(t), "static-busybox": "/bin/busybox", "digests": "testdata/digests-" + kind.name}
	for _, name := range []string{"round", "setup", "receiver"} {
		programs[name] = "testdata/" + name
	}
	for _, name := range []string{"zfs", "zpool", "lvm", "dmsetup", "mkfs.ext4", "cp", "thin_dump", "thin_delta"} {
		programs[name] = "testdata/step"
	}
	server, err := disk.StartServer(t.Context(), l, labdisk.ServerOptions{
		Name: kind.name, Bridge: "lan", Address: netip.MustParsePrefix("10.81.0.2/24"), Programs: programs,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t, server, kind}
	s.do("sgdisk -n 1:0:+8G -n 2:0:0 /dev/vdc; udevadm settle")
	s.do(kind.make)
	s.do("sidus init " + kind.site)
	s.do("SIDUS_STATE=/var/lib/other sidus init " + kind.other)
	s.do("sh /lab/setup")
	return s
}

// do runs a command line on the machine, with the number of a round for N.
func (s *site) do(line string) string {
	s.Helper()
	ctx, cancel := context.WithTimeoutCause(s.Context(), 10*time.Minute, errors.New("the machine is stuck"))
	defer cancel()
	out, err := s.Do(ctx, line)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

func inRound(line string, round int) string {
	return strings.NewReplacer("-N", fmt.Sprintf("-%d", round)).Replace(line)
}

// layOut says what the next round runs, and where each command is cut; nothing
// is cut where nothing is said.
func (s *site) layOut(round int, tasks []task, cuts map[string]int) {
	s.Helper()
	lines := []string{"rm -rf /run/round"}
	for _, task := range tasks {
		dir := "/run/round/" + task.name
		lines = append(lines, fmt.Sprintf("mkdir -p %s; echo '%s' >%s/command; echo %d >%s/cut", dir, inRound(task.command, round), dir, cuts[task.name], dir))
	}
	s.do(strings.Join(lines, "\n"))
}

// runRound runs a round that is not cut. It returns how each command ended.
func (s *site) runRound(tasks []task) map[string]int {
	s.Helper()
	out := s.do(`sh /lab/round none; cd /run/round; for d in *; do echo "$d $(cat $d/status)"; done; tail -n 3 */said`)
	ended := map[string]int{}
	for line := range strings.Lines(out) {
		var name string
		var status int
		if n, _ := fmt.Sscanf(line, "%s %d", &name, &status); n == 2 && slices.ContainsFunc(tasks, func(t task) bool { return t.name == name }) {
			ended[name] = status
		}
	}
	for _, task := range tasks {
		if status, ok := ended[task.name]; !ok || status != 0 && status != task.again {
			s.Errorf("%s ended with %d", task.command, status)
		}
	}
	if s.Failed() {
		s.Fatal(out)
	}
	return ended
}

// cutRound runs a round until the machine is reset, waits until it has booted,
// and returns what was cut.
func (s *site) cutRound(mode string) string {
	s.Helper()
	said, events := s.Console.Len(), len(s.Events())
	s.do("setsid sh /lab/round " + mode + " >/dev/null 2>&1 </dev/null &")
	ctx, cancel := context.WithTimeoutCause(s.Context(), 10*time.Minute, errors.New("it is not reset"))
	defer cancel()
	if _, _, err := s.WaitEvent(ctx, events, "RESET"); err != nil {
		s.Fatal(err)
	}
	if err := s.WaitReady(s.Context()); err != nil {
		s.Fatal(err)
	}
	s.do(s.kind.atBoot)
	found := regexp.MustCompile(`(?m)cut: .*`).FindAllString(s.Console.String()[said:], -1)
	return strings.ReplaceAll(strings.Join(found, "\n"), "\r", "")
}

// mended checks that check finds at most what was left over, and that --repair
// mends it. It returns what check said.
func (s *site) mended() string {
	s.Helper()
	out := s.do(`status=0; sidus check || status=$?; echo "check: $status"; sidus check --repair; echo "repair: $?"; sidus check; echo "again: $?"`)
	if !strings.Contains(out, "check: 0") && !strings.Contains(out, "check: 6") || !strings.Contains(out, "again: 0") {
		s.Errorf("%s", out)
	}
	return out
}

// TestReset cuts all commands at once at sampled steps, or at each with
// SIDUS_LONG_TESTS=1.
func TestReset(t *testing.T) {
	for _, kind := range kinds {
		t.Run(kind.name, func(t *testing.T) { testReset(newSite(t, kind)) })
	}
}

func testReset(s *site) {
	begun := time.Now()
	read := s.export()
	s.do(inRound(prepareRound, 0))
	before := s.state(0)
	steps := map[string]int{}
	for _, list := range [][]task{tasksOf(0), tasks[:1]} {
		s.layOut(0, list, nil)
		for name, status := range s.runRound(list) {
			if status != 0 {
				s.Fatalf("%s fails although nothing cuts it: %d", name, status)
			}
		}
		maps.Copy(steps, s.steps())
	}
	after := s.state(0)
	for _, task := range tasks {
		if !task.reads && before[task.name] == after[task.name] {
			s.Fatalf("%s changes nothing: %s", task.command, after[task.name])
		}
	}
	rounds := 0
	for _, n := range steps {
		rounds = max(rounds, 2*n)
	}
	if os.Getenv("SIDUS_LONG_TESTS") != "1" {
		rounds = samples
	}
	s.Logf("%v: ready; the commands have %v steps; %d resets", time.Since(begun).Round(time.Second), steps, rounds+instants)
	s.do("sidus delete whole --yes; sidus delete parts@2 --yes")
	first := rand.IntN(100)
	for round := 1; round <= rounds+instants && !s.Failed(); round++ {
		cuts := map[string]int{}
		for name, all := range steps {
			// The transfers run every second time.
			n, runs := round-1, rounds
			if name == tasks[0].name || name == tasks[1].name {
				n, runs = n/2, runs/2
			}
			cuts[name] = 1 + (first+n*max(all, runs)/runs)%all
		}
		mode := "all"
		if round > rounds {
			mode = "first"
		}
		s.round(round, mode, cuts, before, after)
		s.Logf("%v: round %d is over", time.Since(begun).Round(time.Second), round)
	}
	s.do("sidus check")
	if now := s.export(); now != read {
		s.Errorf("what was there reads as\n%s\ninstead of\n%s", now, read)
	}
}

// round cuts the commands once, each at its step.
func (s *site) round(round int, mode string, cuts map[string]int, before, after map[string]string) {
	s.Helper()
	s.do(inRound(prepareRound, round))
	tasks := tasksOf(round)
	s.layOut(round, tasks, cuts)
	s.Logf("round %d, reset when %s stood still:\n%s", round, mode, s.cutRound(mode))
	s.Logf("%s", s.mended())
	state := s.state(round)
	done, want := map[string]bool{}, maps.Clone(before)
	for _, task := range tasks {
		if !task.reads {
			want[task.name] = after[task.name]
		}
	}
	for name := range union(before, want) {
		switch state[name] {
		case want[name]:
			done[name] = true
		case before[name]:
		default:
			s.Errorf("%s is %q; before the command it was %q, after it %q", name, state[name], before[name], want[name])
		}
	}
	for name := range state {
		if !union(before, want)[name] {
			s.Errorf("there is %s: %s", name, state[name])
		}
	}
	if s.Failed() {
		return
	}
	s.layOut(round, tasks, nil)
	for name, status := range s.runRound(tasks) {
		if status != 0 && !done[name] {
			s.Errorf("%s was not done and cannot be done again: %d\n%s", name, status, s.do("cat /run/round/"+name+"/said"))
		}
	}
	if now := s.state(round); !maps.Equal(now, want) {
		s.Errorf("with all done again the site is\n%v\ninstead of\n%v", now, want)
	}
	s.do("sidus delete " + received(round) + " --yes")
}
