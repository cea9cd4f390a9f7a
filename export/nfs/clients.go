package nfs

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"sidus/image/store"
)

// client is what the server knows of one address. It outlives the client's
// connections, since sessions are kept alive by when it was last heard.
type client struct {
	addr    netip.Addr
	conns   atomic.Int32  // written with clients.mu held
	work    chan struct{} // one place for each call that waits for a disk
	refused atomic.Bool   // a refusal was logged

	calls, errors, bytes atomic.Uint64

	mu    sync.Mutex
	heard map[[16]byte]*atomic.Int64 // Unix milliseconds of the last call, by snapshot

	// Protected by turns.mu.
	waiting workers
	next    *client // the one whose turn comes after its
}

// clients are all clients.
type clients struct {
	mu    sync.Mutex
	all   map[netip.Addr]*client
	conns atomic.Int32 // written with mu held
}

// maxQuietClients bounds how many clients are remembered.
const maxQuietClients = 1 << 16

// enter counts a connection of a client. It returns false if there are too
// many of that client, or of all.
func (c *clients) enter(addr netip.Addr, l *Limits) (*client, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.all[addr]
	if p == nil {
		if len(c.all) >= maxQuietClients {
			c.dropQuiet()
		}
		p = &client{addr: addr, work: make(chan struct{}, l.WaitingPerClient), heard: map[[16]byte]*atomic.Int64{}}
		c.all[addr] = p
	}
	if int(c.conns.Load()) >= l.Connections || int(p.conns.Load()) >= l.ConnectionsPerClient {
		return p, false
	}
	c.conns.Add(1)
	p.conns.Add(1)
	return p, true
}

// dropQuiet forgets the clients that have no connection and were never heard.
// If there are none, it forgets all that have no connection.
func (c *clients) dropQuiet() {
	for _, heard := range []int{0, 1 << 30} {
		for addr, p := range c.all {
			p.mu.Lock()
			n := len(p.heard)
			p.mu.Unlock()
			if p.conns.Load() == 0 && n <= heard {
				delete(c.all, addr)
			}
		}
		if len(c.all) < maxQuietClients {
			return
		}
	}
}

func (c *clients) leave(p *client) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns.Add(-1)
	p.conns.Add(-1)
}

// others tells whether other clients than p are connected.
func (c *clients) others(p *client) bool {
	return c.conns.Load() > p.conns.Load()
}

func (c *clients) list() []*client {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*client, 0, len(c.all))
	for _, p := range c.all {
		all = append(all, p)
	}
	return all
}

// clock returns where to note when the client last used a snapshot.
func (p *client) clock(id [16]byte) *atomic.Int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := p.heard[id]
	if t == nil {
		t = new(atomic.Int64)
		p.heard[id] = t
	}
	return t
}

// ClientSnapshot names a client and a snapshot that it uses.
type ClientSnapshot struct {
	Client   netip.Addr
	Snapshot store.SnapshotID
}

// LastHeard tells when each client last made an NFS call for each snapshot,
// since the server was started.
func (s *Server) LastHeard() map[ClientSnapshot]time.Time {
	s.start()
	result := map[ClientSnapshot]time.Time{}
	for _, p := range s.clients.list() {
		p.mu.Lock()
		for id, t := range p.heard {
			result[ClientSnapshot{p.addr, store.SnapshotIDFromBytes(id)}] = time.UnixMilli(t.Load())
		}
		p.mu.Unlock()
	}
	return result
}
