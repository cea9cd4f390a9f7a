package transfer

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sidus/image"
	"sidus/image/store/keptfiles"
)

// Token is what a sender needs for a receiver that listens for TLS: the
// fingerprint of the receiver's certificate, by which the sender knows it, and
// a secret, by which the receiver knows the sender.
type Token struct {
	fingerprint [sha256.Size]byte // SHA-256 of the certificate
	secret      [32]byte
}

const tokenPrefix = "sidus1-"

// Text is the token as it is copied from one server to the other. It is a
// secret.
func (t Token) Text() string {
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(append(t.fingerprint[:], t.secret[:]...))
}

// String keeps tokens out of logs.
func (t Token) String() string { return "a token" }

// GoString keeps tokens out of logs.
func (t Token) GoString() string { return t.String() }

// ParseToken reads what Text wrote. The error does not quote it.
func ParseToken(text string) (t Token, err error) {
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	b, err := base64.RawURLEncoding.Strict().DecodeString(rest)
	if !ok || err != nil || len(b) != len(t.fingerprint)+len(t.secret) {
		return t, errors.New("that is no token: `sidus receive --token` on the receiver prints it, one line that begins with " + tokenPrefix)
	}
	copy(t.fingerprint[:], b)
	copy(t.secret[:], b[len(t.fingerprint):])
	return t, nil
}

// Identity is what a receiver is known by: its certificate and the secret.
type Identity struct {
	certificate tls.Certificate
	token       Token
}

// Token is what senders need.
func (i *Identity) Token() Token { return i.token }

// The files of an identity, in image.Layout.TransferSecrets.
const (
	identityFile = "receiver.pem"   // certificate and key
	secretFile   = "receiver.token" // the secret, 32 bytes
)

// LoadIdentity reads a receiver's identity. What is missing is made; anew makes
// all of it anew, so that old tokens are worth nothing any more.
func LoadIdentity(layout image.Layout, anew bool) (*Identity, error) {
	dir := layout.TransferSecrets()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	text, err := makeOnce(filepath.Join(dir, identityFile), anew, makeCertificate)
	if err != nil {
		return nil, err
	}
	secret, err := makeOnce(filepath.Join(dir, secretFile), anew, func() ([]byte, error) {
		b := make([]byte, 32)
		_, err := rand.Read(b)
		return b, err
	})
	if err != nil {
		return nil, err
	}
	i := &Identity{}
	if i.certificate, err = tls.X509KeyPair(text, text); err != nil {
		return nil, fmt.Errorf("%s: %w; `sidus receive --token --new` makes a new one", filepath.Join(dir, identityFile), err)
	}
	if len(secret) != len(i.token.secret) {
		return nil, fmt.Errorf("%s has %d bytes; `sidus receive --token --new` makes a new one", filepath.Join(dir, secretFile), len(secret))
	}
	copy(i.token.secret[:], secret)
	i.token.fingerprint = sha256.Sum256(i.certificate.Certificate[0])
	return i, nil
}

// makeOnce reads a file, and makes it if it is not there.
func makeOnce(path string, anew bool, content func() ([]byte, error)) ([]byte, error) {
	if text, err := os.ReadFile(path); !anew && !errors.Is(err, fs.ErrNotExist) {
		return text, err
	}
	text, err := content()
	if err != nil {
		return nil, err
	}
	return text, keptfiles.Write(filepath.Dir(path), filepath.Base(path), bytes.NewReader(text))
}

// makeCertificate makes a key and a certificate that it signs itself. Senders
// compare the whole certificate: names and dates in it mean nothing.
func makeCertificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "sidus receive"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}

// dialTimeout bounds how long a connection may take to be made.
const dialTimeout = 30 * time.Second

// DialTLS connects to a receiver that listens, and shows it the token.
func DialTLS(a Address, token Token) Dial {
	return func(ctx context.Context) (io.ReadWriteCloser, error) {
		port := a.Port
		if port == 0 {
			port = DefaultPort
		}
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: dialTimeout}, Config: &tls.Config{
			MinVersion: tls.VersionTLS13,
			// It is not names that are trusted, but this one certificate.
			InsecureSkipVerify: true,
			VerifyConnection: func(state tls.ConnectionState) error {
				sum := sha256.Sum256(state.PeerCertificates[0].Raw)
				if subtle.ConstantTimeCompare(sum[:], token.fingerprint[:]) != 1 {
					return errors.New("its certificate is not the one that the token names: it is another server, or has a new token (`sidus receive --token` there prints it)")
				}
				return nil
			},
		}}
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(a.Host, strconv.Itoa(port)))
		if err != nil {
			return nil, fmt.Errorf("connect to %s: %w", a, err)
		}
		if _, err := conn.Write(token.secret[:]); err != nil {
			return nil, errors.Join(fmt.Errorf("connect to %s: %w", a, err), conn.Close())
		}
		return conn, nil
	}
}

// authTime is how long a sender may take to show his token. Of more than
// maxWaiting who are about to do so, who has waited longest has to go.
const (
	authTime   = 15 * time.Second
	maxWaiting = 32
)

// maxGreeting bounds what is read of a sender whose token is wrong, in bytes.
const maxGreeting = 1 << 20

// Listen answers senders that come by TLS, until ctx ends, and returns nil
// then. It closes l.
func (r *Receiver) Listen(ctx context.Context, l net.Listener, identity *Identity) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	config := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{identity.certificate}}
	var all sync.WaitGroup
	defer all.Wait()
	var waiting lobby
	for {
		conn, err := l.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			var passing interface{ Temporary() bool }
			if errors.As(err, &passing) && passing.Temporary() { // too many open files
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return err
		}
		waiting.enter(conn)
		all.Go(func() {
			peer := conn.RemoteAddr().String()
			secure := tls.Server(conn, config)
			err := r.authenticate(secure, identity)
			if !waiting.leave(conn) {
				return
			}
			if err == nil {
				err = r.Serve(ctx, secure, peer)
			} else {
				_ = secure.Close()
			}
			if err != nil && ctx.Err() == nil {
				r.Log.WithField("peer", peer).WithError(err).Warn("a sender is gone")
			}
		})
	}
}

// lobby is where connections wait that have shown no token yet. An honest sender
// is there for two round trips: when it is full it is full of others, and he is
// not the one who has waited longest.
type lobby struct {
	mu    sync.Mutex
	conns []net.Conn // the oldest first
}

// enter lets conn in, and closes the oldest if there is no room.
func (l *lobby) enter(conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) == maxWaiting {
		_ = l.conns[0].Close()
		l.conns = l.conns[1:]
	}
	l.conns = append(l.conns, conn)
}

// leave lets conn out. It returns false if that was closed to make room.
func (l *lobby) leave(conn net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := slices.Index(l.conns, conn)
	if at < 0 {
		return false
	}
	l.conns = slices.Delete(l.conns, at, at+1)
	return true
}

// authenticate reads the secret of a sender.
func (r *Receiver) authenticate(conn *tls.Conn, identity *Identity) error {
	if err := conn.SetDeadline(time.Now().Add(authTime)); err != nil {
		return err
	}
	var secret [32]byte
	if _, err := io.ReadFull(conn, secret[:]); err != nil {
		return fmt.Errorf("no token came: %w", err)
	}
	if subtle.ConstantTimeCompare(secret[:], identity.token.secret[:]) != 1 {
		err := fmt.Errorf("%w; `sidus receive --token` on %s prints the right one", ErrToken, hostname())
		c := newWire(conn)
		_ = c.greet()
		_ = c.send(msgError, remote(err))
		_ = conn.CloseWrite()
		// What he says is read until he has heard that and goes away, so that
		// closing does not take it back; nothing of it is kept.
		_, _ = io.CopyN(io.Discard, conn, maxGreeting)
		return err
	}
	return conn.SetDeadline(time.Time{})
}
