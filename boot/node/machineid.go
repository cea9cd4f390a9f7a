package node

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
)

// MachineID returns the machine-id(5) of a node: 32 hexadecimal digits that
// differ between nodes and sites, stay the same for one node, and do not tell
// the site's key. It is HMAC-SHA256(key, "machine-id:"+mac), cut to 16 bytes,
// with the version and variant of a random UUID (RFC 9562 5.4), as systemd
// wants it.
func MachineID(key [32]byte, mac MAC) string {
	hash := hmac.New(sha256.New, key[:])
	hash.Write([]byte("machine-id:" + mac.String()))
	id := hash.Sum(nil)[:16]
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return hex.EncodeToString(id)
}
