package portmap

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var mappings = []Mapping{{100003, 3, TCP, 2049}, {100005, 3, TCP, 2049}, {100005, 1, TCP, 2049}, {100005, 1, UDP, 777}}

// TestAnswerGolden checks whole messages, written by hand from RFC 1833.
func TestAnswerGolden(t *testing.T) {
	local := netip.MustParseAddr("10.1.2.3")
	const head = "00000007 00000000 00000002 000186a0 "
	const auth = " 00000000 00000000 00000000 00000000 "
	const ok = "00000007 00000001 00000000 00000000 00000000 00000000 "
	for _, test := range []struct{ name, call, want string }{
		{"NULL", head + "00000002 00000000" + auth, ok},
		{"GETPORT", head + "00000002 00000003" + auth + "000186a3 00000003 00000006 00000000", ok + "00000801"},
		{"GETPORT by UDP", head + "00000002 00000003" + auth + "000186a5 00000001 00000011 00000000", ok + "00000309"},
		{"GETPORT of another version", head + "00000002 00000003" + auth + "000186a3 00000002 00000006 00000000", ok + "00000801"},
		{"GETPORT of nothing", head + "00000002 00000003" + auth + "000186a9 00000001 00000006 00000000", ok + "00000000"},
		{"SET", head + "00000002 00000001" + auth + "000186a9 00000001 00000006 00000099", ok + "00000000"},
		{"CALLIT", head + "00000002 00000005" + auth + "000186a3 00000003 00000000 00000000", ""},
		{"GETADDR", head + "00000004 00000003" + auth + "000186a3 00000003 00000003 74637000 00000000 00000000",
			ok + "0000000c 31302e31 2e322e33 2e382e31"},
		{"GETVERSADDR of another version", head + "00000004 00000009" + auth + "000186a3 00000002 00000003 74637000 00000000 00000000",
			ok + "00000000"},
		{"no such procedure", head + "00000002 00000006" + auth, ok[:len(ok)-9] + "00000003"},
		{"no such version", head + "00000005 00000000" + auth, ok[:len(ok)-9] + "00000002 00000002 00000004"},
		{"no such program", strings.Replace(head, "000186a0", "000186a3", 1) + "00000002 00000000" + auth, ok[:len(ok)-9] + "00000001"},
		{"no such RPC", strings.Replace(head, "00000002", "00000003", 1) + "00000002 00000000" + auth,
			"00000007 00000001 00000001 00000000 00000002 00000002"},
		{"garbage", head + "00000002 00000003" + auth + "000186a3", ok[:len(ok)-9] + "00000004"},
		{"bad credentials", head + "00000002 00000003 00000001 00000fff", "00000007 00000001 00000001 00000001 00000001"},
		{"a reply", "00000007 00000001 00000000 00000000 00000000 00000000", ""},
		{"short", "00000007", ""},
	} {
		call, err := hex.DecodeString(strings.ReplaceAll(test.call, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		want, err := hex.DecodeString(strings.ReplaceAll(test.want, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		if got := answer(mappings, call, local); !bytes.Equal(got, want) {
			t.Errorf("%s:\n got %x\nwant %x", test.name, got, want)
		}
	}
}

// namespace makes a network namespace, in which port 111 is free.
func namespace(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("this test must run as root")
		}
		t.Skip("SKIPPED: needs root (network namespaces)")
	}
	var random [4]byte
	_, _ = rand.Read(random[:])
	name := "sidus-pm" + hex.EncodeToString(random[:])
	run(t, "ip", "netns", "add", name)
	t.Cleanup(func() { run(t, "ip", "netns", "delete", name) })
	run(t, "ip", "-n", name, "link", "set", "lo", "up")
	return name
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// The test program, started with SIDUS_TEST_ANNOUNCE, announces on port 111.
func init() {
	if os.Getenv("SIDUS_TEST_ANNOUNCE") == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { // until standard input ends
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	a := &Announcer{Mappings: mappings}
	err := a.Run(ctx, func() { _, _ = os.Stdout.WriteString("ready\n") })
	if err != nil {
		_, _ = os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Exit(0)
}

// announce starts the announcer in a namespace. stop ends it.
func announce(t *testing.T, namespace string) (says string, stop func()) {
	t.Helper()
	cmd := exec.Command("ip", "netns", "exec", namespace, os.Args[0])
	cmd.Env = append(os.Environ(), "SIDUS_TEST_ANNOUNCE=1")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 1000)
	n, _ := out.Read(buf)
	stop = func() {
		_ = in.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(stop)
	return string(buf[:n]), stop
}

// TestRpcinfo asks with rpcinfo(8).
func TestRpcinfo(t *testing.T) {
	ns := namespace(t)
	if says, _ := announce(t, ns); says != "ready\n" {
		t.Fatal(says)
	}
	inside := func(args ...string) string { return run(t, "ip", append([]string{"netns", "exec", ns}, args...)...) }
	list := strings.Join(strings.Fields(inside("rpcinfo", "-p", "127.0.0.1")), " ")
	for _, want := range []string{"100003 3 tcp 2049", "100005 1 udp 777", "100005 3 tcp 2049"} {
		if !strings.Contains(list, want) {
			t.Errorf("rpcinfo -p lacks %q: %s", want, list)
		}
	}
	if list := inside("rpcinfo", "127.0.0.1"); !strings.Contains(list, "127.0.0.1.8.1") {
		t.Errorf("rpcinfo (version 4): %s", list)
	}
}

// TestRunningRpcbind registers with an rpcbind, and leaves what others have
// registered.
func TestRunningRpcbind(t *testing.T) {
	ns := namespace(t)
	if _, err := exec.LookPath("rpcbind"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("SKIPPED: rpcbind is not installed")
	}
	rpcbind := exec.Command("ip", "netns", "exec", ns, "unshare", "-m", "sh", "-c",
		"mount -t tmpfs tmpfs /run && exec rpcbind -f")
	if err := rpcbind.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = rpcbind.Process.Kill()
		_ = rpcbind.Wait()
	}()
	inside := func(args ...string) string { return run(t, "ip", append([]string{"netns", "exec", ns}, args...)...) }
	for deadline := time.Now().Add(10 * time.Second); ; {
		if exec.Command("ip", "netns", "exec", ns, "rpcinfo", "-p", "127.0.0.1").Run() == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("rpcbind does not answer")
		}
		time.Sleep(20 * time.Millisecond)
	}
	says, stop := announce(t, ns)
	if says != "ready\n" {
		t.Fatal(says)
	}
	if list := strings.Join(strings.Fields(inside("rpcinfo", "-p", "127.0.0.1")), " "); !strings.Contains(list, "100003 3 tcp 2049") {
		t.Errorf("not registered: %s", list)
	}
	stop()
	list := strings.Join(strings.Fields(inside("rpcinfo", "-p", "127.0.0.1")), " ")
	if strings.Contains(list, "100003") || !strings.Contains(list, "100000 2 tcp 111") {
		t.Errorf("after the end: %s", list)
	}
	// Somebody else's registration.
	set := run(t, "ip", "netns", "exec", ns, "python3", "-c", `
import socket,struct
m=struct.pack('>14I',9,0,2,100000,2,1,0,0,0,0,100003,3,6,4444)
s=socket.create_connection(('127.0.0.1',111)); s.sendall(struct.pack('>I',0x80000000|len(m))+m); print(s.recv(100).hex())`)
	if !strings.HasSuffix(strings.TrimSpace(set), "00000001") {
		t.Fatalf("SET: %s", set)
	}
	if says, _ := announce(t, ns); !strings.Contains(says, ErrTaken.Error()) {
		t.Errorf("says %q", says)
	}
	list = strings.Join(strings.Fields(inside("rpcinfo", "-p", "127.0.0.1")), " ")
	if !strings.Contains(list, "100003 3 tcp 4444") || strings.Contains(list, "100005") {
		t.Errorf("the other's registration was touched: %s", list)
	}
}

func TestServeEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	udp, tcp, err := listen(ctx, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Mappings: mappings}
	done := make(chan error)
	go func() { done <- s.Serve(ctx, udp, tcp) }()
	conn, err := net.Dial("tcp", tcp.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	r := registrar{tcp.Addr().String()}
	if got, err := r.dump(ctx); err != nil || len(got) != len(mappings)+6 {
		t.Errorf("DUMP: %v, %v", got, err)
	}
	if _, err := r.register(ctx, []Mapping{{1, 2, TCP, 3}}); err == nil {
		t.Error("our server accepts registrations")
	}
	if _, err := r.register(ctx, []Mapping{{100003, 3, TCP, 1}}); !errors.Is(err, ErrTaken) {
		t.Errorf("got %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x07\x00\x00\x00\x00\x00\x00\x00\x02\x00\x01\x86\xa0\x00\x00\x00\x04\x00\x00\x00\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))
	local := netip.MustParseAddr("127.0.0.1")
	f.Fuzz(func(t *testing.T, message []byte) {
		if reply := answer(mappings, message, local); len(reply)%4 != 0 || len(reply) > 1000 {
			t.Errorf("reply of %d bytes", len(reply))
		}
	})
}

func FuzzReadRecord(f *testing.F) {
	f.Add([]byte{0x80, 0, 0, 4, 1, 2, 3, 4})
	f.Add([]byte{0, 0, 0, 1, 9, 0x80, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		if record, err := readRecord(bytes.NewReader(data)); err == nil && len(record) > maxMessage {
			t.Errorf("record of %d bytes", len(record))
		}
	})
}
