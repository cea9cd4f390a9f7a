package nfs

import (
	"sync"

	"sidus/export/internal/processors"
)

// What answering costs is counted in units. A simple call is one; it takes a
// processor one to four microseconds.
const (
	costBytes = 16 << 10  // of replies cost a unit
	turnCost  = 64        // what a turn may cost
	pieceSize = 256 << 10 // bytes of file data that are sent at once
)

// usualConnections is how many connections a client has at most that is no
// burden: Linux' nconnect is 16 or less.
const usualConnections = 16

// turnsAtOnce is how many turns there are at once: one less than the machine has
// processors, but one at least.
func turnsAtOnce() int { return max(1, processors.Count()-1) }

// turns share the processors out among clients.
//
// The calls of light clients are answered at once. The others, and whoever
// works longer than a turn without having to wait for requests, take turns,
// turnsAtOnce of them at a time, unless there is only one client. When a turn
// ends, the next one goes to the client that had none for the longest time,
// however many connections each has.
type turns struct {
	clients *clients

	mu          sync.Mutex
	free        int     // turns that nobody has
	first, last *client // those with somebody who waits, in order
}

// worker is a goroutine that works for a client: that of a connection, or of a
// call that is deferred.
type worker struct {
	turns  *turns
	client *client
	taken  bool          // it has a turn
	busy   bool          // it has worked for longer than a turn since it last waited for requests
	cost   int           // since its turn began
	ready  chan struct{} // its turn has come
	next   *worker       // who waits behind it
}

// workers is a queue of a client's workers.
type workers struct{ first, last *worker }

// others tells whether there is anybody else whom a worker could keep waiting.
func (w *worker) others() bool {
	return w.turns.clients.others(w.client)
}

// resume is called when a worker goes on after it had to wait for something.
func (w *worker) resume() {
	if !w.taken && (w.busy || w.client.conns.Load() > usualConnections) && w.others() {
		w.turns.take(w)
	}
}

// pause is called before a worker waits for something.
func (w *worker) pause() {
	w.cost = 0
	if w.taken {
		w.taken = false
		setSlice(lightSlice)
		w.turns.give()
	}
}

// over tells whether the worker has worked for the length of a turn.
func (w *worker) over() bool { return w.cost >= turnCost }

// yield ends a turn. It returns when the next one has come.
func (w *worker) yield() {
	w.cost = 0
	w.busy = true
	if !w.others() {
		return
	}
	if !w.taken {
		w.turns.take(w)
		return
	}
	t := w.turns
	t.mu.Lock()
	next := t.pop()
	if next == nil {
		t.mu.Unlock()
		return
	}
	t.push(w)
	t.mu.Unlock()
	setSlice(lightSlice)
	next.ready <- struct{}{}
	<-w.ready
	setSlice(turnSlice)
}

// take waits for a turn.
func (t *turns) take(w *worker) {
	t.mu.Lock()
	if t.free > 0 {
		t.free--
		t.mu.Unlock()
	} else {
		t.push(w)
		t.mu.Unlock()
		<-w.ready
	}
	w.taken = true
	setSlice(turnSlice)
}

// give gives a turn to the next one.
func (t *turns) give() {
	t.mu.Lock()
	next := t.pop()
	if next == nil {
		t.free++
	}
	t.mu.Unlock()
	if next != nil {
		next.ready <- struct{}{}
	}
}

// push has a worker wait. The caller holds mu.
func (t *turns) push(w *worker) {
	if w.ready == nil {
		w.ready = make(chan struct{}, 1)
	}
	p := w.client
	if p.waiting.first != nil {
		p.waiting.last.next = w
		p.waiting.last = w
		return
	}
	p.waiting = workers{w, w}
	t.append(p)
}

// append puts a client at the end. The caller holds mu.
func (t *turns) append(p *client) {
	if t.first == nil {
		t.first = p
	} else {
		t.last.next = p
	}
	t.last = p
}

// pop returns who is next, or nil. The caller holds mu.
func (t *turns) pop() *worker {
	p := t.first
	if p == nil {
		return nil
	}
	w := p.waiting.first
	p.waiting.first, w.next = w.next, nil
	t.first, p.next = p.next, nil
	if p.waiting.first != nil {
		t.append(p)
	}
	return w
}
