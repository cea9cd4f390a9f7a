package image

import (
	"context"
	"errors"
	"fmt"

	"sidus/image/store"
)

// ErrEncrypted is returned where a snapshot that is encrypted in the store would
// leave it in the clear.
var ErrEncrypted = errors.New("it is encrypted in the store, and would leave it in the clear")

// RefuseClear returns an error that wraps ErrEncrypted if a snapshot is encrypted
// in the store. Who hands out what a mount of it shows, asks first.
func (m *Manager) RefuseClear(ctx context.Context, s Snapshot) error {
	encrypter, ok := m.store.(store.Encrypter)
	if !ok {
		return nil
	}
	encrypted, err := encrypter.Encrypted(ctx, s.ID)
	if err == nil && encrypted {
		err = ErrEncrypted
	}
	if err != nil {
		return fmt.Errorf("%s: %w", s.Ref(), err)
	}
	return nil
}
