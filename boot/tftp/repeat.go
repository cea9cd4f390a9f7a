package tftp

import (
	"maps"
	"net/netip"
	"sync"
	"time"
)

const (
	// earlyRepeat is how long a client may send a request again that it has no
	// answer to: after the first packet of a file, and after the last of an answer
	// if it has asked for nothing else since. PXELINUX asks for two minutes, more
	// and more seldom (TimeoutTable in its core/fs/pxe/tftp.c).
	// Firmware that is started again in that time, and comes to the same file, asks
	// until this is over.
	earlyRepeat = 4 * time.Second
	// lateRepeat is the same after what the client has acknowledged last, and after
	// it has asked for something else: a busy server reads late what was sent
	// before, and its goroutines get what it reads in any order.
	lateRepeat = time.Second
)

// repeats tells new requests from those that a client sends again, from the
// same port, because it has no answer yet; PXELINUX does so after a tenth of a
// second. A second answer would come from another port of this server, when the
// client has gone on with the first. Where it asks for the next file from the
// port that it had before, as PXELINUX does, it would take the second answer
// for that file's: the loader's module for the configuration, or for want of a
// file under one name that there is none under the next, and after the last it
// boots nothing.
//
// A repeat needs no answer: what the first request began sends its packets
// again by itself. What a client asks when it has acknowledged nothing for a
// while, or has asked for something else, is no repeat: firmware that was
// started again asks for the same from the same port.
type repeats struct {
	mu     sync.Mutex
	known  map[asked]*answering
	latest map[netip.AddrPort]*answering // of what each client has asked last
	swept  time.Time                     // when what is too old was last thrown out
}

// asked is a client's end and what it wants there.
type asked struct {
	client netip.AddrPort
	file   string
}

// answering is the state of a request that is not forgotten. Its fields are
// protected by repeats.mu.
type answering struct {
	begun  time.Time // when the first packet was sent, zero before
	heard  time.Time // when the client acknowledged one last
	ended  time.Time // when the client had been told the last of it, zero before
	passed time.Time // when the client asked for something else, zero before
}

func newRepeats() *repeats {
	return &repeats{known: map[asked]*answering{}, latest: map[netip.AddrPort]*answering{}}
}

// isRepeat tells whether what is asked once more at that time was sent for want
// of this answer.
func (a *answering) isRepeat(now time.Time) bool {
	switch {
	case !a.ended.IsZero():
		return now.Sub(a.ended) <= lateRepeat || now.Sub(a.ended) <= earlyRepeat && (a.passed.IsZero() || now.Sub(a.passed) <= lateRepeat)
	case a.begun.IsZero():
		return true
	}
	return now.Sub(a.begun) <= earlyRepeat || now.Sub(a.heard) <= lateRepeat
}

// begin returns the state of a request, nil if it is a repeat. In the end one
// of the two is to be called: answered when the client has been told the last
// of it, or forget if it has not, and may ask again.
func (r *repeats) begin(a asked, now time.Time) *answering {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now.Sub(r.swept) > lateRepeat {
		maps.DeleteFunc(r.known, func(_ asked, old *answering) bool { return !old.isRepeat(now) })
		maps.DeleteFunc(r.latest, func(_ netip.AddrPort, old *answering) bool { return !old.isRepeat(now) })
		r.swept = now
	}
	if old := r.known[a]; old != nil && old.isRepeat(now) {
		return nil
	}
	if before := r.latest[a.client]; before != nil {
		before.passed = now
	}
	state := &answering{}
	r.known[a], r.latest[a.client] = state, state
	return state
}

// sends is called before the first packet of an answer.
func (r *repeats) sends(state *answering, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state.begun = now
}

// hears is called when the client has acknowledged a packet.
func (r *repeats) hears(state *answering, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state.heard = now
}

func (r *repeats) answered(state *answering, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	state.ended = now
}

func (r *repeats) forget(a asked, state *answering) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.known[a] == state {
		delete(r.known, a)
	}
	if r.latest[a.client] == state {
		delete(r.latest, a.client)
	}
}
