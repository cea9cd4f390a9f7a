//go:build linux && amd64

package commands

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tracer runs a command and kills it with SIGKILL at one of the system calls
// that change something, before the kernel carries that call out: what is
// there then is what a power cut of the process at that instant leaves.
// (strace can inject a signal, too, but counts the calls of each thread by
// itself, and a Go program's goroutines move between threads.)
type tracer struct {
	at   int  // kill at this call, counted from 1; 0: never
	each bool // count each write; else a row of writes is one

	calls  int    // that were counted
	killed string // the name of the call at which it was killed; "" if it was not
	last   uint64
}

// steps are the calls that change something, or begin or end something.
var steps = map[uint64]string{
	unix.SYS_PWRITE64: "pwrite64", unix.SYS_WRITE: "write", unix.SYS_WRITEV: "writev", unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync",
	unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FALLOCATE: "fallocate", unix.SYS_COPY_FILE_RANGE: "copy_file_range", unix.SYS_IOCTL: "ioctl",
	unix.SYS_RENAME: "rename", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINK: "unlink", unix.SYS_UNLINKAT: "unlinkat",
	unix.SYS_LINK: "link", unix.SYS_LINKAT: "linkat", unix.SYS_SYMLINKAT: "symlinkat", unix.SYS_MKDIR: "mkdir", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_RMDIR: "rmdir", unix.SYS_MOUNT: "mount", unix.SYS_UMOUNT2: "umount2", unix.SYS_OPEN: "open", unix.SYS_OPENAT: "openat",
	unix.SYS_FCHMOD: "fchmod", unix.SYS_FCHMODAT: "fchmodat", unix.SYS_FCHOWN: "fchown", unix.SYS_FCHOWNAT: "fchownat", unix.SYS_FLOCK: "flock",
	unix.SYS_CLONE: "clone", unix.SYS_CLONE3: "clone3", unix.SYS_WAITID: "waitid", unix.SYS_WAIT4: "wait4", unix.SYS_SYNCFS: "syncfs",
}

func (t *tracer) counts(call uint64, args [6]uint64) bool {
	switch call {
	case unix.SYS_OPEN:
		return args[1]&unix.O_CREAT != 0
	case unix.SYS_OPENAT:
		return args[2]&(unix.O_CREAT|unix.O_TMPFILE&^unix.O_DIRECTORY) != 0
	case unix.SYS_IOCTL:
		kind := args[1] >> 8 & 0xff // _IOC_TYPE of ioctl.h
		return kind == 0x94 || kind == 0x4c || kind == 'f'
	case unix.SYS_CLONE:
		return args[0]&unix.CLONE_VFORK != 0 // a program, not a thread
	case unix.SYS_WRITE:
		if args[0] <= 2 {
			return false
		}
		fallthrough
	case unix.SYS_PWRITE64:
		return t.each || t.last != unix.SYS_PWRITE64 && t.last != unix.SYS_WRITE
	}
	return steps[call] != ""
}

// run runs the command to its end, or until it is killed, with its standard
// input from a file. Programs that it
// starts are not traced.
func (t *tracer) run(dir, stdin string, env, args []string) (r result, err error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	var files [2]*os.File
	for i, name := range []string{"traced.out", "traced.err"} {
		if files[i], err = os.Create(filepath.Join(dir, name)); err != nil {
			return r, err
		}
		defer files[i].Close()
	}
	input, err := os.Open(stdin)
	if err != nil {
		return r, err
	}
	defer input.Close()
	process, err := os.StartProcess(program, append([]string{program}, args...), &os.ProcAttr{
		Env: env, Files: []*os.File{input, files[0], files[1]}, Sys: &syscall.SysProcAttr{Ptrace: true, Setpgid: true},
	})
	if err != nil {
		return r, err
	}
	defer func() { _ = process.Release() }()
	status, err := t.follow(process.Pid)
	if err != nil {
		_ = process.Kill()
		return r, err
	}
	r.status = status.ExitStatus()
	for i, text := range []*string{&r.stdout, &r.stderr} {
		b, err := os.ReadFile(files[i].Name())
		if err != nil {
			return r, err
		}
		*text = string(b)
	}
	return r, nil
}

// follow lets all threads of a stopped process run from call to call.
func (t *tracer) follow(pid int) (status syscall.WaitStatus, err error) {
	// Its threads are its process group. This thread may also be the parent of
	// programs that other goroutines started before: those are not waited for
	// here, whoever started them does it.
	const wait = syscall.WALL | syscall.WNOTHREAD
	if _, err := syscall.Wait4(pid, &status, wait, nil); err != nil {
		return status, fmt.Errorf("wait for the first stop: %w", err)
	}
	const options = syscall.PTRACE_O_TRACESYSGOOD | syscall.PTRACE_O_TRACECLONE | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return status, fmt.Errorf("trace: %w", err)
	}
	known := map[int]bool{pid: true}
	next := func(tid, signal int) error {
		if err := syscall.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, syscall.ESRCH) { // it is being killed
			return fmt.Errorf("let thread %d go on: %w", tid, err)
		}
		return nil
	}
	if err := next(pid, 0); err != nil {
		return status, err
	}
	for {
		tid, err := syscall.Wait4(-pid, &status, wait, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil {
			return status, fmt.Errorf("wait for threads: %w", err)
		}
		if status.Exited() || status.Signaled() {
			if tid == pid {
				return status, nil
			}
			continue
		}
		signal := 0
		switch {
		case status.StopSignal() == syscall.SIGTRAP|0x80:
			if t.killed == "" && t.isStep(tid) && t.calls == t.at {
				t.killed = steps[t.last]
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					return status, err
				}
			}
		case status.StopSignal() == syscall.SIGTRAP: // an event
		case status.StopSignal() == syscall.SIGSTOP && !known[tid]: // a new thread
		default:
			signal = int(status.StopSignal())
		}
		known[tid] = true
		if err := next(tid, signal); err != nil {
			return status, err
		}
	}
}

// isStep counts the call at whose entry a thread stands, if it counts.
func (t *tracer) isStep(tid int) bool {
	// struct ptrace_syscall_info of linux/ptrace.h
	var info [88]byte
	const entry = 1
	if _, _, errno := syscall.Syscall6(syscall.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), uintptr(len(info)),
		uintptr(unsafe.Pointer(&info)), 0, 0); errno != 0 || info[0] != entry {
		return false
	}
	var args [6]uint64
	for i := range args {
		args[i] = binary.LittleEndian.Uint64(info[32+8*i:])
	}
	call := binary.LittleEndian.Uint64(info[24:])
	if !t.counts(call, args) {
		return false
	}
	t.last = call
	t.calls++
	return true
}

// cut runs a command and kills it at step n.
func (s *site) cut(n int, each bool, args ...string) (tracer, result) {
	s.t.Helper()
	t := tracer{at: n, each: each}
	stdin := s.stdin
	if stdin == "" {
		stdin = os.DevNull
	}
	r, err := t.run(s.t.TempDir(), stdin, s.command().Env, args)
	if err != nil {
		s.t.Fatalf("trace sidus %s: %v", strings.Join(args, " "), err)
	}
	return t, r
}
