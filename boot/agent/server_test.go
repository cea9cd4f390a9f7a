package agent

import (
	"errors"
	"testing"

	"sidus/boot/protocol"
)

func TestServer(t *testing.T) {
	const id = "0123456789abcdef0123456789abcdef"
	// A newer protocol, no BOOTIF, a word that is not known.
	base, session, err := Server("BOOT_IMAGE=x sidus.protocol=9 sidus.session=" + id + " sidus.new=1 sidus.http=http://10.0.0.1:8080 quiet\n")
	if err != nil || base != "http://10.0.0.1:8080" || session != id {
		t.Errorf("%q, %q, %v", base, session, err)
	}
	for line, want := range map[string]error{
		"root=/dev/sda1 quiet":                                   protocol.ErrNotSidus,
		"sidus.session=" + id:                                    protocol.ErrNotSidus,
		"sidus.session=../x sidus.http=http://10.0.0.1":          protocol.ErrMalformed,
		"sidus.session=" + id + " sidus.http=file:///etc/passwd": protocol.ErrMalformed,
		"sidus.session=" + id + " sidus.http=http://%zz":         protocol.ErrMalformed,
	} {
		if _, _, err := Server(line); !errors.Is(err, want) {
			t.Errorf("%s: %v", line, err)
		}
	}
}
