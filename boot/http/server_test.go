package http

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
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

	"github.com/sirupsen/logrus"
	"go.uber.org/goleak"

	"sidus/boot/protocol"
	"sidus/boot/pxe"
	"sidus/image/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	snapshot = "00112233445566778899aabbccddeeff"
	session  = "ffeeddccbbaa99887766554433221100"
	script   = "/v1/ipxe/52-54-00-00-00-01"
	kernel   = "/v1/boot/" + snapshot + "/kernel"
	report   = "/v1/sessions/" + session + "/report"
)

// machine answers for the parts behind the server.
type machine struct {
	mu      sync.Mutex
	dir     string
	boot    error
	open    error
	health  error
	reports []protocol.Report
	refuse  error
	steps   []pxe.Progress
}

func (m *machine) Boot(_ context.Context, mac net.HardwareAddr, _ netip.Addr, l pxe.Loader) (pxe.Config, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.boot != nil {
		return pxe.Config{}, m.boot
	}
	c := pxe.Config{MAC: mac, Session: session, Snapshot: snapshot, CommandLine: "quiet"}
	c.SetFiles("http://10.0.0.1:8080")
	return c, nil
}

// set changes what m answers.
func (m *machine) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
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

func (m *machine) OpenBootFile(_ context.Context, s store.SnapshotID, f protocol.BootFile) (io.ReadSeekCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.open != nil {
		return nil, m.open
	}
	if s != snapshot {
		return nil, fs.ErrNotExist
	}
	return os.Open(filepath.Join(m.dir, string(f)))
}

func (m *machine) Report(_ context.Context, s protocol.SessionID, _ netip.Addr, r protocol.Report) (protocol.Reply, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return protocol.Reply{}, m.refuse
	}
	if s != session {
		return protocol.Reply{}, fmt.Errorf("%s: %w", s, protocol.ErrUnknownSession)
	}
	m.reports = append(m.reports, r)
	return protocol.Reply{}, nil
}

func serve(t *testing.T) (base string, m *machine) {
	t.Helper()
	m = &machine{dir: t.TempDir()}
	for name, size := range map[string]int{"kernel": 5_000_000, "initrd": 1000} {
		if err := os.WriteFile(filepath.Join(m.dir, name), bytes.Repeat([]byte(name), size/len(name)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	log := logrus.New()
	log.SetOutput(t.Output())
	s := &Server{
		Boot: m, Files: m, Reports: m, Steps: m, Log: log,
		Loaders: fstest.MapFS{"snponly.efi": {Data: []byte("MZ")}},
		Healthy: func(context.Context) error { m.mu.Lock(); defer m.mu.Unlock(); return m.health },
		Metrics: func(w io.Writer) error { _, err := io.WriteString(w, "sidus_up 1\n"); return err },
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return "http://" + l.Addr().String(), m
}

// heard returns the reports so far.
func (m *machine) heard() []protocol.Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.reports)
}

// curl runs curl and returns the status, the header and the body.
func curl(t *testing.T, args ...string) (status, header, body string) {
	t.Helper()
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skipf("SKIPPED: %v", err)
	}
	dir := t.TempDir()
	out, err := exec.Command("curl", append([]string{"-sS", "--path-as-is", "--noproxy", "*", "-m", "20", "-D", dir + "/h", "-o", dir + "/b", "-w", "%{http_code}"}, args...)...).Output()
	if err != nil {
		t.Fatalf("curl %v: %v", args, err)
	}
	h, _ := os.ReadFile(dir + "/h")
	b, _ := os.ReadFile(dir + "/b")
	return string(out), string(h), string(b)
}

func TestBootFile(t *testing.T) {
	base, m := serve(t)
	want, err := os.ReadFile(filepath.Join(m.dir, "kernel"))
	if err != nil {
		t.Fatal(err)
	}
	url := protocol.BootFileURL(base, snapshot, protocol.Kernel, session)
	status, header, body := curl(t, url)
	if status != "200" || body != string(want) || !strings.Contains(header, `Etag: "`+snapshot+`"`) {
		t.Errorf("GET: %s, %d bytes, %s", status, len(body), header)
	}
	if len(m.seen()) != 1 || m.seen()[0].Step != protocol.StepKernel || m.seen()[0].Session != session || m.seen()[0].Snapshot != snapshot {
		t.Errorf("steps: %+v", m.seen())
	}
	if status, header, _ = curl(t, "-I", url); status != "200" || !strings.Contains(header, fmt.Sprintf("Content-Length: %d", len(want))) || !strings.Contains(header, "Accept-Ranges: bytes") {
		t.Errorf("HEAD: %s, %s", status, header)
	}
	if len(m.seen()) != 1 {
		t.Errorf("HEAD counted as a step: %+v", m.seen())
	}
	if status, header, body = curl(t, "-r", "100-199", url); status != "206" || body != string(want[100:200]) || !strings.Contains(header, fmt.Sprintf("bytes 100-199/%d", len(want))) {
		t.Errorf("range: %s, %d bytes, %s", status, len(body), header)
	}
	if status, _, body = curl(t, "-H", `If-None-Match: "`+snapshot+`"`, url); status != "304" || body != "" {
		t.Errorf("If-None-Match: %s, %q", status, body)
	}
	if status, _, _ = curl(t, "-r", "9999999-", url); status != "416" {
		t.Errorf("a range beyond the end: %s", status)
	}
	for _, path := range []string{
		"/v1/boot/ffffffffffffffffffffffffffffffff/kernel", "/v1/boot/" + snapshot + "/shadow", "/v1/boot/" + snapshot + "/..%2f..%2fetc%2fpasswd",
		"/v1/boot/..%2f..%2fetc/passwd", "/v1/boot/" + strings.ToUpper(snapshot) + "/kernel", "/v1/boot/x/kernel", "/", "/v1/loader/..%2fx", "/v1/loader/nothing", "/v1/ipxe/nobody",
	} {
		if status, _, body := curl(t, base+path); status != "404" {
			t.Errorf("%s: %s, %.80q", path, status, body)
		}
	}
	m.set(func() { m.open = errors.New("pool of /secret/path is suspended") })
	if status, header, body = curl(t, url); status != "503" || strings.Contains(body, "secret") || !strings.Contains(header, "Retry-After") {
		t.Errorf("unavailable: %s, %s", status, body)
	}
	if status, _, _ = curl(t, "-X", "DELETE", url); status != "405" {
		t.Errorf("DELETE: %s", status)
	}
}

func TestScript(t *testing.T) {
	base, m := serve(t)
	status, header, body := curl(t, base+script)
	if status != "200" || !strings.HasPrefix(body, "#!ipxe\n") || !strings.Contains(body, "/kernel?session="+session) || !strings.Contains(header, "no-store") {
		t.Errorf("%s %s", status, body)
	}
	if len(m.seen()) != 1 || m.seen()[0].Step != protocol.StepConfig || m.seen()[0].Session != session || m.seen()[0].MAC.String() != "52:54:00:00:00:01" {
		t.Errorf("steps: %+v", m.seen())
	}
	if status, _, body = curl(t, base+"/v1/ipxe/52:54:00:00:00:01"); status != "200" {
		t.Errorf("with colons: %s %s", status, body)
	}
	if _, _, body = curl(t, base+"/v1/ipxe", "-H", "Host: evil.example"); !strings.Contains(body, "chain --replace "+base+"/v1/ipxe/${netX/mac:hexhyp}") {
		t.Errorf("who: %s", body)
	}
	m.set(func() { m.boot = &pxe.Nothing{Reason: "no channel"} })
	if status, _, body = curl(t, base+script); status != "200" || !strings.Contains(body, "no channel") || !strings.Contains(body, "\nexit\n") {
		t.Errorf("nothing: %s %s", status, body)
	}
	m.set(func() { m.boot = errors.New("catalog of /secret/path is locked") })
	if status, _, body = curl(t, base+script); status != "200" || strings.Contains(body, "secret") || !strings.Contains(body, "chain --replace "+base+script) {
		t.Errorf("failure: %s %s", status, body)
	}
	if len(m.seen()) != 2 {
		t.Errorf("steps: %+v", m.seen())
	}
}

func TestReport(t *testing.T) {
	base, m := serve(t)
	post := func(path, body string) (string, string) {
		status, _, answer := curl(t, "-d", body, base+path)
		return status, answer
	}
	good := `{"protocol":1,"event":"up","failed_units":["x.service"],"uptime_seconds":12.3,"kernel":"6.1.0","address":"10.0.0.7"}`
	if status, answer := post(report, good); status != "200" || strings.TrimSpace(answer) != `{"protocol":1,"heartbeat_seconds":3600}` || len(m.heard()) != 1 || m.heard()[0].FailedUnits[0] != "x.service" {
		t.Errorf("%s %s %+v", status, answer, m.heard())
	}
	for body, want := range map[string]string{
		"":                             "400",
		"x":                            "400",
		good + "x":                     "400",
		`{"protocol":2,"new":"thing"}`: "426",
		"@" + large(t):                 "413",
	} {
		if status, answer := post(report, body); status != want {
			t.Errorf("%.50s: %s %s", body, status, answer)
		}
	}
	if status, _ := post("/v1/sessions/"+snapshot+"/report", good); status != "404" {
		t.Errorf("unknown session: %s", status)
	}
	if status, _ := post("/v1/sessions/x/report", good); status != "404" {
		t.Errorf("no session: %s", status)
	}
	m.set(func() { m.refuse = errors.New("disk of /secret/path is full") })
	if status, answer := post(report, good); status != "503" || strings.Contains(answer, "secret") {
		t.Errorf("failure: %s %s", status, answer)
	}
	m.set(func() { m.refuse = nil })
	reply, err := protocol.Client{Base: base, Session: session}.Report(t.Context(), protocol.Report{Event: protocol.EventHeartbeat})
	if err != nil || reply.HeartbeatSeconds != 3600 {
		t.Errorf("the agent's client: %+v, %v", reply, err)
	}
	if _, err := (protocol.Client{Base: base, Session: snapshot}).Report(t.Context(), protocol.Report{Event: protocol.EventUp}); !errors.Is(err, protocol.ErrUnknownSession) {
		t.Errorf("the agent's client, unknown session: %v", err)
	}
}

func large(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "large")
	text := `{"protocol":1,"event":"up","kernel":"` + strings.Repeat("a", 100_000) + `"}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestHealthMetricsLoader(t *testing.T) {
	base, m := serve(t)
	if status, _, body := curl(t, base+"/healthz"); status != "200" || body != "ok\n" {
		t.Errorf("%s %s", status, body)
	}
	m.set(func() { m.health = errors.New("catalog is locked") })
	if status, _, body := curl(t, base+"/healthz"); status != "503" || !strings.Contains(body, "locked") {
		t.Errorf("%s %s", status, body)
	}
	if _, _, body := curl(t, base+"/metrics"); body != "sidus_up 1\n" {
		t.Error(body)
	}
	if status, header, body := curl(t, base+"/v1/loader/snponly.efi"); status != "200" || body != "MZ" || !strings.Contains(header, "application/efi") {
		t.Errorf("%s %s", status, header)
	}
}

func TestHeaderLimit(t *testing.T) {
	base, _ := serve(t)
	if status, _, _ := curl(t, "-H", "X: "+strings.Repeat("a", 60_000), base+"/healthz"); status != "431" {
		t.Errorf("got %s", status)
	}
}

// A client that has stopped reading must not keep the server from stopping.
func TestStopUnderLoad(t *testing.T) {
	base, m := serve(t)
	if err := os.WriteFile(filepath.Join(m.dir, "kernel"), make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", kernel); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.ReadFull(conn, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
}

func TestEmptyServer(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- (&Server{}).Serve(ctx, l) }()
	for _, path := range []string{kernel, script, "/metrics", "/v1/loader/x", report} {
		if status, _, _ := curl(t, "http://"+l.Addr().String()+path); status != "404" {
			t.Errorf("%s: %s", path, status)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
