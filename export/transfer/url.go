package transfer

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"

	"sidus/image/store"
)

// DefaultPort is the TCP port on which a receiver listens for TLS.
const DefaultPort = 7468

// Address says where a receiver is.
type Address struct {
	Scheme string // ssh or tls
	User   string // ssh: "" is what ssh chooses
	Host   string
	Port   int    // 0: what ssh chooses, or DefaultPort
	State  string // ssh: the state folder there; "" is the default
}

// ParseAddress reads ssh://[USER@]HOST[:PORT][/STATE] or tls://HOST[:PORT]. The
// error wraps store.ErrBadName.
func ParseAddress(text string) (a Address, err error) {
	bad := func(format string, args ...any) (Address, error) {
		return Address{}, fmt.Errorf("%q is no address of a receiver: %w: %s; write ssh://[USER@]HOST[:PORT][/STATE] or tls://HOST[:PORT]",
			text, store.ErrBadName, fmt.Sprintf(format, args...))
	}
	u, err := url.Parse(text)
	if err != nil {
		return bad("it is no URL")
	}
	a = Address{Scheme: u.Scheme, Host: u.Hostname(), State: strings.TrimSuffix(u.Path, "/")}
	if u.User != nil {
		if _, secret := u.User.Password(); secret {
			return bad("a password does not belong there (use a key)")
		}
		a.User = u.User.Username()
	}
	if port := u.Port(); port != "" {
		if a.Port, err = strconv.Atoi(port); err != nil || a.Port < 1 || a.Port > 65535 {
			return bad("the port %s", port)
		}
	}
	odd := func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) }
	switch {
	case a.Scheme != "ssh" && a.Scheme != "tls":
		return bad("the scheme %q", a.Scheme)
	case a.Host == "" || strings.HasPrefix(a.Host, "-") || strings.ContainsFunc(a.Host, odd):
		return bad("the host %q", a.Host)
	case strings.HasPrefix(a.User, "-") || strings.ContainsFunc(a.User, odd):
		return bad("the user %q", a.User)
	case u.RawQuery != "" || u.Fragment != "" || u.Opaque != "":
		return bad("something follows the path")
	case a.Scheme == "tls" && (a.User != "" || a.State != ""):
		return bad("a TLS receiver has neither users nor folders")
	case a.State != "" && path.Clean(a.State) != a.State || strings.ContainsFunc(a.State, unicode.IsControl):
		return bad("the folder %q", a.State)
	}
	return a, nil
}

// String writes the address as ParseAddress reads it.
func (a Address) String() string {
	host := a.Host
	if a.Port != 0 {
		host = net.JoinHostPort(a.Host, strconv.Itoa(a.Port))
	} else if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	u := url.URL{Scheme: a.Scheme, Host: host, Path: a.State}
	if a.User != "" {
		u.User = url.User(a.User)
	}
	return u.String()
}
