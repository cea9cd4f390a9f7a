package tftp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// askFromOnePort starts a server. What ask asks it for by name is answered on
// conn, in blocks of 512 bytes.
func askFromOnePort(t *testing.T, m *machine, change func(*Server)) (conn net.PacketConn, ask func(name string)) {
	t.Helper()
	server := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: serve(t, m, change)}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn, func(name string) {
		t.Helper()
		if _, err := conn.WriteTo([]byte("\x00\x01"+name+"\x00octet\x00"), server); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRepeatedRequest: a client that asks again and again, because the server
// is slow, is answered once.
func TestRepeatedRequest(t *testing.T) {
	m := newMachine()
	m.gate = make(chan struct{})
	conn, ask := askFromOnePort(t, m, func(s *Server) { s.Retries = 3 })
	for range 5 {
		ask("boot/" + snapshot + "/initrd")
	}
	// An answer means that all that came before it has been read.
	ask("nothing")
	ends := map[string]string{} // from where something came, and what first
	read := func() bool {
		t.Helper()
		packet := make([]byte, 2000)
		n, from, err := conn.ReadFrom(packet)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return false
		} else if err != nil || n < 4 {
			t.Fatal(n, err)
		}
		if ends[from.String()] == "" {
			ends[from.String()] = map[byte]string{3: "data", 5: "error"}[packet[1]]
		}
		return true
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if !read() || len(ends) != 1 {
		t.Fatalf("the file that is not there is answered by %v", ends)
	}
	close(m.gate)
	if !read() {
		t.Fatal("the file that is there is not answered")
	}
	// Each of several transfers would send its first block again by now.
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for read() {
	}
	said := map[string]int{}
	for _, what := range ends {
		said[what]++
	}
	if said["data"] != 1 || said["error"] != 1 || len(ends) != 2 {
		t.Errorf("one request in five copies is answered by %v", ends)
	}
}

// TestRepeats: what comes again before the client has heard an answer, or just
// after the last of it, is a repeat; what another port or for another file asks
// is not, nor what is asked by who was started again.
func TestRepeats(t *testing.T) {
	client := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 9}), port)
	}
	a, now, r := asked{client(1), "a"}, time.Now(), newRepeats()
	check := func(what string, a asked, want bool) *answering {
		t.Helper()
		state := r.begin(a, now)
		if (state != nil) != want {
			t.Errorf("%s: new is %v", what, !want)
		}
		return state
	}
	first := check("the first request", a, true)
	now = now.Add(time.Minute)
	check("its repeat, however late", a, false)
	port, file := check("another port", asked{client(2), "a"}, true), check("another file", asked{client(1), "b"}, true)
	r.sends(first, now)
	now = now.Add(earlyRepeat)
	check("a repeat while the first packet is on its way", a, false)
	now = now.Add(time.Minute)
	r.hears(first, now)
	now = now.Add(lateRepeat)
	check("a repeat that is read late, while the client takes the answer", a, false)
	r.answered(first, now)
	now = now.Add(lateRepeat)
	check("a repeat after the answer", a, false)
	now = now.Add(1)
	second := check("a new request for the same", a, true)
	r.forget(a, first) // it is not the one that is known
	check("a repeat of that", a, false)
	r.forget(a, second)
	third := check("one after a broken transfer", a, true)
	r.sends(third, now)
	now = now.Add(earlyRepeat + 1)
	fourth := check("one that heard nothing for long", a, true)
	r.sends(fourth, now)
	check("its repeat", a, false)
	r.hears(fourth, now)
	check("a repeat when the client has the first packet", a, false)
	now = now.Add(earlyRepeat + 1)
	fifth := check("one that was started again in the middle", a, true)
	r.forget(a, fourth)
	check("a repeat while the old transfer ends", a, false)
	r.answered(fifth, now)
	now = now.Add(earlyRepeat)
	check("a repeat of a client that has not heard the answer for long", a, false)
	sixth := check("what it asks for when it has", asked{client(1), "d"}, true)
	r.answered(sixth, now)
	fifth.ended = now
	now = now.Add(lateRepeat)
	check("a repeat that is read after what was asked later", a, false)
	now = now.Add(1)
	check("the same once more, after something else", a, true)
	now = now.Add(earlyRepeat + 1)
	r.forget(asked{client(2), "a"}, port)
	r.forget(asked{client(1), "b"}, file)
	r.forget(a, r.known[a])
	check("after a while", asked{client(3), "c"}, true)
	if len(r.known) != 1 || len(r.latest) != 1 {
		t.Errorf("it still knows %v and %v", r.known, r.latest)
	}
}

// TestHeardLate: a machine that stood still while the answer came asks once
// more. When it then asks for something else, it hears of nothing but that.
func TestHeardLate(t *testing.T) {
	conn, ask := askFromOnePort(t, newMachine(), func(*Server) {})
	packet := make([]byte, 600)
	read := func(limit time.Duration) (opcode byte) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		if _, _, err := conn.ReadFrom(packet); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0
		} else if err != nil {
			t.Fatal(err)
		}
		return packet[1]
	}
	const (
		data    = 3
		failure = 5
		byUUID  = "pxelinux.cfg/564d0a1b-5c4e-4f0e-9a3b-0123456789ab"
	)
	ask(byUUID)
	if got := read(10 * time.Second); got != failure {
		t.Fatalf("a file that is not there is answered with opcode %d", got)
	}
	time.Sleep(lateRepeat + 500*time.Millisecond)
	ask(byUUID)
	ask("boot/" + snapshot + "/kernel")
	if got := read(10 * time.Second); got != data {
		t.Errorf("the next file is answered with opcode %d", got)
	}
	for limit := time.Now().Add(500 * time.Millisecond); time.Now().Before(limit); {
		if got := read(100 * time.Millisecond); got != data && got != 0 {
			t.Errorf("behind the next file comes opcode %d", got)
		}
	}
}

// TestStartedAgain: firmware that is reset in the middle of a file and asks for
// it again, from the same port, has it. A repeat that is read late, when the
// client has taken some blocks, is not answered.
func TestStartedAgain(t *testing.T) {
	conn, askFor := askFromOnePort(t, newMachine(), func(s *Server) { s.Retries = 100 })
	ask := func() { t.Helper(); askFor("boot/" + snapshot + "/kernel") }
	// read returns the number of a data block and where it comes from, 0 if none
	// comes in time.
	read := func(limit time.Duration) (block byte, from string) {
		t.Helper()
		_ = conn.SetReadDeadline(time.Now().Add(limit))
		packet := make([]byte, 600)
		_, end, err := conn.ReadFrom(packet)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, ""
		} else if err != nil || packet[1] != 3 {
			t.Fatal(packet[:4], err)
		}
		return packet[3], end.String()
	}
	// take asks until there is an answer from another end than the last one, and
	// takes blocks.
	take := func(last string, blocks byte) (from string) {
		t.Helper()
		var asked time.Time
		next := byte(1)
		for deadline := time.Now().Add(30 * time.Second); next <= blocks; {
			if time.Now().After(deadline) {
				t.Fatalf("no block %d", next)
			}
			if next == 1 && time.Since(asked) > 500*time.Millisecond {
				ask()
				asked = time.Now()
			}
			block, end := read(200 * time.Millisecond)
			if block != next || end == last || from != "" && from != end {
				continue
			}
			from = end
			to, err := net.ResolveUDPAddr("udp4", end)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := conn.WriteTo([]byte{0, 4, 0, block}, to); err != nil {
				t.Fatal(err)
			}
			next++
		}
		return from
	}
	first := take("", 5)
	ask()
	for end := time.Now().Add(500 * time.Millisecond); time.Now().Before(end); {
		if block, from := read(100 * time.Millisecond); block != 0 && from != first {
			t.Errorf("a repeat that is read late is answered with block %d", block)
		}
	}
	for _, end := range []string{first, take(first, 20)} { // it goes, and says so
		to, err := net.ResolveUDPAddr("udp4", end)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := conn.WriteTo([]byte("\x00\x05\x00\x00bye\x00"), to); err != nil {
			t.Fatal(err)
		}
	}
}
