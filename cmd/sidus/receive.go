package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/export/transfer"
)

func receiveCommand() *cli.Command {
	return &cli.Command{
		Name:  "receive",
		Usage: "take what another server sends",
		Description: describe("Without an option it talks to one sender over standard input and output: `sidus send` and `sidus replicate`\n"+
			"start it here by ssh. --listen waits for senders that come by TLS; they need the token, one line that\n"+
			"holds this server's fingerprint and a secret, which --token prints. Who has it can write to this server\n"+
			"as root can, as who may log in by ssh can: keep it in a file that only root reads. --token --new makes\n"+
			"another one, and the old one is worth nothing any more (a receiver that listens must be started again).",
			"sidus receive --token", "sidus receive --listen 10.0.0.2", "sidus receive --listen 0.0.0.0:7468"),
		Flags: reads(
			&cli.StringFlag{Name: "listen", Usage: "wait for senders at `ADDRESS[:PORT]`"},
			&cli.BoolFlag{Name: "token", Usage: "print the token that senders need"},
			&cli.BoolFlag{Name: "new", Usage: "with --token: make a new one"},
		),
		Action: siteAction(receive),
	}
}

func receive(ctx context.Context, c *cli.Context, s *site) error {
	if _, err := want(c); err != nil {
		return err
	}
	if c.Bool("new") && !c.Bool("token") {
		return usagef("--new goes with --token")
	}
	if c.Bool("token") {
		identity, err := transfer.LoadIdentity(s.layout, c.Bool("new"))
		if err != nil {
			return err
		}
		text := identity.Token().Text()
		return print(c, map[string]string{"token": text}, func(w io.Writer) { fmt.Fprintln(w, text) })
	}
	receiver := &transfer.Receiver{Manager: s.manager, Store: s.store, Layout: s.layout, Program: "sidus " + version, Log: logrus.StandardLogger()}
	if address := c.String("listen"); address != "" {
		return receiveTLS(ctx, address, s, receiver)
	}
	if term.IsTerminal(int(os.Stdin.Fd())) {
		return usagef("`sidus receive` talks to a sender and not to a terminal: `sidus send` and `sidus replicate` start it by ssh; --listen waits for senders")
	}
	signal.Ignore(syscall.SIGPIPE) // a sender that goes away is an error of Write
	// Both can be closed while they are read: this ends the work when a signal comes.
	for _, file := range []*os.File{os.Stdin, os.Stdout} {
		_ = syscall.SetNonblock(int(file.Fd()), true)
	}
	peer := "standard input"
	if from := os.Getenv("SSH_CONNECTION"); from != "" {
		peer = from
	}
	return receiver.Serve(ctx, &pipes{
		in:  os.NewFile(0, "standard input"),
		out: os.NewFile(1, "standard output"),
	}, peer)
}

// pipes are standard input and output as one connection.
type pipes struct{ in, out *os.File }

func (p *pipes) Read(b []byte) (int, error)  { return p.in.Read(b) }
func (p *pipes) Write(b []byte) (int, error) { return p.out.Write(b) }
func (p *pipes) Close() error                { return errors.Join(p.in.Close(), p.out.Close()) }

func receiveTLS(ctx context.Context, address string, s *site, receiver *transfer.Receiver) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		host, port = address, strconv.Itoa(transfer.DefaultPort)
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		return usagef("--listen %s: the port is 1 to 65535", address)
	}
	identity, err := transfer.LoadIdentity(s.layout, false)
	if err != nil {
		return err
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", net.JoinHostPort(host, port))
	if err != nil {
		return fmt.Errorf("--listen %s: %w", address, err)
	}
	logrus.Infof("waiting for senders at %s; `sidus receive --token` prints what they need", listener.Addr())
	notifyReady()
	return receiver.Listen(ctx, listener, identity)
}
