package tftp

import (
	"net/netip"
	"sync"

	"sidus/boot/pxe"
)

// slots counts transfers, in all and of each client.
type slots struct {
	mu               sync.Mutex
	free, freeClient int
	used             map[netip.Addr]int
}

func newSlots(all, perClient int) *slots {
	return &slots{free: all, freeClient: perClient, used: map[netip.Addr]int{}}
}

// take takes a place; release gives it back.
func (s *slots) take(client netip.Addr) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.free == 0 || s.used[client] >= s.freeClient {
		return nil, false
	}
	s.free--
	s.used[client]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.free++
		if s.used[client]--; s.used[client] == 0 {
			delete(s.used, client)
		}
	}, true
}

// memory remembers the loader that each client has fetched last, of as many
// clients as it has room for.
type memory struct {
	mu    sync.Mutex
	room  int
	known map[netip.Addr]pxe.Loader
}

func newMemory(room int) *memory {
	return &memory{room: room, known: map[netip.Addr]pxe.Loader{}}
}

func (m *memory) set(client netip.Addr, l pxe.Loader) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.known[client]; !ok && len(m.known) >= m.room {
		for other := range m.known { // any: what is forgotten costs speed only
			delete(m.known, other)
			break
		}
	}
	m.known[client] = l
}

func (m *memory) get(client netip.Addr, otherwise pxe.Loader) pxe.Loader {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l, ok := m.known[client]; ok {
		return l
	}
	return otherwise
}
