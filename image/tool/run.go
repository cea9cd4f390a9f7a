package tool

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
)

// Options says how a program runs. The zero value is good: no input, the
// output thrown away, the environment and folder of this process.
type Options struct {
	// Dir is the working directory; empty means that of this process.
	Dir string
	// Env is added to the environment of this process; LC_ALL is always C
	// unless Env says otherwise. CleanEnv starts from nothing instead.
	Env      []string
	CleanEnv bool
	// Stdin is what the program reads; nil means nothing.
	Stdin io.Reader
	// Stdout and Stderr get what the program writes; nil throws it away. The
	// end of standard error is in the Error either way.
	Stdout io.Writer
	Stderr io.Writer
	// SysProcAttr starts the program in namespaces, with other credentials,
	// and so on; nil means nothing special. It is not changed.
	SysProcAttr *syscall.SysProcAttr
	// ExtraFiles are descriptors 3 and up of the program.
	ExtraFiles []*os.File
	// Grace is the time between SIGTERM and SIGKILL after the context is
	// done; zero sends SIGKILL at once.
	Grace time.Duration
	// Log gets one line at debug level per program; nil means none.
	Log logrus.FieldLogger
}

// ioDelay is how long the output of a program that has ended is waited for:
// a child in the background may hold the pipe open. On a machine that stands
// still for some seconds, what has ended needs them, too.
const ioDelay = 10 * time.Second

// Run runs a program and waits until it has ended. When ctx is done first, the
// program's process group is killed; one that does not end even then, since it
// hangs in the kernel, is left behind.
//
// The error is ErrNotInstalled if there is no such program, else an *Error.
func Run(ctx context.Context, o Options, name string, args ...string) error {
	path, err := Look(name)
	if err != nil {
		return err
	}
	var tail tailBuffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Args[0] = name
	cmd.Dir = o.Dir
	cmd.Stdin, cmd.Stdout, cmd.ExtraFiles = o.Stdin, o.Stdout, o.ExtraFiles
	cmd.Stderr = &tail
	if o.Stderr != nil {
		cmd.Stderr = io.MultiWriter(o.Stderr, &tail)
	}
	if !o.CleanEnv {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(append(cmd.Env, "LC_ALL=C"), o.Env...)
	cmd.SysProcAttr = ownGroup(o.SysProcAttr)
	cmd.WaitDelay = o.Grace + ioDelay
	var group atomic.Int64
	var stopped atomic.Bool
	cmd.Cancel = func() error {
		pid := cmd.Process.Pid
		group.Store(int64(pid))
		signal := syscall.SIGKILL
		if o.Grace > 0 {
			signal = syscall.SIGTERM
			time.AfterFunc(o.Grace, func() {
				if group.Load() == int64(pid) { // not waited for yet
					_ = killGroup(pid, syscall.SIGKILL)
				}
			})
		}
		err := killGroup(pid, signal)
		stopped.Store(err == nil)
		return err
	}
	begin := time.Now()
	if err = cmd.Start(); err == nil {
		err = wait(ctx, cmd)
	}
	took := time.Since(begin)
	if pid := group.Swap(0); pid != 0 {
		// The leader is gone; what it started and left behind goes too.
		_ = killGroup(int(pid), syscall.SIGKILL)
	}
	if o.Log != nil {
		o.Log.WithFields(logrus.Fields{"duration": took.Round(time.Microsecond), "command": CommandLine(cmd.Args)}).Debug("ran a program")
	}
	failed := &Error{Args: cmd.Args, ExitCode: -1, Duration: took, Err: err}
	if err != errHangs { // else the program may still write there
		failed.Stderr = tail.String()
	}
	exit := (*exec.ExitError)(nil)
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		failed.ExitCode = exit.ExitCode()
		if o.Grace <= 0 && exit.Exited() {
			return failed // it was quicker than the signal
		}
	}
	if stopped.Load() || err == errHangs || errors.Is(err, ctx.Err()) {
		failed.Cause = context.Cause(ctx)
	}
	return failed
}

// wait waits for a program that was started. One that hangs in the kernel does
// not end when it is killed: it is left behind, with errHangs.
func wait(ctx context.Context, cmd *exec.Cmd) error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	// When WaitDelay is over, its output is not read any more.
	limit := time.NewTimer(cmd.WaitDelay + time.Second)
	defer limit.Stop()
	select {
	case err := <-ended:
		return err
	case <-limit.C:
		return errHangs
	}
}

// Output is Run that returns what the program wrote to its standard output.
// o.Stdout gets it too, if it is set.
func Output(ctx context.Context, o Options, name string, args ...string) ([]byte, error) {
	var out bytes.Buffer
	if o.Stdout != nil {
		o.Stdout = io.MultiWriter(o.Stdout, &out)
	} else {
		o.Stdout = &out
	}
	err := Run(ctx, o, name, args...)
	return out.Bytes(), err
}

// ownGroup returns a copy of attr that puts the program in a process group of
// its own.
func ownGroup(attr *syscall.SysProcAttr) *syscall.SysProcAttr {
	var own syscall.SysProcAttr
	if attr != nil {
		own = *attr
	}
	if !own.Setsid { // a new session is a new group already
		own.Setpgid, own.Pgid = true, 0
	}
	return &own
}

func killGroup(pid int, signal syscall.Signal) error {
	err := syscall.Kill(-pid, signal)
	if errors.Is(err, syscall.ESRCH) {
		return os.ErrProcessDone
	}
	return err
}
