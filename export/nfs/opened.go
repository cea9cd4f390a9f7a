package nfs

import "sidus/image/store"

// Opened lists the snapshots that are open now, in no particular order.
func (s *Server) Opened() []store.SnapshotID {
	s.start()
	s.snapshots.mu.RLock()
	defer s.snapshots.mu.RUnlock()
	var ids []store.SnapshotID
	for _, slot := range s.snapshots.slots {
		if slot.snap != nil {
			ids = append(ids, slot.snap.name)
		}
	}
	return ids
}
