package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"sidus/export/storm"
)

// loads are what is tried, with how many times the peer's calls per second are
// to be reached when many calls are in flight, and when one is.
var loads = []struct {
	name      string
	many, one float64
}{
	{"GETATTR", 12, 1}, {"LOOKUP", 12, 1}, {"ACCESS", 12, 1}, {"READDIRPLUS", 4, 1},
	{"READ4K", 7, 1}, {"READall", 3, 1}, {"READ128K", 1.7, 1},
}

// measure is one try.
type measure struct{ calls, micros float64 }

func run(ctx context.Context, dir string) (err error) {
	if err := private(ctx); err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	fmt.Println("making the tree")
	if err := os.MkdirAll(filepath.Join(tree, "boot"), 0o755); err != nil {
		return err
	}
	if err := makeTree(tree); err != nil {
		return err
	}
	recorded, err := storm.ReadFile("tests/bench/boot.jsonl.gz")
	if err != nil {
		return err
	}
	boot, err := storm.Skeleton(recorded, filepath.Join(tree, "boot"))
	if err != nil {
		return err
	}
	peer, err := ganesha(dir, tree)
	if err != nil {
		return err
	}
	servers := []*server{ours(dir, tree), peer}
	defer func() {
		for _, s := range servers {
			s.stop()
		}
	}()
	for _, s := range servers {
		if err := s.start(ctx, false); err != nil {
			return err
		}
	}
	wanted := &targets{}
	if *rounds > 0 {
		if err := compare(ctx, dir, tree, servers, wanted); err != nil {
			return err
		}
		if *only == "" {
			if err := errors.Join(protect(ctx, dir, tree, servers[0], wanted), costs(ctx, dir)); err != nil {
				return err
			}
		}
	}
	if *nodes == 0 {
		return wanted.summary()
	}
	fmt.Printf("\nStorms of %d nodes that start together, no thinking, cold caches\n", *nodes)
	if err := stormBoth(ctx, tree, boot, servers, false, wanted); err != nil {
		return err
	}
	remove, err := makeMemoryGroup()
	if err != nil {
		fmt.Printf("\nNOT DONE: storms with one processor and 1 GB: %v\n", err)
		return wanted.summary()
	}
	defer remove()
	fmt.Printf("\nThe same, each server with one processor and 1 GB of memory\n")
	if err := stormBoth(ctx, tree, boot, servers, true, wanted); err != nil {
		return err
	}
	return wanted.summary()
}

// compare tries each load on both servers in turn.
func compare(ctx context.Context, dir, tree string, servers []*server, targets *targets) error {
	fmt.Printf("\n%d connections; medians of %d alternating runs; CPU: µs of the server's per call\n", 8, *rounds)
	fmt.Printf("%-12s %9s %11s %11s %7s %8s %8s %8s %7s\n", "call", "in flight", "sidus/s", "ganesha/s", "ratio", "wanted", "CPU", "ganesha", "ratio")
	tried, err := regexp.Compile(*only)
	if err != nil {
		return err
	}
	for _, flight := range []int{16, 1} {
		for _, load := range loads {
			if !tried.MatchString(load.name) {
				continue
			}
			wanted := load.many
			if flight == 1 {
				wanted = load.one
			}
			tries := [2][]measure{}
			var ratios, costs []float64
			for round := range *rounds {
				for i := range servers {
					which := (i + round) % 2 // who begins, alternates
					m, err := try(ctx, dir, tree, servers[which], fmt.Sprintf("%s/8x%d", load.name, flight))
					if err != nil {
						return err
					}
					tries[which] = append(tries[which], m)
				}
				a, b := tries[0][round], tries[1][round]
				ratios = append(ratios, a.calls/b.calls)
				costs = append(costs, b.micros/max(a.micros, 0.001))
			}
			ratio := median(ratios)
			verdict := targets.judge(ratio >= wanted, "%s with %d in flight: %.1f times the calls, not %.1f", load.name, flight, ratio, wanted)
			fmt.Printf("%-12s %9d %11.0f %11.0f %6.1fx %7.1fx %8.2f %8.2f %6.1fx  %s\n", load.name, flight,
				median(each(tries[0], func(m measure) float64 { return m.calls })), median(each(tries[1], func(m measure) float64 { return m.calls })),
				ratio, wanted,
				median(each(tries[0], func(m measure) float64 { return m.micros })), median(each(tries[1], func(m measure) float64 { return m.micros })),
				median(costs), verdict)
		}
	}
	return nil
}

func each(all []measure, of func(measure) float64) []float64 {
	values := make([]float64, len(all))
	for i, m := range all {
		values[i] = of(m)
	}
	return values
}

func median(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

var metric = regexp.MustCompile(`([0-9.e+]+) (calls/s|serverµs/call)`)

// try runs one benchmark of export/nfs against a server.
func try(ctx context.Context, dir, tree string, s *server, name string) (m measure, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "nfs.test"), "-test.run=^$", "-test.bench=^BenchmarkServer$/^"+strings.ReplaceAll(name, "/", "$/^")+"$",
		"-test.benchtime="+took.String())
	cmd.Env = append(os.Environ(), "SIDUS_BENCH_TREE="+tree, "SIDUS_BENCH_TARGET="+s.addr+","+s.path+","+s.mountAddr,
		fmt.Sprintf("SIDUS_BENCH_PID=%d", s.process.Process.Pid))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return m, fmt.Errorf("%s of %s: %w: %s%s", name, s.name, err, out, stderr.String())
	}
	for _, found := range metric.FindAllSubmatch(out, -1) {
		value, err := strconv.ParseFloat(string(found[1]), 64)
		if err != nil {
			return m, err
		}
		if string(found[2]) == "calls/s" {
			m.calls = value
		} else {
			m.micros = value
		}
	}
	if m.calls == 0 {
		return m, fmt.Errorf("%s of %s measured nothing: %s", name, s.name, out)
	}
	return m, nil
}

// stormBoth lets storms loose on both servers in turn, each started anew.
func stormBoth(ctx context.Context, tree string, boot *storm.Recording, servers []*server, limited bool, targets *targets) error {
	fmt.Printf("%-8s %8s %9s %9s %9s %9s %8s %7s\n", "server", "booted", "boots/s", "p50", "p99", "max", "MB/s", "errors")
	worst := [2][]float64{}
	for round := range *storms {
		for i := range servers {
			which := (i + round) % 2
			s := servers[which]
			s.stop()
			if err := dropCaches(tree); err != nil {
				return err
			}
			if err := s.start(ctx, limited); err != nil {
				return err
			}
			r, err := storm.Run(ctx, boot, storm.Options{Target: s.target("/boot"), Nodes: *nodes, NoThinking: true, Timeout: 5 * time.Minute})
			if err != nil {
				return err
			}
			fmt.Printf("%-8s %8d %9.2f %8.2fs %8.2fs %8.2fs %8.0f %7d\n", s.name, r.Booted, r.BootsPerSecond, r.P50.Seconds(), r.P99.Seconds(), r.Max.Seconds(), r.BytesPerSecond/1e6, r.Errors)
			for _, text := range r.Examples {
				fmt.Println("   error:", text)
			}
			if r.Errors > 0 && which == 0 {
				return errors.New("our server answered wrongly")
			}
			worst[which] = append(worst[which], r.P99.Seconds())
			s.stop()
		}
	}
	a, b := median(worst[0]), median(worst[1])
	fmt.Printf("p99 %.2f s to %.2f s: %s\n", a, b, targets.judge(a <= b, "storm (limited: %v): p99 %.2f s, Ganesha's is %.2f s", limited, a, b))
	return nil
}
