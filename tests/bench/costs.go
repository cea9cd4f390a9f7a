package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

var (
	honest = regexp.MustCompile(`(?m)^BenchmarkHonest/(\S+?)(?:-\d+)?\s.*?([0-9.e+]+) p99-µs`)
	badGot = regexp.MustCompile(`(?m)^BenchmarkHonest/(\S+?)(?:-\d+)?\s.*?([0-9.e+]+) bad-MB/s`)
)

// protect measures how long the calls of an honest client take beside one that
// does its worst, of each kind: at most twice what they take without it.
func protect(ctx context.Context, dir, tree string, s *server, targets *targets) error {
	fmt.Printf("\nAn honest client with one call in flight, beside one that does its worst; medians of %d runs\n", *rounds)
	fmt.Println("(the other works only while nobody else wants the processors: what it does itself delays nobody)")
	fmt.Printf("%-18s %14s %9s %7s %7s\n", "the other", "it gets MB/s", "p99 µs", "ratio", "wanted")
	var kinds []string
	times, ratios, got := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for range *rounds {
		cmd := exec.CommandContext(ctx, filepath.Join(dir, "nfs.test"), "-test.run=^$", "-test.bench=^BenchmarkHonest$", "-test.benchtime=5000x")
		cmd.Env = append(os.Environ(), "SIDUS_BENCH_TREE="+tree, "SIDUS_BENCH_TARGET="+s.addr+","+s.path+","+s.mountAddr)
		out, err := cmd.CombinedOutput()
		if err != nil {
			return fmt.Errorf("floods: %w: %s", err, out)
		}
		p99 := map[string]float64{}
		for _, found := range honest.FindAllSubmatch(out, -1) {
			name := string(found[1])
			if p99[name], err = strconv.ParseFloat(string(found[2]), 64); err != nil {
				return err
			}
			if len(times[name]) == 0 {
				kinds = append(kinds, name)
			}
			times[name] = append(times[name], p99[name])
		}
		for _, found := range badGot.FindAllSubmatch(out, -1) {
			rate, err := strconv.ParseFloat(string(found[2]), 64)
			if err != nil {
				return err
			}
			got[string(found[1])] = append(got[string(found[1])], rate)
		}
		// Before and after: what else the machine does counts for both.
		alone := (p99["alone"] + p99["alone_again"]) / 2
		if alone == 0 || len(p99) < 4 {
			return fmt.Errorf("floods: nothing was measured: %s", out)
		}
		for name, took := range p99 {
			ratios[name] = append(ratios[name], took/alone)
		}
	}
	for _, name := range kinds {
		if len(times[name]) < *rounds {
			return fmt.Errorf("floods: %s was not measured in all runs", name)
		}
		text := strings.ReplaceAll(name, "_", " ")
		if strings.HasPrefix(name, "alone") {
			fmt.Printf("%-18s %14s %9.0f\n", text, "", median(times[name]))
			continue
		}
		rate := "" // of those that never read
		if len(got[name]) > 0 {
			rate = fmt.Sprintf("%.0f", median(got[name]))
		}
		ratio := median(ratios[name])
		fmt.Printf("%-18s %14s %9.0f %6.2fx %6.1fx  %s\n", text, rate, median(times[name]), ratio, 2.0,
			targets.judge(ratio <= 2, "p99 beside one that %s: %.2f times, not 2.0", text, ratio))
	}
	return nil
}

var said = regexp.MustCompile(`(?m)^ +cost_test\.go:\d+: (.*)$`)

// costs tells what calls and connections cost the server in memory.
func costs(ctx context.Context, dir string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "nfs.test"), "-test.run=^(TestMallocs|TestIdleConnections)$", "-test.v")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("memory: %w: %s", err, out)
	}
	fmt.Println("\nMemory (wanted: less than 1,000 objects for a million calls, less than 16,384 bytes for a connection)")
	found := said.FindAllSubmatch(out, -1)
	if len(found) == 0 {
		return errors.New("memory: nothing was measured")
	}
	for _, line := range found {
		fmt.Printf("  %s\n", line[1])
	}
	return nil
}
