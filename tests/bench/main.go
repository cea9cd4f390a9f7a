// Command bench compares the NFS server with NFS-Ganesha: the same tree, the
// same load on the same machine in alternating runs, as medians. Then storms
// of machines that boot at once (tests/bench/boot.jsonl.gz) are let loose on
// both, with cold caches, and once more with one processor and 1 GB of memory.
//
//	go run ./tests/bench [-rounds 3] [-time 500ms] [-nodes 300] [-storms 2]
//
// It runs as root, from the top of the repository, and needs Debian's
// nfs-ganesha and nfs-ganesha-vfs. Everything is in namespaces of its own.
// It fails if an answer of a server is wrong, if a benchmark cannot be run, and
// at the end if a target was missed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

var (
	rounds = flag.Int("rounds", 3, "how often each load is tried on each server; 0: only storms")
	took   = flag.Duration("time", 500*time.Millisecond, "how long each try takes")
	only   = flag.String("only", "", "try only loads with such a name, such as READ|LOOKUP")
	nodes  = flag.Int("nodes", 300, "virtual nodes of a storm; 0: no storm")
	storms = flag.Int("storms", 2, "storms on each server")
	inside = flag.String("inside", "", "for its own use: the working folder")
)

func main() {
	flag.Parse()
	work := outside
	if *inside != "" {
		work = func(ctx context.Context) error { return run(ctx, *inside) }
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := work(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// outside builds what is measured, and starts this program again in namespaces
// of its own: when that ends, the kernel ends all that it has started.
func outside(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("it must run as root")
	}
	if _, err := exec.LookPath("ganesha.nfsd"); err != nil {
		return fmt.Errorf("%w: apt-get install nfs-ganesha nfs-ganesha-vfs", err)
	}
	dir, err := os.MkdirTemp("", "sidus-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	fmt.Println("building")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-o", filepath.Join(dir, "nfs.test"), "./export/nfs")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build: %w", err)
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"-inside", dir}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID,
		Pdeathsig:  syscall.SIGKILL,
	}
	return cmd.Run()
}

// private makes the mounts and the network of the namespaces.
func private(ctx context.Context) error {
	return errors.Join(
		syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""),
		syscall.Mount("proc", "/proc", "proc", 0, ""),
		syscall.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		os.MkdirAll("/run/ganesha", 0o755),
		os.MkdirAll("/run/rpcbind", 0o755),
		exec.CommandContext(ctx, "ip", "link", "set", "lo", "up").Run(),
		// Ganesha does not start without a port mapper. It goes to the background.
		exec.CommandContext(ctx, "rpcbind", "-w").Run(),
	)
}
