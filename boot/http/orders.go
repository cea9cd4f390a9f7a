package http

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"

	"sidus/boot/protocol"
)

// orders holds the answer until there are orders. Agents that were all
// answered at once need not ask again all at once.
func (h *handler) orders(w http.ResponseWriter, r *http.Request) {
	session, err := protocol.ParseSessionID(r.PathValue("session"))
	if err != nil {
		http.Error(w, "unknown session", http.StatusNotFound)
		return
	}
	after, err := strconv.ParseInt(or(r.URL.Query().Get("after"), "0"), 10, 64)
	if err != nil || after < 0 {
		http.Error(w, "after is no number", http.StatusBadRequest)
		return
	}
	// The deadline for reading the request would end the waiting.
	if err := http.NewResponseController(w).SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.log.WithError(err).Warn("http: orders")
	}
	ctx, cancel := context.WithTimeout(r.Context(), protocol.HoldOrders-rand.N(protocol.HoldOrders/5))
	defer cancel()
	orders, err := h.Orders.Orders(ctx, session, after)
	switch {
	case errors.Is(err, protocol.ErrUnknownSession):
		http.Error(w, "unknown session", http.StatusNotFound)
		return
	case err != nil:
		h.log.WithField("session", session).WithError(err).Error("http: no orders can be given")
		w.Header().Set("Retry-After", "30")
		http.Error(w, "cannot be told for now", http.StatusServiceUnavailable)
		return
	}
	if orders == nil {
		orders = []protocol.Order{}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(protocol.Orders{Protocol: protocol.Version, Orders: orders})
}
