package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"sidus/export/storm"
)

// server is one of the servers that are compared.
type server struct {
	name             string
	addr, mountAddr  string
	nfsPort, mntPort int
	path             string // of the tree, as it is mounted
	log              string // its log file, if it has one
	command          []string
	environment      []string
	output           bytes.Buffer
	process          *exec.Cmd
	done             chan struct{} // closed when the process has ended
	err              error         // of the process that has ended
}

func ours(dir, tree string) *server {
	return &server{
		name: "sidus", addr: "127.0.0.1:2050", mountAddr: "127.0.0.1:2050", nfsPort: 2050, mntPort: 2050, path: "/channel/default",
		command:     []string{filepath.Join(dir, "nfs.test"), "-test.run=^$"},
		environment: []string{"SIDUS_TEST_SERVE=" + tree, "SIDUS_TEST_SERVE_DIR=" + dir, "SIDUS_TEST_SERVE_ADDR=127.0.0.1:2050"},
	}
}

func ganesha(dir, tree string) (*server, error) {
	text, err := os.ReadFile("tests/bench/ganesha.conf")
	if err != nil {
		return nil, fmt.Errorf("%w: run it from the top of the repository", err)
	}
	config := filepath.Join(dir, "ganesha.conf")
	if err := os.WriteFile(config, []byte(strings.ReplaceAll(string(text), "@TREE@", tree)), 0o644); err != nil {
		return nil, err
	}
	return &server{
		log:  filepath.Join(dir, "ganesha.log"),
		name: "ganesha", addr: "127.0.0.1:2049", mountAddr: "127.0.0.1:20048", nfsPort: 2049, mntPort: 20048, path: tree,
		command: []string{"ganesha.nfsd", "-F", "-L", filepath.Join(dir, "ganesha.log"), "-f", config, "-p", filepath.Join(dir, "ganesha.pid")},
	}, nil
}

// start starts a server and waits until it lets the tree be mounted. limited
// gives it one processor and 1 GB of memory.
func (s *server) start(ctx context.Context, limited bool) error {
	s.output.Reset()
	s.process = exec.CommandContext(ctx, s.command[0], s.command[1:]...)
	s.process.Env = append(os.Environ(), s.environment...)
	s.process.Stdout, s.process.Stderr = &s.output, &s.output
	if limited {
		s.process.Args = append([]string{"sh", "-c", `echo $$ > "$0"/cgroup.procs && exec "$@"`, memoryGroup}, s.command...)
		s.process.Path = "/bin/sh"
	}
	if err := s.process.Start(); err != nil {
		return err
	}
	if limited {
		one := unix.CPUSet{}
		one.Set(0)
		if err := unix.SchedSetaffinity(s.process.Process.Pid, &one); err != nil {
			return err
		}
	}
	s.done = make(chan struct{})
	go func() {
		s.err = s.process.Wait()
		close(s.done)
	}()
	limit := time.Now().Add(30 * time.Second)
	for {
		if s.ready(ctx) {
			return nil
		}
		select {
		case <-s.done:
			return fmt.Errorf("%s has ended: %w: %s", s.name, errors.Join(s.err, errEnded), s.said())
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
		if time.Now().After(limit) {
			return fmt.Errorf("%s does not answer: %s", s.name, s.said())
		}
	}
}

// said is what the server has to say.
func (s *server) said() string {
	text := s.output.String()
	if s.log != "" {
		log, _ := os.ReadFile(s.log) // there may be none
		text += string(log[max(0, len(log)-2000):])
	}
	return text
}

// ready mounts the tree and asks for its root.
func (s *server) ready(ctx context.Context) bool {
	for _, addr := range []string{s.addr, s.mountAddr} {
		conn, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			return false
		}
		_ = conn.Close()
	}
	nothing := &storm.Recording{Objects: []storm.Object{{}}, Calls: []storm.Call{{Proc: "GETATTR", After: -1, Needs: -1}}}
	result, err := storm.Run(ctx, nothing, storm.Options{Target: s.target(""), Timeout: 5 * time.Second})
	return err == nil && result.Errors == 0
}

func (s *server) target(below string) storm.Target {
	return storm.Target{Host: "127.0.0.1", Path: s.path + below, NFSPort: s.nfsPort, MountPort: s.mntPort}
}

var errEnded = errors.New("nobody told it to")

func (s *server) stop() {
	if s.process == nil {
		return
	}
	_ = s.process.Process.Signal(syscall.SIGTERM)
	defer func() { s.process = nil }()
	select {
	case <-s.done:
	case <-time.After(5 * time.Second):
		_ = s.process.Process.Kill()
		<-s.done
	}
}

// memoryGroup is the control group of limited servers, "" if there is none.
var memoryGroup string

// makeMemoryGroup makes a control group with 1 GB of memory.
func makeMemoryGroup() (remove func(), err error) {
	base, limit := "/sys/fs/cgroup", "memory.max"
	if _, err := os.Stat(base + "/cgroup.controllers"); errors.Is(err, os.ErrNotExist) {
		base, limit = base+"/memory", "memory.limit_in_bytes"
	}
	group, err := os.MkdirTemp(base, "sidus-bench-")
	if err != nil {
		return nil, err
	}
	memoryGroup = group
	remove = func() { _ = os.Remove(group) }
	if err := os.WriteFile(filepath.Join(group, limit), []byte("1G"), 0o644); err != nil {
		remove()
		return nil, err
	}
	return remove, nil
}
