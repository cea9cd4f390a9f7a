package agent

import (
	"fmt"
	"net/url"
	"strings"

	"sidus/boot/protocol"
)

// Server reads from a kernel's command line where to report to, and for which
// session. It asks for no more than these two words: a machine whose other
// words are newer than this agent, or incomplete, is up all the same. The
// error wraps protocol.ErrNotSidus if the machine was not booted by Sidus,
// protocol.ErrMalformed if a word makes no sense.
func Server(commandLine string) (base string, session protocol.SessionID, err error) {
	var name string
	for _, word := range strings.Fields(commandLine) {
		if value, ok := strings.CutPrefix(word, "sidus.http="); ok {
			base = value
		}
		if value, ok := strings.CutPrefix(word, "sidus.session="); ok {
			name = value
		}
	}
	if base == "" || name == "" {
		return "", "", fmt.Errorf("kernel command line: no sidus.http= with sidus.session=: %w", protocol.ErrNotSidus)
	}
	if u, err := url.Parse(base); err != nil || u.Scheme != "http" || u.Host == "" {
		return "", "", fmt.Errorf("kernel command line: sidus.http=%.80q: %w", base, protocol.ErrMalformed)
	}
	session, err = protocol.ParseSessionID(name)
	return base, session, err
}
