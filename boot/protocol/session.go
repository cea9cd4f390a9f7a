package protocol

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// SessionID names a session, one boot of one node: 128 random bits as 32
// lowercase hexadecimal digits.
type SessionID string

// NewSessionID makes a SessionID that nothing has yet.
func NewSessionID() SessionID {
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails, see crypto/rand
	return SessionID(hex.EncodeToString(raw[:]))
}

// ParseSessionID checks that text is a SessionID. The error wraps
// ErrMalformed.
func ParseSessionID(text string) (SessionID, error) {
	if !isHex32(text) {
		return "", fmt.Errorf("session %.40q: %w: it has 32 lowercase hexadecimal digits", text, ErrMalformed)
	}
	return SessionID(text), nil
}

func isHex32(text string) bool {
	if len(text) != 32 {
		return false
	}
	for i := range len(text) {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
