package lab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A Process is a program that runs in the lab.
type Process struct {
	// Output is what the program writes to its standard output and standard
	// error.
	Output *Transcript

	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error // valid when done is closed
}

// outputs numbers the files that processes write to.
var outputs struct {
	sync.Mutex
	n int
}

// Start runs a program in the namespace. Its output goes to the process's
// transcript. Lab.Close kills it if it still runs.
func (l *Lab) Start(name string, args ...string) (*Process, error) {
	return l.StartCmd(exec.Command(name, args...))
}

// StartCmd is Start for a command with its own environment, directory,
// standard input or extra files. Its standard output and standard error must
// not be set. Its attributes are changed: it gets a process group of its own
// and the parent death signal SIGKILL.
func (l *Lab) StartCmd(cmd *exec.Cmd) (*Process, error) {
	base := filepath.Base(cmd.Path)
	outputs.Lock()
	outputs.n++
	file := filepath.Join(l.dir, fmt.Sprintf("%s.%d.log", base, outputs.n))
	outputs.Unlock()
	return l.start(cmd, base, file)
}

func (l *Lab) start(cmd *exec.Cmd, name, file string) (*Process, error) {
	transcript, err := newTranscript(file)
	if err != nil {
		return nil, err
	}
	p := &Process{Output: transcript, name: name, cmd: cmd, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = transcript, transcript
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// Grandchildren may hold the output open after the process has ended.
	cmd.WaitDelay = time.Second
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		transcript.end()
		return nil, fmt.Errorf("lab %s: closed", l.name)
	}
	if err := l.thread.do(cmd.Start); err != nil {
		transcript.end()
		return nil, fmt.Errorf("lab %s: start %s: %w", l.name, name, err)
	}
	l.log.WithField("pid", cmd.Process.Pid).Debugf("lab %s: started %s", l.name, strings.Join(cmd.Args, " "))
	go func() {
		p.err = cmd.Wait()
		transcript.end()
		close(p.done)
	}()
	if err := l.own(p); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// Run runs a program in the namespace until its end and returns what it said.
func (l *Lab) Run(ctx context.Context, name string, args ...string) (string, error) {
	p, err := l.Start(name, args...)
	if err != nil {
		return "", err
	}
	if err := p.Wait(ctx); err != nil {
		_ = p.Close()
		return p.Output.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, tail([]byte(strings.TrimSpace(p.Output.String()))))
	}
	return p.Output.String(), nil
}

// Pid is the process's ID.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns its error, if it did not
// exit with status 0.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of %s: %w", p.name, context.Cause(ctx))
	}
}

// Signal sends a signal to the process.
func (p *Process) Signal(sig syscall.Signal) error { return p.cmd.Process.Signal(sig) }

// Kill kills the process (SIGKILL) and waits for its end: what a crash of a
// server looks like.
func (p *Process) Kill() error { return p.Close() }

// Stop asks the process to end (SIGTERM) and waits for it. If ctx ends first,
// the process is killed and the error says so. A process that ends by the
// signal or with status 0 is no error.
func (p *Process) Stop(ctx context.Context) error {
	_ = p.Signal(syscall.SIGTERM)
	if err := p.Wait(ctx); ctx.Err() != nil && err != nil {
		_ = p.Close()
		return fmt.Errorf("%s does not end on SIGTERM: %w", p.name, ctx.Err())
	}
	return p.exitError()
}

func (p *Process) exitError() error {
	var exit *exec.ExitError
	if errors.As(p.err, &exit) {
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGTERM {
			return nil
		}
	}
	return p.err
}

// Close kills the process and its group, if they still run, and waits.
func (p *Process) Close() error {
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
	return nil
}
