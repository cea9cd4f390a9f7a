package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal makes a terminal in the sandbox's own /dev/pts (or, on the
// host's root, in the host's).
func openTerminal(c *config) (master int, slave *os.File, err error) {
	master, err = unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, nil, fmt.Errorf("terminal: %w", err)
	}
	if err = unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(master, unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		unix.Close(master)
		return -1, nil, fmt.Errorf("terminal: %w", err)
	}
	if c.Rows > 0 && c.Cols > 0 {
		_ = unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: c.Rows, Col: c.Cols})
	}
	return master, slave, nil
}

// relay couples the person's terminal to that of the sandbox.
type relay struct {
	in     *os.File
	out    io.Writer
	state  *term.State // of in, before it was made raw; nil if in is no terminal
	resize chan os.Signal
	stop   *os.File // its closing ends the copying of input, which polls the other end
	poll   *os.File
	master *os.File // nil until start
	output sync.WaitGroup
	input  sync.WaitGroup
}

func newRelay(o Options) (*relay, error) {
	in, ok := o.Stdin.(*os.File)
	if !ok || o.Stdout == nil {
		return nil, errors.New("a terminal needs files as input and output")
	}
	r := &relay{in: in, out: o.Stdout}
	var err error
	if r.poll, r.stop, err = os.Pipe(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *relay) size() (rows, cols uint16) {
	size, err := unix.IoctlGetWinsize(int(r.in.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0
	}
	return size.Row, size.Col
}

// start begins to copy. master belongs to the relay from now on.
func (r *relay) start(fd int) {
	master := os.NewFile(uintptr(fd), "terminal")
	r.master = master
	if term.IsTerminal(int(r.in.Fd())) {
		r.state, _ = term.MakeRaw(int(r.in.Fd()))
	}
	r.resize = make(chan os.Signal, 1)
	signal.Notify(r.resize, syscall.SIGWINCH)
	r.input.Add(2)
	go func() {
		defer r.input.Done()
		for range r.resize {
			if rows, cols := r.size(); rows > 0 {
				_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
			}
		}
	}()
	go func() {
		defer r.input.Done()
		r.copyInput(master)
	}()
	r.output.Add(1)
	go func() {
		defer r.output.Done()
		_, _ = io.Copy(r.out, master) // ends with EIO when the last user of the slave is gone
	}()
}

// copyInput copies until the relay stops. It waits with poll, so that no read
// is left behind that would swallow what the person types next.
func (r *relay) copyInput(master *os.File) {
	buf := make([]byte, 4096)
	fds := []unix.PollFd{
		{Fd: int32(r.in.Fd()), Events: unix.POLLIN},
		{Fd: int32(r.poll.Fd()), Events: unix.POLLIN},
	}
	for {
		if _, err := unix.Poll(fds, -1); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return
		}
		if fds[1].Revents != 0 {
			return
		}
		n, err := unix.Read(int(r.in.Fd()), buf)
		if n > 0 {
			if _, err := master.Write(buf[:n]); err != nil {
				return
			}
		}
		if n == 0 && err == nil {
			_, _ = master.Write([]byte{4}) // end of input, as Ctrl-D says it
			return
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// close waits for the last output and gives the person's terminal back. The
// sandbox has ended before, so nothing holds the other side any more.
func (r *relay) close() {
	if r.master != nil {
		r.output.Wait()
		signal.Stop(r.resize)
		close(r.resize)
	}
	r.stop.Close()
	r.input.Wait()
	r.poll.Close()
	if r.master != nil {
		r.master.Close()
	}
	if r.state != nil {
		_ = term.Restore(int(r.in.Fd()), r.state)
	}
}
