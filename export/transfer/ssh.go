package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// SSHVariable names the variable of the environment with the ssh command to
// use, with options, separated by blanks: "ssh -i /etc/sidus/key".
const SSHVariable = "SIDUS_SSH"

// DialSSH starts the receiver at an address by the system's ssh. interactive
// lets ssh ask for a password or for the trust in a host; else it fails.
func DialSSH(a Address, interactive bool) Dial {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		command := strings.Fields(os.Getenv(SSHVariable))
		if len(command) == 0 {
			command = []string{"ssh"}
		}
		// A dead host is noticed after a minute.
		command = append(command, "-T", "-e", "none", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4", "-o", "ConnectTimeout=30")
		if !interactive {
			command = append(command, "-o", "BatchMode=yes")
		}
		if a.Port != 0 {
			command = append(command, "-p", strconv.Itoa(a.Port))
		}
		if a.User != "" {
			command = append(command, "-l", a.User)
		}
		// Shells that nobody logged in to often have no sbin in their path.
		remote := "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin sidus receive"
		if a.State != "" {
			remote += " --state " + shellQuote(a.State)
		}
		return startProcess(ctx, append(command, "--", a.Host, remote))
	}
}

func shellQuote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// process is a program whose standard input and output are the connection.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr tail
	once   sync.Once
	ended  error
}

func startProcess(ctx context.Context, command []string) (io.ReadWriteCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command(command[0], command[1:]...)}
	p.cmd.Stderr = &p.stderr
	// Ctrl-C ends the transfer; ssh must not be the first to go.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, fmt.Errorf("%w; install openssh-client, or use a tls:// address", err)
		}
		return nil, err
	}
	return p, nil
}

func (p *process) Write(b []byte) (int, error) {
	n, err := p.stdin.Write(b)
	return n, p.explain(err)
}

func (p *process) Read(b []byte) (int, error) {
	n, err := p.stdout.Read(b)
	return n, p.explain(err)
}

// explain adds what the program said before it went away.
func (p *process) explain(err error) error {
	if err == nil {
		return nil
	}
	// What it says last may still be on its way.
	for wait := 20 * time.Millisecond; wait < time.Second; wait *= 2 {
		time.Sleep(wait)
		if text := p.stderr.String(); text != "" {
			return &said{fmt.Sprintf("%s says: %s", p.cmd.Args[0], text), err}
		}
	}
	return err
}

// said is an error in the words of a program.
type said struct {
	text string
	err  error
}

func (s *said) Error() string { return s.text }
func (s *said) Unwrap() error { return s.err }

// endGrace is how long a program may take to end when its input has ended.
const endGrace = 5 * time.Second

// Close ends the connection and waits for the program.
func (p *process) Close() error {
	p.once.Do(func() {
		_ = p.stdin.Close()
		stop := time.AfterFunc(endGrace, func() { _ = p.cmd.Process.Kill() })
		defer stop.Stop()
		_, _ = io.Copy(io.Discard, p.stdout)
		if err := p.cmd.Wait(); err != nil {
			var status *exec.ExitError
			if !errors.As(err, &status) {
				p.ended = err // how it ended is no news: the protocol says what went wrong
			}
		}
	})
	return p.ended
}

// tail keeps the end of what is written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

const tailSize = 2000

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	if len(t.text) > tailSize {
		t.text = bytes.Clone(t.text[len(t.text)-tailSize:])
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.TrimSpace(string(t.text))
}
