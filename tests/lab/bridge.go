package lab

import (
	"fmt"
	"net/netip"
)

// A Bridge is a network segment of the lab.
type Bridge struct {
	// Name is the name of the bridge device in the namespace.
	Name string
	// Prefix is the address of the namespace on this segment; not valid if
	// there is none.
	Prefix netip.Prefix
}

// AddBridge makes a network segment. The namespace gets the address of prefix
// on it ("10.77.0.1/24"); with a zero prefix it gets none, and nothing answers
// on that segment: a dead network. A name has at most 15 bytes.
func (l *Lab) AddBridge(name string, prefix netip.Prefix) (*Bridge, error) {
	steps := [][]string{
		// Without a forwarding delay a card can be used at once.
		{"link", "add", name, "type", "bridge", "stp_state", "0", "forward_delay", "0"},
		{"link", "set", name, "up"},
	}
	if prefix.IsValid() {
		steps = append(steps, []string{"address", "add", prefix.String(), "broadcast", "+", "dev", name})
	}
	for _, args := range steps {
		if err := l.ip(args...); err != nil {
			return nil, fmt.Errorf("lab %s: bridge %s: %w", l.name, name, err)
		}
	}
	b := &Bridge{Name: name, Prefix: prefix}
	l.mu.Lock()
	l.bridges[name] = b
	l.mu.Unlock()
	return b, nil
}

// addTap makes a tap device that is plugged into bridge.
func (l *Lab) addTap(bridge string) (string, error) {
	l.mu.Lock()
	_, ok := l.bridges[bridge]
	l.taps++
	name := fmt.Sprintf("tap%d", l.taps)
	l.mu.Unlock()
	if !ok {
		return "", fmt.Errorf("lab %s: no bridge %q", l.name, bridge)
	}
	for _, args := range [][]string{
		{"tuntap", "add", name, "mode", "tap"},
		{"link", "set", name, "master", bridge, "up"},
	} {
		if err := l.ip(args...); err != nil {
			return "", fmt.Errorf("lab %s: %w", l.name, err)
		}
	}
	return name, nil
}

// SetLink plugs the device (a bridge or a tap) in or out.
func (l *Lab) SetLink(device string, up bool) error {
	state := "down"
	if up {
		state = "up"
	}
	return l.ip("link", "set", device, state)
}
