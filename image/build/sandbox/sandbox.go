package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRoot is returned by Run when the caller is not root.
var ErrNotRoot = errors.New("a sandbox needs root")

// ErrSetup is wrapped by the errors of a sandbox that could not be made; the
// program was not started.
var ErrSetup = errors.New("cannot make the sandbox")

// ExitError says that the program ran and did not end well.
type ExitError struct {
	Code   int            // exit status, or -1 if a signal ended it
	Signal syscall.Signal // 0 if it exited by itself
}

func (e *ExitError) Error() string {
	if e.Signal != 0 {
		return fmt.Sprintf("ended by signal %d (%s)", int(e.Signal), e.Signal)
	}
	return fmt.Sprintf("exit status %d", e.Code)
}

// Bind shows a file or folder of the host inside the sandbox.
type Bind struct {
	Source   string // on the host
	Target   string // inside; it must exist, and be a folder if Source is one
	ReadOnly bool
}

// Options say what to run and where.
type Options struct {
	// Root is the folder that becomes "/". Empty: the host's own root and
	// /dev, for tools such as mmdebstrap that work on a folder; the program
	// then may mount (in its own namespace) and Hostname, Files and the
	// resolv.conf and policy-rc.d of the sandbox are not used.
	Root string
	// Args is the program, looked up in PATH inside Root, and its arguments.
	Args []string
	// Dir is the working folder inside Root. Empty: "/".
	Dir string
	// Env is added to the sandbox's own environment (see Environment).
	Env []string
	// Stdin, Stdout and Stderr: nil means /dev/null. With Terminal they are
	// the person's terminal.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Terminal gives the program a terminal of its own and relays it to
	// Stdin (which must be an *os.File) and Stdout.
	Terminal bool
	// NoNetwork gives the program an empty network with a loopback only.
	NoNetwork bool
	// NoSync makes fsync and its kin do nothing inside. It is for work whose
	// result is either made durable as a whole afterwards or thrown away:
	// dpkg syncs every file.
	NoSync bool
	// Binds are mounted in this order.
	Binds []Bind
	// Files are written under the sandbox's /run, by absolute path.
	Files map[string]string
	// Hostname inside. Empty: "sidus".
	Hostname string
}

// config is what Run tells the first process of the sandbox.
type config struct {
	Root      string
	Args      []string
	Dir       string
	Env       []string
	Terminal  bool
	Rows      uint16
	Cols      uint16
	NoNetwork bool
	NoSync    bool
	Binds     []Bind
	Files     map[string]string
	Hostname  string
	Resolv    string // contents; bound over /etc/resolv.conf if HasResolv
	HasResolv bool
	HasPolicy bool
}

// message is what the first process of the sandbox tells Run, one a line.
type message struct {
	Started bool   `json:",omitempty"` // with the terminal's fd, if asked for
	Error   string `json:",omitempty"`
	Ended   bool   `json:",omitempty"`
	Code    int    `json:",omitempty"`
	Signal  int    `json:",omitempty"`
}

// Run runs a program in a sandbox and waits for it and for all that it
// started. When ctx ends, everything in the sandbox is killed and the cause
// is returned. An error that wraps *ExitError says how the program ended,
// one that wraps ErrSetup that it never began.
func Run(ctx context.Context, o Options) (err error) {
	if len(o.Args) == 0 {
		return fmt.Errorf("%w: no program given", ErrSetup)
	}
	if os.Geteuid() != 0 {
		return ErrNotRoot
	}
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	c := config{
		Args: o.Args, Dir: o.Dir, Terminal: o.Terminal, NoNetwork: o.NoNetwork, NoSync: o.NoSync,
		Binds: o.Binds, Files: o.Files, Hostname: o.Hostname,
		Env: append(Environment(), o.Env...),
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	if c.Hostname == "" {
		c.Hostname = "sidus"
	}
	if o.Root != "" {
		if c.Root, err = filepath.Abs(o.Root); err != nil {
			return fmt.Errorf("%w: %w", ErrSetup, err)
		}
		if c.Root, err = filepath.EvalSymlinks(c.Root); err != nil {
			return fmt.Errorf("%w: %w", ErrSetup, err)
		}
		points, err := makeMountPoints(c.Root)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrSetup, err)
		}
		defer points.remove()
		c.HasPolicy = points.policy
		if text, err := os.ReadFile("/etc/resolv.conf"); err == nil && points.resolv && !o.NoNetwork {
			c.Resolv, c.HasResolv = string(text), true
		}
	}
	return run(ctx, o, c)
}

func run(ctx context.Context, o Options, c config) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSetup, err)
	}
	theirs := os.NewFile(uintptr(pair[1]), "sandbox control")
	mine := os.NewFile(uintptr(pair[0]), "sandbox control")
	defer theirs.Close()
	generic, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSetup, err)
	}
	control := generic.(*net.UnixConn)
	defer control.Close()

	cmd := exec.CommandContext(ctx, "/proc/self/exe", initArgument)
	cmd.Args[0] = "sidus-sandbox"
	cmd.Env = []string{"GOMAXPROCS=2"}
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.WaitDelay = 2 * time.Second
	if !o.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if o.NoNetwork {
		cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	}
	var terminal *relay
	if o.Terminal {
		if terminal, err = newRelay(o); err != nil {
			return fmt.Errorf("%w: %w", ErrSetup, err)
		}
		defer terminal.close()
		c.Rows, c.Cols = terminal.size()
	}

	// The signal of a parent's death follows the thread that cloned, so this
	// one must stay until the sandbox has ended.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("%w: %w", ErrSetup, err)
	}
	theirs.Close()
	last := make(chan message, 1)
	go func() { last <- converse(control, c, terminal) }()
	waitErr := cmd.Wait()
	m := <-last
	switch {
	case ctx.Err() != nil && !(m.Ended && m.Code == 0):
		return context.Cause(ctx)
	case m.Error != "":
		return fmt.Errorf("%w: %s", ErrSetup, m.Error)
	case !m.Ended && waitErr != nil:
		return fmt.Errorf("the sandbox was killed from outside: %w", waitErr)
	case !m.Ended:
		return errors.New("the sandbox ended without a word")
	case m.Signal != 0:
		return &ExitError{Code: -1, Signal: syscall.Signal(m.Signal)}
	case m.Code != 0:
		return &ExitError{Code: m.Code}
	}
	return nil
}

// converse sends the configuration and returns the last message.
func converse(control *net.UnixConn, c config, terminal *relay) message {
	if err := json.NewEncoder(control).Encode(c); err != nil {
		return message{Error: "the sandbox does not listen: " + err.Error()}
	}
	var (
		last    message
		pending []byte
		buf     = make([]byte, 4096)
		oob     = make([]byte, unix.CmsgSpace(4))
	)
	for {
		n, oobn, _, _, err := control.ReadMsgUnix(buf, oob)
		if oobn > 0 && terminal != nil {
			if fd := receivedFile(oob[:oobn]); fd >= 0 {
				terminal.start(fd)
			}
		}
		pending = append(pending, buf[:max(n, 0)]...)
		for {
			line, rest, found := bytes.Cut(pending, []byte("\n"))
			if !found {
				break
			}
			pending = rest
			var m message
			if json.Unmarshal(line, &m) == nil {
				last = m
			}
		}
		if err != nil || n <= 0 {
			return last
		}
	}
}

func receivedFile(oob []byte) int {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return -1
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) == 0 {
		return -1
	}
	unix.CloseOnExec(fds[0])
	return fds[0]
}

// Environment is what every program in a sandbox starts with: a plain PATH
// and locale, no questions from debconf, services that stay off, and the
// host's proxies.
func Environment() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/root",
		"LANG=C.UTF-8",
		"LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive",
		"DEBCONF_NONINTERACTIVE_SEEN=true",
		// No service is started, and "systemctl start" is not an error.
		"SYSTEMD_OFFLINE=1",
		// A nested subvolume would be missing from every snapshot.
		"SYSTEMD_TMPFILES_FORCE_SUBVOL=0",
	}
	for _, name := range []string{"http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if value := os.Getenv(name); value != "" {
			env = append(env, name+"="+value)
		}
	}
	return env
}
