package lab_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"sidus/tests/lab"
	"sidus/tests/lab/labtest"
)

// TestMain also is the program that TestNothingIsLeft kills.
func TestMain(m *testing.M) {
	if os.Getenv("SIDUS_LAB_TO_KILL") != "" {
		waitToBeKilled()
		return
	}
	goleak.VerifyTestMain(m)
}

func newLab(t *testing.T) *lab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test needs root")
		}
		t.Skip("SKIPPED: this test needs root")
	}
	return labtest.New(t, lab.Options{})
}

func addBridge(t *testing.T, l *lab.Lab) {
	t.Helper()
	if _, err := l.AddBridge("lan", netip.MustParsePrefix("10.77.0.1/24")); err != nil {
		t.Fatal(err)
	}
}

func deadline(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestTwoLabsDoNotMeet(t *testing.T) {
	for i := range 2 {
		l := newLab(t)
		addBridge(t, l)
		listener, err := l.Listen("tcp", "10.77.0.1:80")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintf(w, "lab %d", i) })}
		t.Cleanup(func() { server.Close() })
		go server.Serve(listener)

		transport := &http.Transport{DialContext: l.DialContext, DisableKeepAlives: true}
		response, err := (&http.Client{Transport: transport}).Get("http://10.77.0.1/")
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if body, _ := io.ReadAll(response.Body); string(body) != fmt.Sprintf("lab %d", i) {
			t.Errorf("the server of lab %d says %q", i, body)
		}
	}
	addresses, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addresses {
		if strings.HasPrefix(a.String(), "10.77.0.1/") {
			t.Error("the lab's address is one of the host")
		}
	}
}

func TestProcess(t *testing.T) {
	l := newLab(t)
	ctx := deadline(t, 20*time.Second)

	out, err := l.Run(ctx, "ip", "-brief", "link")
	if err != nil || !strings.HasPrefix(out, "lo ") || strings.Count(out, "\n") != 1 {
		t.Errorf("a process sees other network devices than lo: %q, %v", out, err)
	}
	if _, err := l.Run(ctx, "sh", "-c", "echo wrong >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "exit status 3: wrong") {
		t.Errorf("a failing program gives %v", err)
	}
	p, err := l.Start("sh", "-c", "sleep 1000 & echo $!; wait")
	if err != nil {
		t.Fatal(err)
	}
	found, _, err := p.Output.WaitFor(ctx, 0, number)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(ctx); err != nil {
		t.Error(err)
	}
	if _, _, err := p.Output.WaitFor(ctx, 0, never); err == nil || !strings.Contains(err.Error(), "it ended") {
		t.Errorf("waiting for words of a dead process: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	waitGone(t, found[1])
	if _, err := l.Start("true"); err == nil {
		t.Error("a closed lab starts a process")
	}
	if _, err := os.Stat("/run/netns/" + l.Name()); !os.IsNotExist(err) {
		t.Errorf("the namespace is still there: %v", err)
	}
}

// waitGone waits until the process with that ID has ended: its parent may
// have to be told first.
func waitGone(t *testing.T, pid string) {
	t.Helper()
	for range 100 {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Errorf("process %s still runs", pid)
}

// waitToBeKilled makes a lab with a process whose child has left its group,
// says their names and waits.
func waitToBeKilled() {
	l, err := lab.New(lab.Options{})
	if err == nil {
		var p *lab.Process
		p, err = l.Start("sh", "-c", "setsid sleep 1000 & echo child $!; wait")
		if err == nil {
			var found []string
			if found, _, err = p.Output.WaitFor(context.Background(), 0, child); err == nil {
				fmt.Println(l.Name(), l.Dir(), p.Pid(), found[1])
				select {}
			}
		}
	}
	fmt.Println(err)
	os.Exit(1)
}

func TestNothingIsLeft(t *testing.T) {
	newLab(t) // for its checks of rights
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGINT} {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "SIDUS_LAB_TO_KILL=1")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var name, dir, pid, grandchild string
		if _, err := fmt.Fscan(out, &name, &dir, &pid, &grandchild); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Process.Signal(sig)
		_ = cmd.Wait()
		waitGone(t, pid)
		waitGone(t, grandchild)
		for _, path := range []string{"/run/netns/" + name, dir} {
			for i := 0; ; i++ {
				if _, err := os.Stat(path); os.IsNotExist(err) {
					break
				}
				if i == 100 {
					t.Fatalf("%s is still there after %v", path, sig)
				}
				time.Sleep(50 * time.Millisecond)
			}
		}
	}
}

func TestCapture(t *testing.T) {
	l := newLab(t)
	addBridge(t, l)
	ctx := deadline(t, 20*time.Second)
	// A second namespace is a machine that is quickly booted.
	client := newLab(t)
	for _, args := range [][]string{
		{"ip", "link", "add", "up0", "type", "veth", "peer", "name", "eth0", "netns", client.Name()},
		{"ip", "link", "set", "up0", "master", "lan", "up"},
	} {
		// "netns NAME" is looked up in /run/netns, which the lab sees.
		if _, err := l.Run(ctx, args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"ip", "addr", "add", "10.77.0.2/24", "dev", "eth0"}, {"ip", "link", "set", "eth0", "up"}} {
		if _, err := client.Run(ctx, args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	reports, err := l.Reports("10.77.0.1:8081")
	if err != nil {
		t.Fatal(err)
	}
	count, err := l.Capture("lan")
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DialContext: client.DialContext}
	defer transport.CloseIdleConnections()
	const body = 100_000
	for i := range 3 {
		response, err := (&http.Client{Transport: transport}).Post("http://10.77.0.1:8081/some/path", "text/plain", strings.NewReader(strconv.Itoa(i)+strings.Repeat("x", body-1)))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, response.Body)
		response.Body.Close()
	}
	if r, err := reports.Wait(ctx, func(r lab.Report) bool { return r.Body[0] == '2' }); err != nil || r.Path != "/some/path" || len(r.Body) != body {
		t.Errorf("report: %v, %v", r.Path, err)
	}
	// The last body may not have been counted when it has arrived.
	if err := count.Wait(ctx, func(n map[lab.Protocol]lab.Count) bool {
		return n[lab.HTTP].Requests == 3 && n[lab.HTTP].Bytes >= 3*body
	}); err != nil {
		t.Fatal(err)
	}
	n := count.Counts()[lab.HTTP]
	if n.RoundTrips != 4 || n.Bytes > 3*body*11/10 {
		t.Errorf("three requests on one connection are counted as\n%s", count)
	}
	if n.Ahead < 50 || n.Ahead > 1000 { // what the server says
		t.Errorf("answers of some hundred bytes were %d bytes ahead", n.Ahead)
	}
	if count.Lost() != 0 {
		t.Error("packets were lost")
	}
}

func TestMachine(t *testing.T) {
	l := newLab(t)
	addBridge(t, l)
	if _, err := l.AddBridge("dead", netip.Prefix{}); err != nil {
		t.Fatal(err)
	}
	ctx := deadline(t, 60*time.Second)
	count, err := l.Capture("lan")
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Dnsmasq(ctx, lab.DnsmasqOptions{
		Bridge: "lan", First: netip.MustParseAddr("10.77.0.100"), Last: netip.MustParseAddr("10.77.0.200"),
		TFTPRoot: l.Dir(), BootFile: "missing.0",
	})
	if err != nil {
		t.Fatal(err)
	}
	m, err := l.Boot(lab.MachineOptions{NICs: []lab.NIC{{Bridge: "dead", NoPXE: true}, {Bridge: "lan", Model: "e1000"}}, Memory: 128})
	if err != nil {
		t.Fatal(err)
	}
	if len(m.MACs) != 2 || m.MACs[1].String() != "52:54:00:00:01:02" {
		t.Errorf("cards: %v", m.MACs)
	}
	if _, _, err := server.Output.WaitFor(ctx, 0, missingFile); err != nil {
		t.Fatal(err)
	}
	if _, err := m.WaitText(ctx, "iPXE"); err != nil {
		t.Error(err)
	}
	// The capture may lag behind what the server has said already.
	if err := count.Wait(ctx, func(n map[lab.Protocol]lab.Count) bool { return n[lab.DHCP].Requests >= 2 && n[lab.TFTP].Requests >= 1 }); err != nil {
		t.Errorf("a PXE boot is counted as\n%s: %v", count, err)
	}
	picture := filepath.Join(l.Dir(), "screen.ppm")
	if err := m.Screenshot(picture); err != nil {
		t.Error(err)
	}
	if err := m.Reset(); err != nil {
		t.Error(err)
	}
	if _, _, err := m.WaitEvent(ctx, 0, "RESET"); err != nil {
		t.Error(err)
	}
	if err := m.Quit(); err != nil {
		t.Error(err)
	}
	if err := m.Wait(ctx); err != nil {
		t.Error(err)
	}
	if err := m.Reset(); err == nil {
		t.Error("a machine that is off can be reset")
	}
	if _, err := l.Boot(lab.MachineOptions{NICs: []lab.NIC{{Bridge: "missing"}}}); err == nil {
		t.Error("a machine was plugged into a bridge that is not there")
	}
}
