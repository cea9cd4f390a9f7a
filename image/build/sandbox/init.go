package sandbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The hidden first arguments: the binary as it was started, and the same
// binary executed from its read-only mount.
const (
	initArgument   = "sandbox-init"
	sealedArgument = "sandbox-init-sealed"
	controlFD      = 3
)

// Main takes over if this process was started by Run; otherwise it returns at
// once. Call it first thing in main, before flags are parsed.
func Main() {
	if len(os.Args) != 2 || os.Args[0] != "sidus-sandbox" {
		return
	}
	switch os.Args[1] {
	case initArgument:
		text, _ := json.Marshal(message{Error: execSealed().Error()})
		_, _ = unix.Write(controlFD, append(text, '\n'))
		os.Exit(125)
	case sealedArgument:
		os.Exit(initMain())
	}
}

// execSealed executes this binary again in a form that cannot be written to:
// from a read-only mount of it that is attached nowhere, or, where its file
// has been replaced since it was started, from a sealed copy in memory.
func execSealed() error {
	if os.Getpid() != 1 {
		return errors.New("not the first process of a PID namespace")
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	fd, err := sealedBinary()
	if err != nil {
		return err
	}
	return unix.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), []string{"sidus-sandbox", sealedArgument}, os.Environ())
}

func sealedBinary() (int, error) {
	// /proc/self/exe belongs to the mount namespace in which the binary was
	// started; only a path leads to the same file in this one.
	if name, err := os.Readlink("/proc/self/exe"); err == nil {
		running, err1 := os.Stat("/proc/self/exe")
		onDisk, err2 := os.Stat(name)
		if err1 == nil && err2 == nil && os.SameFile(running, onDisk) {
			return cloneMount(name, unix.MOUNT_ATTR_RDONLY)
		}
	}
	in, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer in.Close()
	fd, err := unix.MemfdCreate("sidus", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, fmt.Errorf("copy of the binary: %w", err)
	}
	// A descriptor that stays open for writing would forbid the execution.
	out := os.NewFile(uintptr(fd), "sidus")
	if _, err := io.Copy(out, in); err != nil {
		return -1, fmt.Errorf("copy of the binary: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return -1, fmt.Errorf("seal the copy of the binary: %w", err)
	}
	sealed, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("copy of the binary: %w", err)
	}
	out.Close()
	return sealed, nil
}

// initMain is the life of the first process.
func initMain() int {
	// No signal from inside or from a terminal ends it; the handlers are not
	// inherited by the program.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP,
		syscall.SIGQUIT, syscall.SIGPIPE, syscall.SIGTTOU, syscall.SIGTTIN, syscall.SIGUSR1, syscall.SIGUSR2)
	unix.CloseOnExec(controlFD)
	file := os.NewFile(controlFD, "control")
	generic, err := net.FileConn(file)
	file.Close()
	if err != nil {
		return 125
	}
	control := generic.(*net.UnixConn)
	say := func(m message, oob []byte) {
		text, _ := json.Marshal(m)
		_, _, _ = control.WriteMsgUnix(append(text, '\n'), oob, nil)
	}
	var c config
	if err := json.NewDecoder(control).Decode(&c); err != nil {
		say(message{Error: "configuration: " + err.Error()}, nil)
		return 125
	}
	// The other end is gone when Run's process is.
	go func() {
		_, _ = io.Copy(io.Discard, control)
		os.Exit(137)
	}()
	if err := enter(&c); err != nil {
		say(message{Error: err.Error()}, nil)
		return 125
	}
	pid, master, err := start(&c)
	if err != nil {
		say(message{Error: err.Error()}, nil)
		return 125
	}
	if master >= 0 {
		say(message{Started: true}, unix.UnixRights(master))
		unix.Close(master)
	} else {
		say(message{Started: true}, nil)
	}
	status := reap(pid)
	m := message{Ended: true, Code: status.ExitStatus()}
	if status.Signaled() {
		m.Code, m.Signal = 0, int(status.Signal())
	}
	say(m, nil)
	return 0
}

// reap collects every child until the one that matters has ended.
func reap(pid int) syscall.WaitStatus {
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, 0, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1 << 8
		case got == pid && (status.Exited() || status.Signaled()):
			return status
		}
	}
}

// start starts the program and returns its process and, with Terminal, the
// master side of its terminal (otherwise -1).
func start(c *config) (pid, master int, err error) {
	master = -1
	for _, entry := range c.Env {
		if value, found := strings.CutPrefix(entry, "PATH="); found {
			os.Setenv("PATH", value)
		}
	}
	if err := os.Chdir(c.Dir); err != nil {
		return 0, -1, err
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return 0, -1, fmt.Errorf("%s: not found in the tree", c.Args[0])
	}
	attr := &syscall.ProcAttr{Env: c.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true}}
	if c.Terminal {
		var slave *os.File
		if master, slave, err = openTerminal(c); err != nil {
			return 0, -1, err
		}
		defer slave.Close()
		fd := slave.Fd()
		attr.Files = []uintptr{fd, fd, fd}
		attr.Sys.Setctty, attr.Sys.Ctty = true, 0
	}
	keep := treeCapabilities
	if c.Root == "" {
		keep = hostCapabilities
	}
	runtime.LockOSThread() // and never unlocked: the thread has lost its capabilities
	if c.NoSync {
		if err := ignoreSync(); err != nil {
			return 0, -1, err
		}
	}
	if err := limitCapabilities(keep); err != nil {
		return 0, -1, err
	}
	pid, err = syscall.ForkExec(path, c.Args, attr)
	if err != nil {
		return 0, -1, fmt.Errorf("%s: %w", c.Args[0], err)
	}
	return pid, master, nil
}
