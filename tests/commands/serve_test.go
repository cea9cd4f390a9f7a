package commands

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/iana"
	"golang.org/x/sys/unix"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

const (
	serverAddress = "10.77.0.1"
	clientAddress = "10.77.0.2"
)

// wire is two machines on one network: the server's side and a client's.
type wire struct {
	*site
	server, client *lab.Lab
}

// newWire joins two network namespaces by a pair of virtual cards. The site
// has a tree with a boot entry on channel default, and the network.
func newWire(t *testing.T, network ...string) *wire {
	t.Helper()
	w := &wire{site: newSite(t)}
	for _, l := range []**lab.Lab{&w.server, &w.client} {
		*l = labtest.New(t, lab.Options{})
	}
	for _, args := range [][]string{
		{"-netns", w.server.Name(), "link", "add", "lan", "type", "veth", "peer", "name", "eth0", "netns", w.client.Name()},
		{"-netns", w.server.Name(), "address", "add", serverAddress + "/24", "broadcast", "+", "dev", "lan"},
		{"-netns", w.client.Name(), "address", "add", clientAddress + "/24", "broadcast", "+", "dev", "eth0"},
		{"-netns", w.server.Name(), "link", "set", "lan", "up"}, {"-netns", w.client.Name(), "link", "set", "eth0", "up"},
	} {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
	}
	dir := smallTree(t)
	must(t, os.Mkdir(filepath.Join(dir, "boot"), 0o755))
	for _, name := range []string{"vmlinuz-6.1.0-9-amd64", "initrd.img-6.1.0-9-amd64"} {
		must(t, os.WriteFile(filepath.Join(dir, "boot", name), []byte(strings.Repeat(name, 5000)), 0o600))
	}
	must(t, os.WriteFile(filepath.Join(dir, "etc/private"), []byte("not for all\n"), 0o600))
	must(t, os.Chown(filepath.Join(dir, "etc/private"), 1234, 1234))
	w.ok("import", "deb", "--dir", dir)
	w.ok("promote", "deb@1")
	w.ok(append([]string{"network", "add", "lab", "--subnet", "10.77.0.0/24", "--channel", "default"}, network...)...)
	return w
}

// serve starts the front end in the server's namespace.
func (w *wire) serve(args ...string) *lab.Process {
	w.t.Helper()
	p, err := w.server.StartCmd(w.command(append([]string{"serve"}, args...)...))
	must(w.t, err)
	return p
}

// served starts the front end and waits until it listens.
func (w *wire) served(args ...string) *lab.Process {
	w.t.Helper()
	p := w.serve(args...)
	w.says(p, "serving lab on ")
	return p
}

// says waits until a server has said something.
func (w *wire) says(p *lab.Process, words string) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	if _, _, err := p.Output.WaitFor(ctx, 0, regexp.MustCompile(regexp.QuoteMeta(words))); err != nil {
		w.t.Fatalf("serve: %v: %s", err, p.Output)
	}
}

// ended waits for the end of a server that must end by itself.
func (w *wire) ended(p *lab.Process) result {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), 30*time.Second)
	defer cancel()
	err := p.Wait(ctx)
	var exit *exec.ExitError
	switch {
	case err == nil:
		return result{stderr: p.Output.String()}
	case errors.As(err, &exit):
		return result{stderr: p.Output.String(), status: exit.ExitCode()}
	}
	w.t.Fatalf("serve did not end: %v: %s", err, p.Output)
	return result{}
}

// stopped ends a server with SIGTERM: status 0 in under ten seconds.
func (w *wire) stopped(p *lab.Process) {
	w.t.Helper()
	begun := time.Now()
	must(w.t, p.Signal(syscall.SIGTERM))
	if r := w.ended(p); r.status != 0 {
		w.t.Errorf("serve ended with status %d: %s", r.status, r.stderr)
	}
	if took := time.Since(begun); took > 10*time.Second {
		w.t.Errorf("serve took %s to stop", took)
	}
}

// mountNFS mounts an export from a client with a port below 1024.
func (w *wire) mountNFS(path string) (*nfsClient, []byte) {
	w.t.Helper()
	var conn net.Conn
	err := w.client.Do(func() (err error) {
		for port := 1023; port > 600; port-- {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(clientAddress), Port: port}, Timeout: 10 * time.Second}
			if conn, err = dialer.Dial("tcp4", serverAddress+":2049"); !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return err
			}
		}
		return err
	})
	must(w.t, err)
	w.t.Cleanup(func() { _ = conn.Close() })
	c := &nfsClient{conn: conn}
	root, err := c.mount(path)
	if err != nil {
		w.t.Fatalf("mount %s: %v", path, err)
	}
	return c, root
}

// answers checks that each service answers a client.
func (w *wire) answers() {
	w.t.Helper()
	c, root := w.mountNFS("/channel/default")
	etc, err := c.lookup(root, "etc")
	must(w.t, err)
	private, err := c.lookup(etc, "private")
	must(w.t, err)
	if text, err := c.read(private); err != nil || string(text) != "not for all\n" {
		w.t.Errorf("NFS: a file that only its owner may read: %q, %v", text, err)
	}
	web := http.Client{Transport: &http.Transport{DialContext: w.client.DialContext, DisableKeepAlives: true}, Timeout: 20 * time.Second}
	response, err := web.Get("http://" + serverAddress + ":8080/v1/ipxe/52-54-00-00-00-09")
	must(w.t, err)
	text, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || response.StatusCode != http.StatusOK || !strings.HasPrefix(string(text), "#!ipxe") || !strings.Contains(string(text), "/kernel") {
		w.t.Errorf("HTTP: %d, %v: %s", response.StatusCode, err, text)
	}
	w.answersTFTP()
	if offer, err := w.discover(); err != nil || !offer.ServerIPAddr.Equal(net.ParseIP(serverAddress)) {
		w.t.Errorf("DHCP: %v, %v", offer, err)
	}
	conn, err := w.client.DialContext(w.t.Context(), "tcp4", serverAddress+":111")
	must(w.t, err)
	defer conn.Close()
	// PMAPPROC_GETPORT of NFS version 3 over TCP, RFC 1833.
	call := xdr(uint32(7), uint32(0), uint32(2), uint32(100000), uint32(2), uint32(3), uint64(0), uint64(0), uint32(nfsProgram), uint32(3), uint32(6), uint32(0))
	_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := conn.Write(append(xdr(1<<31|uint32(len(call))), call...)); err != nil {
		w.t.Error(err)
	}
	reply := make([]byte, 32)
	if _, err := io.ReadFull(conn, reply); err != nil {
		w.t.Errorf("portmap: %v", err)
	} else if port := (&unxdr{b: reply[28:]}).u32(); port != 2049 {
		w.t.Errorf("portmap: NFS is at port %d", port)
	}
}

func (w *wire) packetConn(address string) net.PacketConn {
	w.t.Helper()
	conn, err := w.client.ListenPacket("udp4", address)
	must(w.t, err)
	return conn
}

func (w *wire) answersTFTP() {
	w.t.Helper()
	conn := w.packetConn(clientAddress + ":0")
	defer conn.Close()
	request := "\x00\x01lpxelinux.0\x00octet\x00"
	// After a storm of requests the server may say that it is busy with those
	// that nobody goes on with.
	reply, n, from := make([]byte, 2048), 0, net.Addr(nil)
	var err error
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		must(w.t, conn.SetDeadline(time.Now().Add(10*time.Second)))
		if _, err := conn.WriteTo([]byte(request), net.UDPAddrFromAddrPort(netip.MustParseAddrPort(serverAddress+":69"))); err != nil {
			w.t.Error(err)
		}
		n, from, err = conn.ReadFrom(reply)
		if !strings.Contains(string(reply[:n]), "try again") || time.Now().After(end) {
			break
		}
	}
	if err != nil || n != 516 || reply[1] != 3 {
		w.t.Errorf("TFTP: %d bytes, %v: %.40q", n, err, reply[:n])
		return
	}
	_, _ = conn.WriteTo([]byte("\x00\x05\x00\x00enough\x00"), from) // so that it is not repeated
}

// discover asks for boot information, as PXE firmware does, and returns the
// offer.
func (w *wire) discover() (*dhcpv4.DHCPv4, error) {
	mac := net.HardwareAddr{0x52, 0x54, 0, 0, 0, 9}
	discover, err := dhcpv4.NewDiscovery(mac, dhcpv4.WithBroadcast(true),
		dhcpv4.WithOption(dhcpv4.OptClassIdentifier("PXEClient:Arch:00000:UNDI:002001")),
		dhcpv4.WithOption(dhcpv4.OptClientArch(iana.INTEL_X86PC)),
		dhcpv4.WithGeneric(dhcpv4.GenericOptionCode(94), []byte{1, 2, 1}))
	if err != nil {
		return nil, err
	}
	var conn net.PacketConn
	err = w.client.Do(func() (err error) {
		config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
			var inner error
			err := raw.Control(func(fd uintptr) {
				inner = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
					unix.BindToDevice(int(fd), "eth0"))
			})
			return errors.Join(err, inner)
		}}
		conn, err = config.ListenPacket(context.Background(), "udp4", "0.0.0.0:68")
		return err
	})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	buffer := make([]byte, 4096)
	for range 5 {
		if _, err := conn.WriteTo(discover.ToBytes(), &net.UDPAddr{IP: net.IPv4bcast, Port: 67}); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, _, err := conn.ReadFrom(buffer)
			if err != nil {
				break // ask again
			}
			if offer, err := dhcpv4.FromBytes(buffer[:n]); err == nil && offer.TransactionID == discover.TransactionID {
				return offer, nil
			}
		}
	}
	return nil, errors.New("no offer")
}

// TestServe: all services answer, with few rights, and go on after kill -9.
func TestServe(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.served()
	w.answers()
	w.fewRights(p)
	c, root := w.mountNFS("/channel/default")
	files, err := c.walk(root)
	if err != nil || files < 10 {
		t.Errorf("a walk finds %d files, %v", files, err)
	}
	must(t, p.Kill())
	w.waitAlone()
	w.mended("serve was killed")
	p = w.served()
	again, _ := w.mountNFS("/channel/default")
	if n, err := again.walk(root); err != nil || n != files {
		t.Errorf("with the handle of before: %d files instead of %d, %v", n, files, err)
	}
	w.answers()
	// Commands work beside it, and a promotion counts at once.
	w.setMarker("deb", "second")
	w.ok("snapshot", "deb")
	w.ok("promote", "deb@2")
	d, root := w.mountNFS("/channel/default")
	etc, err := d.lookup(root, "etc")
	must(t, err)
	marker, err := d.lookup(etc, "marker")
	must(t, err)
	if text, err := d.read(marker); err != nil || string(text) != "second\n" {
		t.Errorf("after a promotion: %q, %v", text, err)
	}
	w.stopped(p)
}

// TestStoreAloneIsEnough: the copy of the catalog that the store keeps has the
// networks, the nodes, and what a server that has ended knew of its machines.
func TestStoreAloneIsEnough(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.served()
	w.answers() // a machine boots
	w.stopped(p)
	w.ok("node", "add", "52:54:00:00:00:0a", "--name", "n1")
	all := func() (text string) {
		for _, args := range [][]string{{"network", "list", "--json"}, {"node", "list", "--json"}, {"status", "--json"}} {
			text += w.ok(args...)
		}
		return regexp.MustCompile(`"(at|now|heard_ago)": *[^,}]*`).ReplaceAllString(text, "")
	}
	before := all()
	for _, word := range []string{`"lab"`, `"n1"`, "52:54:00:00:00:09"} {
		if !strings.Contains(before, word) {
			t.Errorf("there is no %s in %s", word, before)
		}
	}
	w.removeCatalog()
	w.fails(1, []string{"sidus restore --from-store --force"}, "list")
	w.ok("restore", "--from-store", "--force", "--yes")
	if after := all(); after != before {
		t.Errorf("before: %s\nafter: %s", before, after)
	}
	w.sound()
}

// TestServeWhileDemoted: two servers must not answer one machine, and what runs
// keeps its root.
func TestServeWhileDemoted(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	p := w.served()
	w.answers()
	c, root := w.mountNFS("/channel/default")
	w.ok("demote", "--yes")
	w.says(p, "no machine boots from here any more")
	if offer, err := w.discover(); err == nil {
		t.Errorf("DHCP still answers: %v", offer)
	}
	if conn, err := w.client.DialContext(t.Context(), "tcp4", serverAddress+":8080"); err == nil {
		_ = conn.Close()
		t.Error("HTTP still listens")
	}
	tftp, err := w.client.DialContext(t.Context(), "udp4", serverAddress+":69")
	must(t, err)
	defer tftp.Close()
	must(t, tftp.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = tftp.Write([]byte("\x00\x01lpxelinux.0\x00octet\x00"))
	must(t, err)
	if _, err := tftp.Read(make([]byte, 1000)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("TFTP still listens: %v", err)
	}
	if files, err := c.walk(root); err != nil || files < 10 {
		t.Errorf("the mount of before finds %d files, %v", files, err)
	}
	w.mountNFS("/channel/default")
	w.stopped(p)
	w.wantServeFailure(w.ended(w.serve()), 4, "replica", "--only nfs")

	w.ok("takeover", "--yes")
	p = w.served("--only", "dhcp,http,tftp")
	w.ok("demote", "--yes")
	w.wantServeFailure(w.ended(p), 4, "replica")
}

// fewRights checks the capabilities of all threads.
func (w *wire) fewRights(p *lab.Process) {
	w.t.Helper()
	const allowed = 1<<unix.CAP_DAC_READ_SEARCH | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_RAW
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", p.Pid()))
	if err != nil || len(threads) == 0 {
		w.t.Fatalf("no threads of the server: %v", err)
	}
	for _, path := range threads {
		for _, set := range []string{"CapEff", "CapPrm", "CapBnd", "CapInh"} {
			value, err := strconv.ParseUint(statusField(w.t, path, set), 16, 64)
			if err != nil || value&^allowed != 0 {
				w.t.Errorf("%s has %s %x, %v", path, set, value, err)
			}
		}
		if statusField(w.t, path, "NoNewPrivs") != "1" {
			w.t.Errorf("%s may get new rights", path)
		}
	}
}

// statusField is a line of proc(5) status.
func statusField(t testing.TB, path, name string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	for line := range strings.Lines(string(text)) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("%s has no %s", path, name)
	return ""
}

// anonymous is the anonymous memory of a process, in MB.
func anonymous(t testing.TB, pid int) int {
	t.Helper()
	kib, err := strconv.Atoi(strings.TrimSuffix(statusField(t, fmt.Sprintf("/proc/%d/status", pid), "RssAnon"), " kB"))
	must(t, err)
	return kib * 1024 / 1e6
}

// TestRandomBytes throws random bytes, and damaged requests, at every port. The
// server answers afterwards, and its memory does not grow.
func TestRandomBytes(t *testing.T) {
	t.Parallel()
	w := newWire(t, "--mode", "full", "--range", "10.77.0.100-10.77.0.110")
	p := w.served()
	w.answers()
	w.throw(p)
	begun := anonymous(t, p.Pid())
	for range 3 {
		w.throw(p)
	}
	ended := anonymous(t, p.Pid())
	t.Logf("anonymous memory: %d MB before, %d MB after", begun, ended)
	if ended > begun+30 {
		t.Errorf("the memory grew from %d to %d MB", begun, ended)
	}
	w.answers()
	w.stopped(p)
	if output := p.Output.String(); strings.Contains(output, "panic") || strings.Contains(output, "goroutine ") {
		t.Errorf("the server panicked: %s", output)
	}
}

func (w *wire) throw(p *lab.Process) {
	t := w.t
	t.Helper()
	noise := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	damaged := func(request []byte) []byte {
		b := append([]byte{}, request...)
		for range 1 + mathrand.IntN(4) {
			b[mathrand.IntN(len(b))] ^= byte(1 << mathrand.IntN(8))
		}
		return b[:1+mathrand.IntN(len(b))]
	}
	discover, err := dhcpv4.NewDiscovery(net.HardwareAddr{0x52, 0x54, 0, 0, 0, 8})
	must(t, err)
	nfsCall := xdr(uint32(1), uint32(0), uint32(2), uint32(nfsProgram), uint32(3), uint32(17), uint32(1), xdr(uint32(0), []byte("x"), uint32(0), uint32(0), uint32(0)),
		uint32(0), uint32(0), noise(32), uint64(0), uint64(0), uint32(1<<31), uint32(1<<31))
	requests := map[int][]byte{
		67: discover.ToBytes(), 4011: discover.ToBytes(), 69: []byte("\x00\x01pxelinux.cfg/01-52-54-00-00-00-08\x00octet\x00blksize\x001408\x00tsize\x000\x00"),
		111: xdr(uint32(7), uint32(0), uint32(2), uint32(100000), uint32(2), uint32(3), uint64(0), uint64(0), uint32(nfsProgram), uint32(3), uint32(6), uint32(0)),
	}
	conn := w.packetConn(clientAddress + ":0")
	defer conn.Close()
	for port, request := range requests {
		to := &net.UDPAddr{IP: net.ParseIP(serverAddress), Port: port}
		for i := range 300 {
			packet := damaged(request)
			if i%2 == 0 {
				packet = noise(mathrand.IntN(1400))
			}
			_, _ = conn.WriteTo(packet, to) // a port that is closed is not ours to judge
		}
	}
	streams := map[int][]byte{2049: nfsCall, 111: requests[111], 8080: []byte("GET /v1/boot/00000000000000000000000000000000/kernel HTTP/1.1\r\nHost: x\r\nRange: bytes=5-\r\n\r\n")}
	for port, request := range streams {
		for i := range 60 {
			conn, err := w.client.DialContext(t.Context(), "tcp4", fmt.Sprintf("%s:%d", serverAddress, port))
			if err != nil {
				t.Errorf("port %d: %v", port, err)
				break
			}
			data := damaged(request)
			if port != 8080 && i%3 > 0 {
				data = append(xdr(1<<31|uint32(len(data))), data...)
			}
			if i%2 == 0 {
				data = noise(mathrand.IntN(5000))
			}
			_, _ = conn.Write(data)
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
			_, _ = io.Copy(io.Discard, io.LimitReader(conn, 1<<20))
			_ = conn.Close()
		}
	}
	select {
	case <-p.Done():
		t.Fatalf("the server has ended: %s", p.Output)
	default:
	}
}

// TestTakenPorts: a port that another program has is said, with what to do,
// and nothing is served.
func TestTakenPorts(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	for _, c := range []struct {
		network, address, word string
	}{
		{"tcp4", serverAddress + ":2049", "--nfs-port"}, {"tcp4", "0.0.0.0:8080", "--http-port"}, {"udp4", "0.0.0.0:69", "TFTP"},
	} {
		var closer io.Closer
		var err error
		if c.network == "tcp4" {
			closer, err = w.server.Listen(c.network, c.address)
		} else {
			closer, err = w.server.ListenPacket(c.network, c.address)
		}
		must(t, err)
		r := w.ended(w.serve())
		w.wantServeFailure(r, 1, c.word, "another program has the port", "ss -lnp")
		must(t, closer.Close())
	}
	// With other ports it serves beside what is there.
	for _, address := range []string{serverAddress + ":2049", serverAddress + ":8080"} {
		_, err := w.server.Listen("tcp4", address)
		must(t, err)
	}
	w.stopped(w.served("--nfs-port", "12049", "--http-port", "18080"))
}

// wantServeFailure checks the one message with which a server ended; other
// lines are its log.
func (w *wire) wantServeFailure(r result, status int, words ...string) {
	w.t.Helper()
	message := ""
	for line := range strings.Lines(r.stderr) {
		if strings.HasPrefix(line, "sidus: ") {
			message += line
		}
	}
	if r.status != status || message == "" || strings.Count(message, "sidus: ") != 1 {
		w.t.Errorf("serve: status %d: %s", r.status, r.stderr)
	}
	for _, word := range words {
		if !strings.Contains(r.stderr, word) {
			w.t.Errorf("serve does not say %q: %s", word, r.stderr)
		}
	}
}

// TestOtherDHCPServer: where another server gives addresses, full mode is
// refused, and the message names it. Proxy mode works beside it.
func TestOtherDHCPServer(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("dnsmasq"); err != nil {
		t.Skip("SKIPPED: there is no dnsmasq")
	}
	w := newWire(t, "--mode", "full", "--range", "10.77.0.100-10.77.0.110")
	other, err := w.client.Start("dnsmasq", "--keep-in-foreground", "--no-daemon", "--conf-file=/dev/null", "--port=0", "--user=root", "--no-ping",
		"--bind-interfaces", "--interface=eth0", "--dhcp-authoritative", "--dhcp-leasefile="+filepath.Join(t.TempDir(), "leases"),
		"--dhcp-range=10.77.0.200,10.77.0.220,255.255.255.0,3600")
	must(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if _, _, err := other.Output.WaitFor(ctx, 0, regexp.MustCompile(`DHCP, IP range|DHCP, sockets bound`)); err != nil {
		t.Fatal(err)
	}
	r := w.ended(w.serve())
	w.wantServeFailure(r, 1, clientAddress, "DHCP")
	p := w.served("--dhcp", "proxy")
	w.stopped(p)
}

func TestServeWithoutWhatItNeeds(t *testing.T) {
	t.Parallel()
	w := newWire(t)
	w.wantServeFailure(w.ended(w.serve("--interface", "eth7")), 1, "eth7", "ip link")
	w.wantServeFailure(w.ended(w.serve("--listen", "10.1.2.3")), 1, "10.1.2.3")
	key := filepath.Join(w.dir, "secrets/site.key")
	text, err := os.ReadFile(key)
	must(t, err)
	must(t, os.Remove(key))
	w.wantServeFailure(w.ended(w.serve()), 1, "site", "key", "backup")
	must(t, os.WriteFile(key, text[:7], 0o600))
	w.wantServeFailure(w.ended(w.serve()), 1, "7 bytes", "backup")
	must(t, os.WriteFile(key, text, 0o600))
	w.ok("network", "delete", "lab", "--yes")
	w.wantServeFailure(w.ended(w.serve()), 1, "sidus network add")
	w.ok("network", "add", "far", "--subnet", "10.78.0.0/24")
	w.wantServeFailure(w.ended(w.serve()), 1, "10.78.0.0/24", "ip addr")
}
