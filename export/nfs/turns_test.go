package nfs

import (
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestTurnsOfClients: who has many connections has no more turns than who has
// one.
func TestTurnsOfClients(t *testing.T) {
	turns := &turns{}
	many, few := &client{}, &client{}
	var names []string
	all := map[*worker]string{}
	wait := func(p *client, name string) {
		w := &worker{turns: turns, client: p}
		all[w] = name
		turns.push(w)
	}
	for i := range 100 {
		wait(many, fmt.Sprint("many", i))
	}
	wait(few, "few0")
	wait(few, "few1")
	for range 6 {
		names = append(names, all[turns.pop()])
	}
	// Who comes back has to wait for the others of its client.
	wait(few, "few2")
	for range 2 {
		names = append(names, all[turns.pop()])
	}
	if got, want := strings.Join(names, " "), "many0 few0 many1 few1 many2 many3 many4 few2"; got != want {
		t.Errorf("%s instead of %s", got, want)
	}
	for range 95 {
		if turns.pop() == nil {
			t.Fatal("somebody was forgotten")
		}
	}
	if turns.pop() != nil || turns.first != nil {
		t.Error("somebody waits for ever")
	}
}

// TestTurnsAtOnce has many workers of several clients share three turns: never
// more than three work, and all come to an end.
func TestTurnsAtOnce(t *testing.T) {
	turns := &turns{free: 3, clients: &clients{}}
	turns.clients.conns.Store(5 * (usualConnections + 1))
	var working, most atomic.Int32
	var all sync.WaitGroup
	for range 5 {
		p := &client{}
		p.conns.Store(usualConnections + 1)
		for range 7 {
			all.Go(func() {
				w := &worker{turns: turns, client: p}
				for round := range 200 {
					w.resume()
					n := working.Add(1)
					for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
					}
					runtime.Gosched()
					working.Add(-1)
					w.cost = turnCost
					if round%3 == 0 {
						w.yield()
					} else {
						w.pause()
					}
				}
				w.pause()
			})
		}
	}
	all.Wait()
	if n := most.Load(); n < 1 || n > 3 || turns.free != 3 || turns.first != nil {
		t.Errorf("%d worked at once; %d turns are free", n, turns.free)
	}
}

// TestManyConnections floods a server over many connections, with small calls, large reads and calls that wait for a
// snapshot: all are answered, and meanwhile another client is.
func TestManyConnections(t *testing.T) {
	s := serveTree(t, makeTree(t))
	c := dial(t, s)
	top := c.root("/channel/default")
	big, three := c.lookup(top, "big"), c.lookup(top, "three")
	const conns, rounds, calls = 48, 20, 70
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
	// All turns are given back when the last connection waits for its client.
	for limit := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		s.turns.mu.Lock()
		free, waits := s.turns.free, s.turns.first != nil
		s.turns.mu.Unlock()
		if free == turnsAtOnce() && !waits {
			break
		}
		if time.Now().After(limit) {
			t.Fatalf("%d turns are free of %d; does anybody wait: %v", free, turnsAtOnce(), waits)
		}
	}
}
