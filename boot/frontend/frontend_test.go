package frontend

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"sidus/boot/node"
	"sidus/boot/protocol"
	"sidus/export/storm"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test must run as root")
		}
		t.Skip("SKIPPED: NFS clients need ports below 1024: needs root")
	}
}

// freePort returns a port of the loopback interface that nobody has.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).Port
}

// start runs a front end for HTTP and NFS on the loopback interface, until the
// function that it returns is called.
func (s *site) start() (front *Server, stop func()) {
	s.t.Helper()
	ready := make(chan struct{})
	front = &Server{
		Manager: s.Manager, Registry: s.registry, SiteKey: [32]byte{1}, Interface: "lo", Only: []string{HTTP, NFS},
		HTTPPort: freePort(s.t), NFSPort: freePort(s.t), KeepCapabilities: true, Ready: func() { close(ready) }, Log: s.log,
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- front.Run(ctx) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		s.t.Fatal(err)
	}
	return front, func() {
		s.t.Helper()
		cancel()
		if err := <-done; err != nil {
			s.t.Errorf("Run: %v", err)
		}
	}
}

// get fetches a page. The path may be a URL.
func (s *site) get(front *Server, path string) (status int, text string) {
	s.t.Helper()
	if !strings.Contains(path, "://") {
		path = fmt.Sprintf("http://127.0.0.1:%d%s", front.HTTPPort, path)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := client.Get(path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer func() { _ = r.Body.Close() }()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// mounts tells whether the root of an export can be looked at.
func (s *site) mounts(front *Server, path string) error {
	look := &storm.Recording{Objects: []storm.Object{{}}, Calls: []storm.Call{{Proc: "GETATTR", After: -1, Needs: -1}}}
	target := storm.Target{Host: "127.0.0.1", Path: path, NFSPort: front.NFSPort, MountPort: front.NFSPort}
	r, err := storm.Run(s.t.Context(), look, storm.Options{Target: target, Timeout: 20 * time.Second})
	if err == nil && r.Errors > 0 {
		err = fmt.Errorf("%d errors: %v", r.Errors, r.Examples)
	}
	return err
}

// TestRun boots a node by HTTP and NFS, and follows what changes in the
// catalog meanwhile.
func TestRun(t *testing.T) {
	needRoot(t)
	s := newSite(t)
	s.network("here", "127.0.0.0/8")
	one, two := s.tree("one", bootable), s.tree("two", bootable)
	front, stop := s.start()
	stopped := false
	defer func() {
		if !stopped {
			stop()
		}
	}()

	// Nothing is promoted: the node is told so, and tries again.
	const script = "/v1/ipxe/52-54-00-00-00-01"
	if status, text := s.get(front, script); status != http.StatusOK || strings.Contains(text, "sidus.session=") || !strings.Contains(text, "default") {
		t.Errorf("without a channel: %d %s", status, text)
	}
	s.promote(one.ID, "default")
	_, text := s.get(front, script)
	for _, want := range []string{"sidus.session=", string(one.ID), fmt.Sprintf("127.0.0.1:%d", front.HTTPPort)} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	for file, want := range map[protocol.BootFile]string{protocol.Kernel: "the kernel", protocol.Initrd: "the initrd"} {
		if status, got := s.get(front, "/v1/boot/"+string(one.ID)+"/"+string(file)); status != http.StatusOK || got != want {
			t.Errorf("%s: %d %q", file, status, got)
		}
	}
	for _, path := range []string{"/channel/default", "/snapshot/" + string(one.ID), "/snapshot/" + string(two.ID)} {
		if err := s.mounts(front, path); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := s.mounts(front, "/channel/none"); err == nil {
		t.Error("a channel that is not there was mounted")
	}
	if _, text := s.get(front, "/metrics"); !strings.Contains(text, `sidus_nfs_calls_total{procedure="GETATTR"} 3`) {
		t.Errorf("metrics: %.2000s", text)
	}
	// What is deleted is let go, though nobody asks for it.
	if n := s.store.Mounts(); n != 2 {
		t.Errorf("%d mounts, not those of two snapshots", n)
	}
	if err := s.DeleteTree(t.Context(), "two", false); err != nil {
		t.Fatal(err)
	}
	for limit := time.Now().Add(20 * time.Second); s.store.Mounts() != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("%d mounts: the snapshot was not let go", s.store.Mounts())
		}
	}
	if err := s.mounts(front, "/snapshot/"+string(two.ID)); err == nil {
		t.Error("a deleted snapshot was mounted")
	}

	// A port that is taken is found out at once, and the way out is told.
	other := &Server{Manager: s.Manager, Registry: s.registry, Interface: "lo", Only: []string{HTTP, NFS}, HTTPPort: freePort(t),
		NFSPort: front.NFSPort, KeepCapabilities: true, Log: s.log}
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "--nfs-port") {
		t.Errorf("a second front end on the same port: %v", err)
	}
	other.NFSPort, other.HTTPPort = freePort(t), front.HTTPPort
	if err := other.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "--http-port") {
		t.Errorf("a second front end on the same port: %v", err)
	}
	stop()
	stopped = true
	s.noMounts()

	// Sessions outlive it: the same node asks again, and goes on.
	again, stop := s.start()
	defer stop()
	_, text2 := s.get(again, script)
	session := func(text string) string { _, after, _ := strings.Cut(text, "sidus.session="); return after[:32] }
	if session(text) != session(text2) {
		t.Errorf("the session was %s and is %s", session(text), session(text2))
	}
}

func TestUnknownEngine(t *testing.T) {
	s := newSite(t)
	front := &Server{Manager: s.Manager, Registry: s.registry, Interface: "lo", Only: []string{NFS}, Engine: node.Engine("other"), KeepCapabilities: true, Log: s.log}
	if err := front.Run(t.Context()); err == nil || !strings.Contains(err.Error(), `no NFS engine "other"`) {
		t.Error(err)
	}
}

func TestDescribe(t *testing.T) {
	for want, s := range map[string]*Server{
		"NFS port 2049, HTTP port 8080, TFTP, PORTMAP, DHCP": {Engine: node.EngineOwn},
		"NFS by the kernel, HTTP port 8080, TFTP, DHCP":      {Engine: node.EngineKernel},
		"HTTP port 8080, DHCP":                               {Only: []string{DHCP, HTTP}},
	} {
		s.HTTPPort, s.NFSPort = DefaultHTTPPort, DefaultNFSPort
		if got := s.describe(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}
