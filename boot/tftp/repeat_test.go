package tftp

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"
)

// TestRepeatedRequest: a client that asks again and again, because the server
// is slow, is answered once.
func TestRepeatedRequest(t *testing.T) {
	m := newMachine()
	m.gate = make(chan struct{})
	server := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: serve(t, m, func(s *Server) { s.Retries = 3 })}
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := func(name string) {
		t.Helper()
		if _, err := conn.WriteTo([]byte("\x00\x01"+name+"\x00octet\x00"), server); err != nil {
			t.Fatal(err)
		}
	}
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

// TestRepeats: what comes again while it is being answered, or just after, is
// a repeat; what another port or for another file asks is not.
func TestRepeats(t *testing.T) {
	client := func(port uint16) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 9}), port)
	}
	a, now, r := asked{client(1), "a"}, time.Now(), newRepeats()
	check := func(what string, a asked, want bool) {
		t.Helper()
		if r.begin(a, now) != want {
			t.Errorf("%s: new is %v", what, !want)
		}
	}
	check("the first request", a, true)
	now = now.Add(time.Minute)
	check("its repeat, however late", a, false)
	check("another port", asked{client(2), "a"}, true)
	check("another file", asked{client(1), "b"}, true)
	r.answered(a, now)
	now = now.Add(lateRepeat)
	check("a repeat after the answer", a, false)
	now = now.Add(1)
	check("a new request for the same", a, true)
	r.forget(a)
	check("one after a broken transfer", a, true)
	r.answered(a, now)
	now = now.Add(2 * lateRepeat)
	r.forget(asked{client(2), "a"})
	r.forget(asked{client(1), "b"})
	check("after a while", asked{client(3), "c"}, true)
	if len(r.known) != 1 {
		t.Errorf("it still knows %v", r.known)
	}
}
