package portmap

import (
	"context"
	"errors"
	"fmt"
)

// ErrUnknown is wrapped by errors that say that a program is not registered.
var ErrUnknown = errors.New("not registered with the port mapper of this machine")

// Find asks the port mapper of this machine for the TCP port of a program. The
// error wraps ErrUnknown if it knows none.
func Find(ctx context.Context, program, version uint32) (uint16, error) {
	known, err := registrar{addr: fmt.Sprintf("127.0.0.1:%d", Port)}.dump(ctx)
	if err != nil {
		return 0, fmt.Errorf("ask the port mapper of this machine: %w", err)
	}
	for _, m := range known {
		if m.Program == program && m.Version == version && m.Protocol == TCP && m.Port != 0 {
			return m.Port, nil
		}
	}
	return 0, fmt.Errorf("program %d version %d: %w", program, version, ErrUnknown)
}
