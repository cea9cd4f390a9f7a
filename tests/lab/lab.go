package lab

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/sirupsen/logrus"
)

// ErrNotRoot is returned by New if the caller is not root.
var ErrNotRoot = errors.New("a lab needs root: it makes network namespaces, bridges and tap devices")

// Options says how to make a lab. The zero value is good.
type Options struct {
	// Dir receives the consoles of machines and the output of processes. It
	// must exist. "" means a temporary directory, which Close removes.
	Dir string
	// Log is told what is started and ended; nil discards that.
	Log logrus.FieldLogger
}

// A Lab is a network namespace and what runs in it. Its methods may be called
// from any goroutine.
type Lab struct {
	name   string
	dir    string
	ownDir bool
	log    logrus.FieldLogger
	thread *thread

	mu       sync.Mutex
	closed   bool
	bridges  map[string]*Bridge
	taps     int
	machines int
	closers  []io.Closer
	guardEnd func()
}

// New makes an empty lab: a namespace with its loopback device up. The error
// wraps ErrNotRoot if the caller is not root.
func New(opts Options) (l *Lab, err error) {
	if os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return nil, err
	}
	l = &Lab{
		name:    "sidus-" + hex.EncodeToString(random[:]),
		dir:     opts.Dir,
		log:     opts.Log,
		bridges: map[string]*Bridge{},
	}
	if l.log == nil {
		silent := logrus.New()
		silent.SetOutput(io.Discard)
		l.log = silent
	}
	if l.dir == "" {
		if l.dir, err = os.MkdirTemp("", l.name+"-"); err != nil {
			return nil, err
		}
		l.ownDir = true
	}
	defer func() {
		if err != nil {
			_ = l.Close()
			l = nil
		}
	}()
	if err = l.startGuard(); err != nil {
		return l, err
	}
	if err = hostRun("ip", "netns", "add", l.name); err != nil {
		return l, err
	}
	if l.thread, err = newThread(filepath.Join("/run/netns", l.name)); err != nil {
		return l, err
	}
	if err = l.Do(func() error {
		// Router solicitations and duplicate address detection are only noise here.
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/all/disable_ipv6", []byte("1"), 0)
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
		return nil
	}); err != nil {
		return l, err
	}
	return l, l.ip("link", "set", "lo", "up")
}

// Name is the name of the namespace, as "ip netns" knows it.
func (l *Lab) Name() string { return l.name }

// Dir is the directory with the consoles and the output of processes.
func (l *Lab) Dir() string { return l.dir }

// Close ends all that runs in the lab and deletes the namespace. It returns
// the first error. A second call does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	closers := l.closers
	l.closers = nil
	l.mu.Unlock()

	var first error
	keep := func(err error) {
		if err != nil && first == nil {
			first = err
		}
	}
	for i := len(closers) - 1; i >= 0; i-- {
		keep(closers[i].Close())
	}
	path := filepath.Join("/run/netns", l.name)
	if _, err := os.Stat(path); err == nil {
		killInside(path)
		if l.thread != nil {
			l.thread.close()
		}
		keep(hostRun("ip", "netns", "delete", l.name))
	}
	if l.guardEnd != nil {
		l.guardEnd()
	}
	if l.ownDir {
		keep(os.RemoveAll(l.dir))
	}
	return first
}

// own registers what Close has to close. It fails if the lab is closed.
func (l *Lab) own(c io.Closer) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("lab %s: closed", l.name)
	}
	l.closers = append(l.closers, c)
	return nil
}

// startGuard starts the shell that cleans up if this program ends without
// Close. It learns of the end by the end of its standard input, and it has a
// session of its own, so that a terminal's SIGINT does not reach it.
func (l *Lab) startGuard() error {
	const script = `trap "" INT TERM HUP
read -r _
for p in $(ip netns pids "$1" 2>/dev/null); do kill -9 "$p"; done
ip netns delete "$1" 2>/dev/null
[ -z "$2" ] || rm -rf -- "$2"`
	dir := ""
	if l.ownDir {
		dir = l.dir
	}
	cmd := exec.Command("sh", "-c", script, "sidus-lab-guard", l.name, dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("lab %s: the guard does not start: %w", l.name, err)
	}
	l.guardEnd = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	return nil
}

// Listen is net.Listen inside the namespace. The address must be numeric.
// Close closes the listener, if it is still open.
func (l *Lab) Listen(network, address string) (net.Listener, error) {
	var listener net.Listener
	err := l.Do(func() (err error) {
		listener, err = net.Listen(network, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return listener, l.own(quiet{listener})
}

// ListenPacket is net.ListenPacket inside the namespace. The address must be
// numeric. Close closes the connection, if it is still open.
func (l *Lab) ListenPacket(network, address string) (net.PacketConn, error) {
	var conn net.PacketConn
	err := l.Do(func() (err error) {
		conn, err = net.ListenPacket(network, address)
		return err
	})
	if err != nil {
		return nil, err
	}
	return conn, l.own(quiet{conn})
}

// DialContext connects from inside the namespace; it fits into
// http.Transport. The address must be numeric.
func (l *Lab) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := l.Do(func() (err error) {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// quiet closes what may have been closed before.
type quiet struct{ io.Closer }

func (q quiet) Close() error {
	if err := q.Closer.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// hostRun runs a program outside the namespace.
func hostRun(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return nil
}

// ip runs "ip" for the namespace.
func (l *Lab) ip(args ...string) error {
	return hostRun("ip", append([]string{"-netns", l.name}, args...)...)
}
