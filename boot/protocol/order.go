package protocol

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"sidus/image/store"
)

// Action says what an order wants.
type Action string

// ActionUpdate wants the agent to stack the /usr of a snapshot over the one
// that runs. An agent leaves orders alone whose action it does not know.
const ActionUpdate Action = "update"

// Order is what a server wants from the agent of one session.
type Order struct {
	// Number counts up over the whole site, from 1. An order that comes again
	// has the same number.
	Number   int64            `json:"number"`
	Action   Action           `json:"action"`
	Snapshot store.SnapshotID `json:"snapshot"`
}

// Orders is what a server answers to an agent that asks for orders.
type Orders struct {
	Protocol int     `json:"protocol"`
	Orders   []Order `json:"orders"`
}

// OrdersURL is where the agent of a session asks for orders with a number
// greater than after.
func OrdersURL(base string, session SessionID, after int64) string {
	return strings.TrimSuffix(base, "/") + "/v1/sessions/" + string(session) + "/orders?after=" + strconv.FormatInt(after, 10)
}

// DecodeOrders reads a server's answer. Unknown keys and orders of unknown
// actions are let pass: the server may be newer than the agent. The error
// wraps ErrTooLarge or ErrMalformed, or is the reader's own.
func DecodeOrders(from io.Reader) (Orders, error) {
	data, err := readLimited("orders", from)
	if err != nil {
		return Orders{}, err
	}
	var o Orders
	if err := json.Unmarshal(data, &o); err != nil {
		return Orders{}, fmt.Errorf("orders: %w: %v", ErrMalformed, err)
	}
	if o.Protocol < 1 {
		return Orders{}, fmt.Errorf("orders: %w: protocol %d", ErrMalformed, o.Protocol)
	}
	o.Orders = slices.DeleteFunc(o.Orders, func(order Order) bool { return order.Action != ActionUpdate })
	for _, order := range o.Orders {
		if order.Number < 1 {
			return Orders{}, fmt.Errorf("orders: %w: number %d", ErrMalformed, order.Number)
		}
		if err := order.Snapshot.Validate(); err != nil {
			return Orders{}, fmt.Errorf("orders: %w: %v", ErrMalformed, err)
		}
	}
	return o, nil
}

const (
	maxReason = 1000 // bytes
	maxNotes  = 20
	maxNote   = 500 // bytes
)

// Outcome is what became of an order.
type Outcome struct {
	// Order is the order's number.
	Order    int64            `json:"order"`
	Snapshot store.SnapshotID `json:"snapshot"`
	// Reason says why it failed; "" if it did not.
	Reason string `json:"reason,omitempty"`
	// Held is set if it failed and the node may use the snapshot all the same.
	Held bool `json:"held,omitempty"`
	// Notes are sentences for the administrator.
	Notes []string `json:"notes,omitempty"`
}

// Clip cuts what is longer than a report may have, and takes control
// characters out.
func (o Outcome) Clip() Outcome {
	o.Reason = clip(o.Reason, maxReason)
	o.Notes = slices.Clone(o.Notes[:min(len(o.Notes), maxNotes)])
	for i := range o.Notes {
		o.Notes[i] = clip(o.Notes[i], maxNote)
	}
	return o
}

func clip(text string, limit int) string {
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
	return strings.ToValidUTF8(text[:min(len(text), limit)], "")
}

func (o Outcome) validate(event Event) error {
	if o.Order < 1 {
		return fmt.Errorf("%w: order %d", ErrMalformed, o.Order)
	}
	if err := o.Snapshot.Validate(); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if (event == EventUpdateFailed) != (o.Reason != "") {
		return fmt.Errorf("%w: event %s with the reason %.80q", ErrMalformed, event, o.Reason)
	}
	if len(o.Reason) > maxReason || hasControl(o.Reason) {
		return fmt.Errorf("%w: reason %.80q", ErrMalformed, o.Reason)
	}
	if len(o.Notes) > maxNotes {
		return fmt.Errorf("%w: %d notes", ErrMalformed, len(o.Notes))
	}
	for _, note := range o.Notes {
		if len(note) > maxNote || hasControl(note) {
			return fmt.Errorf("%w: note %.80q", ErrMalformed, note)
		}
	}
	return nil
}
