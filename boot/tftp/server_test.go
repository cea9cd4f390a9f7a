package tftp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	pin "github.com/pin/tftp/v3"
	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	snapshot = "00112233445566778899aabbccddeeff"
	config   = "pxelinux.cfg/01-52-54-00-00-00-01"
)

func content(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{byte(size)})
	_, _ = r.Read(b)
	return b
}

// machine answers for the parts behind the server.
type machine struct {
	mu     sync.Mutex
	boot   error
	files  map[protocol.BootFile][]byte
	steps  []pxe.Progress
	loader pxe.Loader
	gate   chan struct{} // if set, opening a file waits for it
	closed chan struct{} // if set, told of each file that is closed
}

func (m *machine) Boot(_ context.Context, mac net.HardwareAddr, client netip.Addr, l pxe.Loader) (pxe.Config, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.loader = l
	if m.boot != nil {
		return pxe.Config{}, m.boot
	}
	c := pxe.Config{MAC: mac, Session: snapshot, Snapshot: snapshot, CommandLine: "quiet"}
	c.SetFiles("http://10.0.0.1:8080")
	return c, nil
}

// set changes what m answers.
func (m *machine) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// asked returns the loader that asked last.
func (m *machine) asked() pxe.Loader {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.loader
}

// seen returns the steps so far.
func (m *machine) seen() []pxe.Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.steps)
}

func (m *machine) Step(_ context.Context, p pxe.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps = append(m.steps, p)
}

type file struct {
	*bytes.Reader
	err    error
	closed chan<- struct{}
}

func (f file) Close() error {
	if f.closed != nil {
		f.closed <- struct{}{}
	}
	return nil
}
func (f file) Read(p []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Reader.Read(p)
}

var errDisk = errors.New("disk error of /secret/path")

func (m *machine) OpenBootFile(_ context.Context, s store.SnapshotID, f protocol.BootFile) (io.ReadSeekCloser, error) {
	if m.gate != nil {
		<-m.gate
	}
	m.mu.Lock()
	data, ok := m.files[f]
	m.mu.Unlock()
	switch {
	case !ok || s != snapshot:
		return nil, fs.ErrNotExist
	case data == nil:
		return file{bytes.NewReader(make([]byte, 5000)), errDisk, m.closed}, nil
	}
	return file{bytes.NewReader(data), nil, m.closed}, nil
}

// serve starts a server on a port of the loopback device.
func serve(t *testing.T, m *machine, change func(*Server)) (port int) {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	log.SetLevel(logrus.DebugLevel)
	s := &Server{
		Loaders: fstest.MapFS{"lpxelinux.0": {Data: content(75072)}, "pxelinux.0": {Data: content(42430)}, "empty": {}},
		Boot:    m, Files: m, Steps: m, Log: log, Timeout: 100 * time.Millisecond, Retries: 8,
	}
	if change != nil {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, conn) }()
	t.Cleanup(func() {
		cancelled := time.Now()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if took := time.Since(cancelled); took > 2*time.Second {
			t.Errorf("the server took %v to stop", took)
		}
		if m.closed != nil {
			select {
			case <-m.closed:
			default:
				t.Error("the file is still open")
			}
		}
		// Those whose clients have gone.
		for limit := time.Now().Add(20 * time.Second); goleak.Find() != nil; {
			if time.Now().After(limit) {
				t.Fatal("a transfer does not end")
			}
		}
	})
	return conn.LocalAddr().(*net.UDPAddr).Port
}

func newMachine() *machine {
	return &machine{files: map[protocol.BootFile][]byte{protocol.Kernel: content(8 << 20), protocol.Initrd: content(1468 * 3)}}
}

// clients are the foreign programs that a file is fetched with.
var clients = map[string]func(port int, name, to string) *exec.Cmd{
	"tftp-hpa": func(port int, name, to string) *exec.Cmd {
		return exec.Command("tftp", "-m", "binary", "127.0.0.1", fmt.Sprint(port), "-c", "get", name, to)
	},
	"atftp": func(port int, name, to string) *exec.Cmd {
		return exec.Command("atftp", "--get", "-r", name, "-l", to, "127.0.0.1", fmt.Sprint(port))
	},
	"atftp, tsize and blksize": func(port int, name, to string) *exec.Cmd {
		return exec.Command("atftp", "--get", "--option", "blksize 1428", "--option", "tsize", "-r", name, "-l", to, "127.0.0.1", fmt.Sprint(port))
	},
	"curl": func(port int, name, to string) *exec.Cmd {
		return exec.Command("curl", "-sS", "--path-as-is", "-o", to, fmt.Sprintf("tftp://127.0.0.1:%d/%s", port, name))
	},
	"busybox": func(port int, name, to string) *exec.Cmd {
		return exec.Command("busybox", "tftp", "-g", "-b", "1400", "-r", name, "-l", to, "127.0.0.1", fmt.Sprint(port))
	},
}

// each runs f for every foreign client that is installed.
func each(t *testing.T, f func(t *testing.T, get func(port int, name string) ([]byte, error))) {
	for name, command := range clients {
		t.Run(name, func(t *testing.T) {
			if _, err := exec.LookPath(command(0, "", "").Path); err != nil {
				if os.Getenv("CI") == "true" {
					t.Fatal(err)
				}
				t.Skipf("SKIPPED: %v", err)
			}
			f(t, func(port int, remote string) ([]byte, error) {
				to := filepath.Join(t.TempDir(), "got")
				out, err := command(port, remote, to).CombinedOutput()
				got, readErr := os.ReadFile(to)
				if err == nil && readErr != nil {
					err = readErr
				}
				// tftp-hpa reports some errors with status 0.
				if err == nil && bytes.Contains(out, []byte("rror")) {
					err = errors.New("said error")
				}
				if err != nil {
					err = fmt.Errorf("%w: %s", err, out)
				}
				return got, err
			})
		})
	}
}

func TestForeignClients(t *testing.T) {
	each(t, func(t *testing.T, get func(int, string) ([]byte, error)) {
		m := newMachine()
		port := serve(t, m, nil)
		for name, want := range map[string][]byte{
			"lpxelinux.0":                  content(75072),
			"/lpxelinux.0":                 content(75072),
			"boot/" + snapshot + "/kernel": m.files[protocol.Kernel],
			"boot/" + snapshot + "/initrd": m.files[protocol.Initrd],
		} {
			if got, err := get(port, name); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(want), err)
			}
		}
		if got, err := get(port, config); err != nil || !bytes.Contains(got, []byte("LINUX http://10.0.0.1:8080/v1/boot/"+snapshot+"/kernel")) {
			t.Errorf("configuration: %s, %v", got, err)
		}
		for _, name := range []string{
			"nothing", "pxelinux.cfg/default", "boot/ffffffffffffffffffffffffffffffff/kernel", "boot/" + snapshot + "/root",
			"../../etc/hostname", "/etc/hostname", "/../etc/hostname", "boot/../../etc/hostname", strings.Repeat("a", 300),
		} {
			if got, err := get(port, name); err == nil && len(got) > 0 {
				t.Errorf("%s: got %d bytes", name, len(got))
			}
		}
	})
}

func TestWritesAreRefused(t *testing.T) {
	port := serve(t, newMachine(), nil)
	c, err := pin.NewClient(fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	if to, err := c.Send("lpxelinux.0", "octet"); err == nil {
		_, err = to.ReadFrom(strings.NewReader("evil"))
		if err == nil {
			t.Error("a write was taken")
		}
	}
}

// Which PXELINUX a machine has loaded decides how it is told to load the rest.
func TestLoaderDecidesTransport(t *testing.T) {
	m := newMachine()
	port := serve(t, m, nil)
	text := func(name string) string {
		got, err := fetch(port, name)
		if err != nil {
			t.Fatal(err)
		}
		return string(got)
	}
	if got := text(config); !strings.Contains(got, "LINUX boot/") {
		t.Errorf("unknown loader: %s", got)
	}
	text("lpxelinux.0")
	if got := text(config); !strings.Contains(got, "LINUX http://") || m.asked() != pxe.LPXELINUX {
		t.Errorf("lpxelinux: %s", got)
	}
	text("pxelinux.0")
	if got := text(config); !strings.Contains(got, "LINUX boot/") || m.asked() != pxe.PXELINUX {
		t.Errorf("pxelinux: %s", got)
	}
	if got := text("grub/grub.cfg-01-52-54-00-00-00-01"); !strings.Contains(got, "linux (tftp)/boot/") || m.asked() != pxe.GRUB {
		t.Errorf("grub: %s", got)
	}
	text("boot/" + snapshot + "/initrd")
	last := m.seen()[len(m.seen())-1]
	if m.seen()[0].Step != protocol.StepConfig || m.seen()[0].Session != snapshot || last.Step != protocol.StepInitrd || last.Client != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("steps: %+v", m.seen())
	}
}

func fetch(port int, name string) ([]byte, error) {
	c, err := pin.NewClient(fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return nil, err
	}
	c.SetTimeout(2 * time.Second)
	from, err := c.Receive(name, "octet")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = from.WriteTo(&b)
	return b.Bytes(), err
}

func TestNothingToBoot(t *testing.T) {
	m := newMachine()
	port := serve(t, m, nil)
	m.set(func() { m.boot = &pxe.Nothing{Reason: "no channel"} })
	if got, err := fetch(port, config); err != nil || !bytes.Contains(got, []byte("no channel")) || !bytes.Contains(got, []byte("LOCALBOOT")) {
		t.Errorf("got %s, %v", got, err)
	}
	m.set(func() { m.boot = errors.New("catalog of /secret/path is locked") })
	if got, err := fetch(port, config); err != nil || !bytes.Contains(got, []byte("CONFIG "+config)) || bytes.Contains(got, []byte("secret")) {
		t.Errorf("got %s, %v", got, err)
	}
	if len(m.seen()) != 0 {
		t.Errorf("steps: %+v", m.seen())
	}
}

func TestReadErrorIsTold(t *testing.T) {
	m := newMachine()
	m.files[protocol.Initrd] = nil
	port := serve(t, m, nil)
	_, err := fetch(port, "boot/"+snapshot+"/initrd")
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}

func TestLimits(t *testing.T) {
	m := newMachine()
	m.gate = make(chan struct{})
	port := serve(t, m, func(s *Server) { s.MaxPerClient = 2 })
	name := "boot/" + snapshot + "/initrd"
	results := make(chan error, 3)
	for range 3 {
		go func() {
			_, err := fetch(port, name)
			results <- err
		}()
	}
	if err := <-results; err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("the third transfer: %v", err)
	}
	close(m.gate)
	for range 2 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	// A place is free again once the server has seen the last acknowledgement,
	// a moment after the client has the file.
	var err error
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if _, err = fetch(port, name); err == nil {
			return
		}
	}
	t.Errorf("afterwards: %v", err)
}

// TestStopWithDeadClient: a client that has gone away in the middle does not
// keep the server from stopping, nor its file open.
func TestStopWithDeadClient(t *testing.T) {
	m := newMachine()
	m.closed = make(chan struct{}, 1)
	port := serve(t, m, func(s *Server) { s.Retries = 10 })
	conn, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("\x00\x01boot/" + snapshot + "/kernel\x00octet\x00")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 600)
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	// The first block comes from another port: a connected socket never sees
	// it, as a client that has gone.
	_, _ = conn.Read(buf)
}

// TestPausedClient: a client that heard nothing for much longer than a block
// is waited for goes on where it was.
func TestPausedClient(t *testing.T) {
	port := serve(t, newMachine(), func(s *Server) { s.Timeout, s.Retries = 10*time.Millisecond, 0 })
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	server := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	if _, err := conn.WriteTo([]byte("\x00\x01"+config+"\x00octet\x00"), server); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond)
	var got []byte
	buf := make([]byte, 600)
	for block := byte(1); ; {
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			t.Fatal(err)
		}
		if n < 4 || buf[1] != 3 {
			t.Fatalf("packet %q in place of a block", buf[:n])
		}
		if buf[3] != block {
			continue // sent again
		}
		got = append(got, buf[4:n]...)
		if _, err := conn.WriteTo([]byte{0, 4, 0, block}, from); err != nil {
			t.Fatal(err)
		}
		block++
		if n < 4+512 {
			break
		}
	}
	if want, err := fetch(port, config); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, not %d: %v", len(got), len(want), err)
	}
}

// TestPause: a client is waited for for two minutes, and is never left without
// a hearing for as long as PXELINUX waits.
func TestPause(t *testing.T) {
	timeout := time.Second
	whole := timeout
	for attempt := range usualRetries {
		deaf := pause(attempt, timeout)
		if deaf > 3*time.Second {
			t.Errorf("nothing is heard for %v before retry %d", deaf, attempt+1)
		}
		whole += deaf + timeout
	}
	if whole < 110*time.Second || whole > 130*time.Second {
		t.Errorf("a client is waited for for %v", whole)
	}
}

func TestGarbage(t *testing.T) {
	m := newMachine()
	port := serve(t, m, nil)
	conn, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		p := make([]byte, r.IntN(600))
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		if len(p) > 2 {
			p[0], p[1] = 0, byte(r.IntN(7))
		}
		_, _ = conn.Write(p)
	}
	if got, err := fetch(port, "lpxelinux.0"); err != nil || len(got) != 75072 {
		t.Errorf("afterwards: %d bytes, %v", len(got), err)
	}
}

// TestLossyWire loses one packet of ten in each direction.
func TestLossyWire(t *testing.T) {
	m := newMachine()
	m.files[protocol.Kernel] = content(20_000)
	port := lossy(t, serve(t, m, func(s *Server) { s.Timeout, s.Retries = 100*time.Millisecond, 10 }), 10)
	each(t, func(t *testing.T, get func(int, string) ([]byte, error)) {
		if strings.HasSuffix(t.Name(), "/atftp") {
			// It answers no block a second time, and waits 5 s for each loss: the
			// larger blocks of its other run are enough.
			return
		}
		got, err := get(port, "boot/"+snapshot+"/kernel")
		if err != nil || !bytes.Equal(got, m.files[protocol.Kernel]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
	})
}

// lossy passes packets between clients and the server at port, but for one of
// n of each direction.
func lossy(t *testing.T, port, n int) int {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := []*net.UDPConn{front}
	open := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Error(err)
			return nil
		}
		mu.Lock()
		defer mu.Unlock()
		conns = append(conns, c)
		return c
	}
	pass := func(from, to *net.UDPConn, where func(source *net.UDPAddr) *net.UDPAddr) {
		wg.Go(func() {
			buf := make([]byte, 65536)
			dice := rand.New(rand.NewPCG(3, uint64(n)))
			for {
				size, source, err := from.ReadFromUDP(buf)
				if err != nil {
					return
				}
				if dest := where(source); dest != nil && dice.IntN(n) != 0 {
					_, _ = to.WriteToUDP(buf[:size], dest)
				}
			}
		})
	}
	server := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port}
	wg.Go(func() {
		buf := make([]byte, 65536)
		known := map[string]*net.UDPConn{}
		for {
			size, client, err := front.ReadFromUDP(buf)
			if err != nil {
				return
			}
			up := known[client.String()]
			if up == nil {
				var down *net.UDPConn
				if up, down = open(), open(); up == nil || down == nil {
					return
				}
				known[client.String()] = up
				var tid sync.Map
				pass(up, down, func(source *net.UDPAddr) *net.UDPAddr { tid.Store(0, source); return client })
				pass(down, up, func(*net.UDPAddr) *net.UDPAddr {
					if to, ok := tid.Load(0); ok {
						return to.(*net.UDPAddr)
					}
					return nil
				})
			}
			_, _ = up.WriteToUDP(buf[:size], server)
		}
	})
	t.Cleanup(func() {
		front.Close()
		mu.Lock()
		for _, c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return front.LocalAddr().(*net.UDPAddr).Port
}

func TestParse(t *testing.T) {
	for raw, want := range map[string]kind{
		"lpxelinux.0": kindLoader, "/lpxelinux.0": kindLoader, "//./ldlinux.c32": kindLoader,
		config: kindConfig, "/" + strings.ToUpper("01") + config: kindMissing,
		"pxelinux.cfg/01-52-54-00-AB-cd-ef":                 kindConfig,
		"pxelinux.cfg/01-52:54:00:ab:cd:ef":                 kindMissing,
		"pxelinux.cfg/b8945908-d6a6-41a9-611d-74a6ab80b83d": kindMissing,
		"pxelinux.cfg/C0A80001":                             kindMissing,
		"pxelinux.cfg/default":                              kindMissing,
		"pxelinux.cfg/01-52-54-00-00-00-01/x":               kindMissing,
		"pxelinux.cfg/20-00-00-00-00-00-00-00-00-00-00":     kindMissing,
		"grub/grub.cfg-01-52-54-00-00-00-01":                kindConfig,
		"grub/x86_64-efi/command.lst":                       kindMissing,
		"boot/" + snapshot + "/kernel":                      kindBoot,
		"boot/" + snapshot + "/shadow":                      kindMissing,
		"etc/shadow":                                        kindMissing,
	} {
		if r, err := parse(raw); err != nil || r.kind != want {
			t.Errorf("%q: kind %d, %v", raw, r.kind, err)
		}
	}
	for _, raw := range []string{"", "/", ".", "..", "../x", "a/../b", `..\x`, "a\x00", "a\n", "é", strings.Repeat("a", 256)} {
		if r, err := parse(raw); !errors.Is(err, errRefused) {
			t.Errorf("%q: %+v, %v", raw, r, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"lpxelinux.0", config, "boot/" + snapshot + "/kernel", "../../etc/shadow", "/a//b/./c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := parse(raw)
		if err != nil {
			return
		}
		if !fs.ValidPath(r.name) || (r.kind == kindConfig) != (len(r.mac) == 6) || (r.kind == kindBoot) != (r.snapshot != "") {
			t.Fatalf("%q: %+v", raw, r)
		}
	})
}

func TestMemory(t *testing.T) {
	m := newMemory(2)
	for i := range 100 {
		m.set(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), pxe.LPXELINUX)
	}
	if len(m.known) != 2 || m.get(netip.AddrFrom4([4]byte{10, 0, 0, 99}), pxe.PXELINUX) != pxe.LPXELINUX {
		t.Errorf("%d are known", len(m.known))
	}
}
