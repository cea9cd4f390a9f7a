package dhcp

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"sidus/boot/pxe"
)

// wire is two network namespaces with a cable between them.
type wire struct {
	t              *testing.T
	server, client string // names of the namespaces
	dir            string
}

const (
	serverIf = "sidus0"
	clientIf = "sidus1"
)

func newWire(t *testing.T) *wire {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("SKIPPED: network namespaces need root")
	}
	suffix := fmt.Sprintf("%d-%d", os.Getpid(), time.Now().UnixNano()%1_000_000)
	w := &wire{t: t, server: "sidus-s" + suffix, client: "sidus-c" + suffix, dir: t.TempDir()}
	for _, ns := range []string{w.server, w.client} {
		w.run("ip", "netns", "add", ns)
		t.Cleanup(func() { w.run("ip", "netns", "delete", ns) })
	}
	w.run("ip", "link", "add", serverIf, "netns", w.server, "type", "veth", "peer", "name", clientIf, "netns", w.client)
	w.run("ip", "-n", w.client, "link", "set", clientIf, "address", macA.String(), "up")
	w.run("ip", "-n", w.server, "address", "add", "10.0.0.1/24", "dev", serverIf)
	w.run("ip", "-n", w.server, "link", "set", serverIf, "up")
	return w
}

func (w *wire) run(name string, args ...string) string {
	w.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// need skips a test without a program, or fails it under CI.
func (w *wire) need(program string) {
	w.t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		if os.Getenv("CI") == "true" {
			w.t.Fatal(err)
		}
		w.t.Skipf("SKIPPED: %v", err)
	}
}

func (w *wire) inServer(f func()) { w.in(w.server, f) }

// in calls f on a thread that is in a namespace. The sockets that f opens stay
// there.
func (w *wire) in(ns string, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine, and no other
		// goroutine comes to run in the namespace.
		runtime.LockOSThread()
		fd, err := unix.Open("/run/netns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Setns(fd, unix.CLONE_NEWNET)
			_ = unix.Close(fd)
		}
		if err != nil {
			w.t.Errorf("entering the namespace: %v", err)
			return
		}
		f()
	}()
	<-done
}

// prober probes on the wire: goroutines of a server leave the namespace.
type prober struct{ *wire }

func (p prober) Probe(ctx context.Context, subnet netip.Prefix, a netip.Addr) (owner net.HardwareAddr, used bool, err error) {
	p.inServer(func() { owner, used, err = WireProber{Interface: serverIf}.Probe(ctx, subnet, a) })
	return owner, used, err
}

// start starts a server; the returned function stops it.
func (w *wire) start(d Directory, leases LeaseStore) (s *Server, stop func() error) {
	w.t.Helper()
	log := logrus.New()
	log.SetOutput(w.t.Output())
	s = &Server{Interface: serverIf, Directory: d, Leases: leases, Prober: prober{w}, Log: log, FindWait: time.Second}
	s.find = func(ctx context.Context, ifname string, wait time.Duration) (found netip.Addr, err error) {
		w.inServer(func() { found, err = FindServer(ctx, ifname, wait) })
		return found, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready := make(chan struct{})
	log.AddHook(readyHook{ready})
	done := make(chan error, 1)
	go w.inServer(func() { done <- s.Serve(ctx) })
	select {
	case <-ready:
	case err := <-done:
		cancel()
		return s, func() error { return err }
	}
	return s, func() error { cancel(); return <-done }
}

type readyHook struct{ ready chan struct{} }

func (readyHook) Levels() []logrus.Level { return logrus.AllLevels }
func (h readyHook) Fire(e *logrus.Entry) error {
	if e.Message == "dhcp: answering" {
		close(h.ready)
	}
	return nil
}

// udhcpc asks for an address as busybox does, and returns what it got.
func (w *wire) udhcpc(args ...string) (map[string]string, error) {
	w.t.Helper()
	w.need("busybox")
	script, got := filepath.Join(w.dir, "script"), filepath.Join(w.dir, "got")
	_ = os.Remove(got)
	if err := os.WriteFile(script, []byte("#!/bin/sh\n[ \"$1\" = bound ] && env > "+got+"\nexit 0\n"), 0o755); err != nil {
		w.t.Fatal(err)
	}
	out, err := exec.Command("ip", append([]string{"netns", "exec", w.client, "busybox", "udhcpc", "-i", clientIf, "-n", "-q", "-f", "-t", "3", "-T", "2", "-s", script}, args...)...).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	raw, err := os.ReadFile(got)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	env := map[string]string{}
	for line := range strings.Lines(string(raw)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		env[k] = v
	}
	return env, nil
}

func TestFullOnTheWire(t *testing.T) {
	w := newWire(t)
	d := newWorld(Full)
	d.nodes[macA.String()] = Node{Name: "node1"}
	var leases Memory
	s, stop := w.start(d, &leases)
	got, err := w.udhcpc("-x", "hostname:sink")
	if err != nil {
		t.Fatal(err)
	}
	for k, want := range map[string]string{
		"ip": "10.0.0.100", "subnet": "255.255.255.0", "router": "10.0.0.254", "dns": "10.0.0.253 9.9.9.9", "domain": "lab.example",
		"hostname": "node1", "lease": "43200", "serverid": "10.0.0.1",
	} {
		if got[k] != want {
			t.Errorf("%s: got %q, want %q", k, got[k], want)
		}
	}
	if got["boot_file"] != "" {
		t.Errorf("a plain client was told to boot %s", got["boot_file"])
	}
	if got, err = w.udhcpc("-V", "PXEClient:Arch:00000:UNDI:002001", "-x", "0x5d:0000"); err != nil || got["boot_file"] != "lpxelinux.0" || got["siaddr"] != "10.0.0.1" || got["ip"] != "10.0.0.100" {
		t.Errorf("as firmware: %v, %v", got, err)
	}
	if st := s.Stats(); st.Acks != 2 || st.Malformed != 0 {
		t.Errorf("%+v", st)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	// The lease survives a restart, and another client identifier.
	_, stop = w.start(d, &leases)
	if got, err = w.udhcpc("-x", "0x3d:ff0102030405"); err != nil || got["ip"] != "10.0.0.100" {
		t.Errorf("after a restart: %v, %v", got, err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestProxyGivesNoAddress(t *testing.T) {
	w := newWire(t)
	s, stop := w.start(newWorld(Proxy), nil)
	if got, err := w.udhcpc(); err == nil {
		t.Errorf("a proxy gave an address: %v", got)
	}
	if got, err := w.udhcpc("-V", "PXEClient:Arch:00000:UNDI:002001"); err == nil && got["ip"] != "" && got["ip"] != "0.0.0.0" {
		t.Errorf("a proxy gave firmware an address: %v", got)
	}
	if st := s.Stats(); st.Offers == 0 {
		t.Errorf("%+v", st)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// dnsmasq starts another DHCP server at the client's end of the cable.
func (w *wire) dnsmasq() {
	w.t.Helper()
	w.need("dnsmasq")
	w.run("ip", "-n", w.client, "address", "add", "10.0.0.9/24", "dev", clientIf)
	c := exec.Command("ip", "netns", "exec", w.client, "dnsmasq", "--keep-in-foreground", "--port=0", "--conf-file=/dev/null", "--no-ping",
		"--interface="+clientIf, "--bind-dynamic", "--log-facility=-", "--user=root", "--dhcp-leasefile="+filepath.Join(w.dir, "leases"), "--dhcp-range=10.0.0.20,10.0.0.30,1h")
	out, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	buf, said := make([]byte, 4096), ""
	for !strings.Contains(said, "IP range") {
		n, err := out.Read(buf)
		if err != nil {
			w.t.Fatalf("dnsmasq: %v: %s", err, said)
		}
		said += string(buf[:n])
	}
	go func() {
		for {
			if _, err := out.Read(buf); err != nil {
				return
			}
		}
	}()
}

func TestFullRefusesBesideAnotherServer(t *testing.T) {
	w := newWire(t)
	w.dnsmasq()
	_, stop := w.start(newWorld(Full), &Memory{})
	err := stop()
	if !errors.Is(err, ErrOtherServer) || !strings.Contains(err.Error(), "10.0.0.9") {
		t.Errorf("got %v", err)
	}
	// A proxy may stand beside it.
	_, stop = w.start(newWorld(Proxy), nil)
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// A network that is put into full mode under a running server gets addresses
// once no other server was found.
func TestFullWhileRunning(t *testing.T) {
	for _, beside := range []bool{false, true} {
		w := newWire(t)
		d := newWorld(Proxy)
		s, stop := w.start(d, &Memory{})
		if beside {
			w.dnsmasq()
		}
		d.mu.Lock()
		d.net.Mode = Full
		d.mu.Unlock()
		// dnsmasq, in the client's own namespace, does not hear it.
		got, err := w.udhcpc("-t", "6", "-T", "1")
		if ours := got["serverid"] == "10.0.0.1"; ours == beside {
			t.Errorf("another server: %v; got %v, %v", beside, got, err)
		}
		if st := s.Stats(); beside && st.Offers != 0 {
			t.Errorf("beside another server: %+v", st)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
}

func TestPortTaken(t *testing.T) {
	w := newWire(t)
	_, stop := w.start(newWorld(Full), &Memory{})
	_, second := w.start(newWorld(Full), &Memory{})
	if err := second(); !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), "67") {
		t.Errorf("got %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func TestWireProber(t *testing.T) {
	w := newWire(t)
	w.run("ip", "-n", w.client, "address", "add", "10.0.0.77/24", "dev", clientIf)
	w.inServer(func() {
		p := WireProber{Interface: serverIf}
		subnet := netip.MustParsePrefix("10.0.0.0/24")
		owner, used, err := p.Probe(t.Context(), subnet, addr("10.0.0.77"))
		if err != nil || !used || owner.String() != macA.String() {
			t.Errorf("used: %v, %v, %v", owner, used, err)
		}
		begun := time.Now()
		if owner, used, err = p.Probe(t.Context(), subnet, addr("10.0.0.78")); err != nil || used {
			t.Errorf("free: %v, %v, %v", owner, used, err)
		}
		if d := time.Since(begun); d < 400*time.Millisecond || d > 2*time.Second {
			t.Errorf("an address was taken for free after %v", d)
		}
	})
	// Behind a relay there is no ARP.
	w.run("ip", "-n", w.client, "address", "add", "10.1.0.1/24", "dev", clientIf)
	w.run("ip", "-n", w.server, "route", "add", "10.1.0.0/24", "via", "10.0.0.77")
	w.inServer(func() {
		p := WireProber{Interface: serverIf}
		subnet := netip.MustParsePrefix("10.1.0.0/24")
		if _, used, err := p.Probe(t.Context(), subnet, addr("10.1.0.1")); err != nil || !used {
			t.Errorf("used, behind a relay: %v, %v", used, err)
		}
	})
}

// TestGarbageOnTheWire sends what is no DHCP to a server that must go on.
func TestGarbageOnTheWire(t *testing.T) {
	w := newWire(t)
	d := newWorld(Full)
	d.net.Last = addr("10.0.0.250") // some of it is good enough to be offered an address
	s, stop := w.start(d, &Memory{})
	w.run("ip", "-n", w.client, "address", "add", "10.0.0.9/24", "dev", clientIf)
	w.in(w.client, func() {
		conn, err := net.Dial("udp4", "10.0.0.1:67")
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		dice := rand.New(rand.NewPCG(1, 2))
		whole := message(dhcpv4.MessageTypeDiscover, macB).ToBytes()
		for range 200 {
			p := append([]byte(nil), whole[:dice.IntN(len(whole))]...)
			for range dice.IntN(20) {
				if len(p) > 0 {
					p[dice.IntN(len(p))] = byte(dice.Uint32())
				}
			}
			if _, err := conn.Write(p); err != nil {
				t.Error(err)
			}
		}
	})
	w.run("ip", "-n", w.client, "address", "flush", "dev", clientIf)
	if got, err := w.udhcpc(); err != nil {
		t.Errorf("afterwards: %v, %v", got, err)
	}
	if st := s.Stats(); st.Malformed == 0 {
		t.Errorf("%+v", st)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

var _ pxe.Stepper = (*world)(nil)
