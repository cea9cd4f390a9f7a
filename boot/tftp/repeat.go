package tftp

import (
	"maps"
	"net/netip"
	"sync"
	"time"
)

// lateRepeat is how long after its answer a request may still arrive again: it
// was sent before the client had the answer.
const lateRepeat = 250 * time.Millisecond

// repeats tells new requests from those that a client sends again, from the
// same port, because it has no answer yet; PXELINUX does so after a tenth of a
// second. A second answer would come from another port of this server, when the
// client has gone on with the first. Where it asks for the next file from the
// port that it had before, as PXELINUX does, it would take the second answer
// for that file's: the loader's module for the configuration.
//
// A repeat needs no answer: what the first request began sends its packets
// again by itself.
type repeats struct {
	mu    sync.Mutex
	known map[asked]time.Time // when it was answered; zero: it is being answered
	swept time.Time           // when what is too old was last thrown out
}

// asked is a client's end and what it wants there.
type asked struct {
	client netip.AddrPort
	file   string
}

func newRepeats() *repeats { return &repeats{known: map[asked]time.Time{}} }

// begin says whether a request is new. Then one of the two is to be called:
// answered when the client has been told the last of it, or forget if it has
// not, and may ask again.
func (r *repeats) begin(a asked, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old := func(at time.Time) bool { return !at.IsZero() && now.Sub(at) > lateRepeat }
	if now.Sub(r.swept) > lateRepeat {
		maps.DeleteFunc(r.known, func(_ asked, at time.Time) bool { return old(at) })
		r.swept = now
	}
	if at, ok := r.known[a]; ok && !old(at) {
		return false
	}
	r.known[a] = time.Time{}
	return true
}

func (r *repeats) answered(a asked, now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[a] = now
}

func (r *repeats) forget(a asked) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, a)
}
