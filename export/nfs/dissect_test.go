package nfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"sidus/export/storm"
	"sidus/tests/lab"
)

// TestDissectBoot replays the calls of a real boot, and has Wireshark's
// dissectors read all that was said.
func TestDissectBoot(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil || os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("it needs root and tshark:", err)
		}
		t.Skip("SKIPPED: nobody else's eyes have looked at the packets: it needs root and tshark")
	}
	recorded, err := storm.ReadFile("../../tests/bench/boot.jsonl.gz")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	boot, err := storm.Skeleton(recorded, root)
	if err != nil {
		t.Fatal(err)
	}
	s := serveTree(t, root)
	port := int(netip.MustParseAddrPort(s.addr).Port())
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// In a folder of its own: tshark gives its privileges up before it opens it.
	dir := t.TempDir()
	file := filepath.Join(dir, "boot.pcap")
	listen := exec.CommandContext(ctx, "tshark", "-n", "-q", "-i", "lo", "-B", "256", "-f", fmt.Sprintf("tcp port %d", port), "-w", file)
	said, err := listen.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listen.Process.Kill() }()
	lines := bufio.NewScanner(said)
	for lines.Scan() && !strings.Contains(lines.Text(), "Capturing on") {
	}
	// It says so a little before it listens: call until a packet is there.
	first := dial(t, s)
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		first.call(procNull)
		if info, err := os.Stat(file); err == nil && info.Size() > 1000 {
			break
		}
		if time.Now().After(limit) {
			t.Fatal("tshark captures nothing")
		}
	}
	result, err := storm.Run(ctx, boot, storm.Options{
		Target: storm.Target{Host: "127.0.0.1", Path: "/channel/default", NFSPort: port, MountPort: port}, Nodes: 1, NoThinking: true, Timeout: time.Minute,
	})
	if err != nil || result.Errors != 0 {
		t.Fatalf("%v: %+v", err, result)
	}
	time.Sleep(time.Second) // the last packets are on their way to the file
	_ = listen.Process.Signal(syscall.SIGINT)
	for lines.Scan() {
	}
	if err := listen.Wait(); err != nil {
		t.Fatal(err)
	}
	frames, err := lab.Dissect(ctx, file, port)
	if err != nil && !errors.Is(err, lab.ErrNoDissector) {
		t.Error(err)
	}
	t.Logf("frames by protocol: %v", frames)
	if frames["nfs"] < len(boot.Calls) || frames["mount"] < 2 {
		t.Errorf("%d frames of NFS and %d of MOUNT for a boot of %d calls", frames["nfs"], frames["mount"], len(boot.Calls))
	}
}
