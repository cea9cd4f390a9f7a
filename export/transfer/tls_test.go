package transfer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"sidus/image"
	"sidus/image/store"
)

// listen makes a site wait for senders, and returns where.
func listen(t *testing.T, s *testSite, identity *Identity) Address {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.receiver().Listen(ctx, l, identity) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-ended)
	})
	return Address{Scheme: "tls", Host: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
}

func TestTLS(t *testing.T) {
	a, b, list := pair(t, true)
	identity, err := LoadIdentity(b.layout, false)
	must(t, err)
	again, err := LoadIdentity(b.layout, false)
	must(t, err)
	if again.Token() != identity.Token() {
		t.Error("the identity is another one each time")
	}
	address := listen(t, b, identity)
	token, err := ParseToken(identity.Token().Text() + "\n")
	must(t, err)
	report, err := a.sender().Replicate(t.Context(), DialTLS(address, token))
	must(t, err)
	if a.view() != b.view() || len(report.Snapshots) != len(list) {
		t.Error("the replica holds something else")
	}

	wrong := token
	wrong.secret[5] ^= 1
	if _, err := a.sender().Replicate(t.Context(), DialTLS(address, wrong)); !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), "receive --token") {
		t.Errorf("a wrong secret: %v", err)
	}
	other := token
	other.fingerprint[5] ^= 1
	if _, err := a.sender().Replicate(t.Context(), DialTLS(address, other)); err == nil || !strings.Contains(err.Error(), "another server") {
		t.Errorf("a wrong fingerprint: %v", err)
	}
	renewed, err := LoadIdentity(b.layout, true)
	must(t, err)
	if renewed.Token() == identity.Token() {
		t.Error("the new token is the old one")
	}
	for _, text := range []string{a.logged.String(), b.logged.String(), fmt.Sprint(token), fmt.Sprintf("%v %+v %#v", token, token, identity.Token())} {
		for _, secret := range []string{string(token.secret[:]), token.Text(), token.Text()[len(token.Text())-20:], fmt.Sprintf("%x", token.secret), fmt.Sprintf("%x", token.secret[:8])} {
			if strings.Contains(text, secret) {
				t.Errorf("a secret is written: %s", text)
			}
		}
	}
	if !strings.Contains(b.logged.String(), "begins to replicate") || !strings.Contains(b.logged.String(), "token is wrong") {
		t.Errorf("the log says nothing:\n%s", b.logged.String())
	}
}

// TestStrangers lets others connect: they cost nothing, and the receiver goes
// on.
func TestStrangers(t *testing.T) {
	a, b, list := pair(t, true)
	identity, err := LoadIdentity(b.layout, false)
	must(t, err)
	address := listen(t, b, identity)
	for _, text := range []string{"", "GET / HTTP/1.0\r\n\r\n", preface, strings.Repeat("x", 100000)} {
		conn, err := net.Dial("tcp", net.JoinHostPort(address.Host, fmt.Sprint(address.Port)))
		must(t, err)
		_, _ = conn.Write([]byte(text))
		_ = conn.Close()
	}
	connect := DialTLS(address, identity.Token())
	_, err = a.sender().Send(t.Context(), connect, list[0], nil, "")
	must(t, err)
}

// TestSilentStrangers: those who say nothing do not keep others out.
func TestSilentStrangers(t *testing.T) {
	a, b, list := pair(t, true)
	identity, err := LoadIdentity(b.layout, false)
	must(t, err)
	address := listen(t, b, identity)
	for range maxWaiting + 8 {
		conn, err := net.Dial("tcp", net.JoinHostPort(address.Host, fmt.Sprint(address.Port)))
		must(t, err)
		t.Cleanup(func() { _ = conn.Close() })
	}
	begun := time.Now()
	_, err = a.sender().Send(t.Context(), DialTLS(address, identity.Token()), list[0], nil, "")
	must(t, err)
	if took := time.Since(begun); took > authTime/2 {
		t.Errorf("it took %v", took)
	}
	if said := b.logged.String(); strings.Contains(said, "no token came") {
		t.Errorf("who had to make room is logged, so that strangers fill the log:\n%s", said)
	}
}

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]Address{
		"ssh://store2":                       {Scheme: "ssh", Host: "store2"},
		"ssh://root@store2:2222/srv/sidus":   {Scheme: "ssh", User: "root", Host: "store2", Port: 2222, State: "/srv/sidus"},
		"ssh://root@[fe80::1]/srv/sidus":     {Scheme: "ssh", User: "root", Host: "fe80::1", State: "/srv/sidus"},
		"tls://10.0.0.2":                     {Scheme: "tls", Host: "10.0.0.2"},
		"tls://[::1]:7":                      {Scheme: "tls", Host: "::1", Port: 7},
		"ssh://store2/a%20folder/with'quote": {Scheme: "ssh", Host: "store2", State: "/a folder/with'quote"},
	} {
		got, err := ParseAddress(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
			continue
		}
		if again, err := ParseAddress(got.String()); err != nil || again != want {
			t.Errorf("%s: written as %s, read as %+v, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "store2", "http://store2", "ssh://", "ssh://-oProxyCommand=x", "ssh://-l@store2", "ssh://root:secret@store2",
		"tls://root@store2", "tls://store2/srv", "ssh://store2:0", "ssh://store2:99999", "ssh://store2/a/../b", "ssh://store2?x=1", "ssh://sto re", "ssh:store2", "ssh://a/b\nc"} {
		if a, err := ParseAddress(text); !errors.Is(err, store.ErrBadName) || strings.Contains(text, "secret") && strings.Contains(fmt.Sprint(a), "secret") {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
	}
}

func TestParseToken(t *testing.T) {
	i, err := LoadIdentity(image.Layout{Dir: t.TempDir()}, false)
	must(t, err)
	good := i.Token().Text()
	for _, text := range []string{"", "x", good[:len(good)-1], good + "A", strings.ToUpper(good), "sidus1-" + strings.Repeat("!", 86)} {
		if _, err := ParseToken(text); err == nil || text != "" && text != "x" && strings.Contains(err.Error(), text) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}
