package nfs

import (
	"net"
	"net/netip"
	"sync"
	"testing"
)

// TestManyConnections floods a server over more connections than a client
// usually has, with small calls, large reads and calls that wait for a
// snapshot: all are answered, and meanwhile another client is.
func TestManyConnections(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	big, three := c.lookup(top, "big"), c.lookup(top, "three")
	const conns, rounds, calls = 3 * usualConnections, 20, 70
	var all sync.WaitGroup
	for range conns {
		c := dial(t, s)
		all.Go(func() {
			var stream []byte
			for i := range calls {
				m := c.message(procGetattr, three)
				switch {
				case i%16 == 3:
					m = c.message(procRead, big, uint64(i)<<12, 65536)
				case i%32 == 5:
					m = c.message(procFsinfo, handleOf("ffffffffffffffffffffffffffffffff", testKey))
				}
				stream = append(append(stream, words(uint32(lastFragment|len(m)))...), m...)
			}
			for range rounds {
				if _, err := c.conn.Write(stream); err != nil {
					t.Error(err)
					return
				}
				for range calls {
					c.receive()
				}
			}
		})
	}
	honest := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	conn, err := honest.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	h := &rpcClient{t: t, conn: conn, cred: sysCred(0, 0), prog: 100003, vers: 3}
	for range 200 {
		h.send(h.message(procGetattr, three))
		h.receive()
	}
	all.Wait()
	s.clients.mu.Lock()
	p := s.clients.all[netip.MustParseAddr("127.0.0.1")]
	s.clients.mu.Unlock()
	if len(p.turns) > cap(p.turns) || cap(p.turns) < 1 {
		t.Errorf("%d of %d turns are taken", len(p.turns), cap(p.turns))
	}
}
