package http

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// keeper is a listener that keeps its connections.
type keeper struct {
	net.Listener
	accepted chan *net.TCPConn
}

func (k keeper) Accept() (net.Conn, error) {
	c, err := k.Listener.Accept()
	if err == nil {
		k.accepted <- c.(*net.TCPConn)
	}
	return c, err
}

// TestFewPacketsForSyslinux looks at what the server's socket holds for a client
// that reads nothing, and then reads all of it.
func TestFewPacketsForSyslinux(t *testing.T) {
	m := &machine{dir: t.TempDir()}
	content := make([]byte, 20<<20)
	_, _ = rand.Read(content)
	if err := os.WriteFile(filepath.Join(m.dir, "kernel"), content, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	k := keeper{l, make(chan *net.TCPConn, 2)}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error)
	go func() { served <- (&Server{Files: m}).Serve(ctx, k) }()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	}()
	for agent, few := range map[string]bool{"Syslinux/6.04": true, "iPXE/1.21.1": false} {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.(*net.TCPConn).SetReadBuffer(64 << 10); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "GET %s HTTP/1.0\r\nUser-Agent: %s\r\n\r\n", kernel, agent)
		conn := <-k.accepted
		queued := func() (n int) {
			raw, err := conn.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); err != nil {
				t.Fatal(err)
			}
			return n
		}
		// Until the client's buffer is full, and the server's holds all that it
		// will.
		last := -1
		for now := queued(); now != last || now == 0; now = queued() {
			last = now
			time.Sleep(100 * time.Millisecond)
		}
		if few && (last < 2*1460 || last > 3*1460) {
			t.Errorf("%s: %d bytes are on their way, and not two or three packets", agent, last)
		} else if !few && last < 14*1460 {
			t.Errorf("%s: only %d bytes are on their way", agent, last)
		}
		response, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(response.Body)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: %d bytes, %v", agent, len(got), err)
		}
	}
}
