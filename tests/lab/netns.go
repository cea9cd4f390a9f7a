package lab

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A thread is an operating-system thread that stays in the namespace. All
// processes are started from it: their parent death signal is sent when the
// thread that started them ends, which must not be before the program does.
type thread struct {
	path string
	work chan func()
	done chan struct{}
}

func newThread(path string) (*thread, error) {
	t := &thread{path: path, work: make(chan func()), done: make(chan struct{})}
	ready := make(chan error)
	go t.run(ready)
	return t, <-ready
}

func (t *thread) run(ready chan<- error) {
	// Never unlocked: the thread ends with this goroutine, and so no other
	// goroutine ever finds itself in the namespace.
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// The main thread stands for the whole process in /proc and cannot
		// end alone. While this goroutine holds it, another gets another.
		go t.run(ready)
		<-t.done
		return
	}
	defer close(t.done)
	err := enter(t.path)
	ready <- err
	if err != nil {
		return
	}
	for fn := range t.work {
		fn()
	}
}

// do runs fn on the thread, one at a time.
func (t *thread) do(fn func() error) error {
	result := make(chan error, 1)
	t.work <- func() { result <- fn() }
	return <-result
}

func (t *thread) close() {
	close(t.work)
	<-t.done
}

// Do runs fn on a thread that is in the lab's namespace: sockets that fn
// opens belong to the lab. What fn starts in other goroutines does not run in
// the namespace.
func (l *Lab) Do(fn func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			result <- err
			return
		}
		defer home.Close()
		if err := enter(filepath.Join("/run/netns", l.name)); err != nil {
			result <- err
			return
		}
		err = fn()
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// enter moves the calling thread into the network namespace at path.
func enter(path string) error {
	ns, err := os.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the namespace %s: %w", path, err)
	}
	return nil
}

// killInside kills the processes that are still in the namespace at path:
// those that the lab's own processes left behind.
func killInside(path string) {
	var want unix.Stat_t
	if unix.Stat(path, &want) != nil {
		return
	}
	entries, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range entries {
		pid, _ := strconv.Atoi(filepath.Base(p))
		var is unix.Stat_t
		if pid == os.Getpid() || unix.Stat(p+"/ns/net", &is) != nil {
			continue
		}
		if is.Ino == want.Ino && is.Dev == want.Dev {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}
