package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"sidus/export/stream"
	"sidus/export/transfer"
	"sidus/image"
)

func sendCommand() *cli.Command {
	return &cli.Command{
		Name:      "send",
		Usage:     "send a snapshot to another server",
		ArgsUsage: "TREE@SNAP ssh://[USER@]HOST[:PORT][/STATE]|tls://HOST[:PORT]",
		Description: describe("The snapshot has the same ID there. Only what differs from the newest ancestor that the other server has is\n"+
			"sent, or from --base. What was cut goes on where it was. By ssh the other server is reached as you\n"+
			"reach it (the variable "+transfer.SSHVariable+" holds another ssh command, with options); by TLS it runs\n"+
			"`sidus receive --listen`, and its token is read from --token-file or the variable SIDUS_TOKEN.\n\n"+
			"What is encrypted in a ZFS store goes to another one as it is, even without its key. A server that takes\n"+
			"portable streams only would get it in the clear: that is refused without --decrypt.",
			"sidus send debian@14 ssh://root@store2", "sidus send debian@14 tls://store2 --token-file /root/store2.token --rate 10M"),
		Flags: reads(
			&cli.StringFlag{Name: "base", Usage: "only what differs from `TREE@SNAP`"},
			&cli.BoolFlag{Name: "portable", Usage: "send a portable stream, which any store takes"},
			decryptFlag(),
			&cli.StringFlag{Name: "tree", Usage: "list it there under the tree `NAME`"},
			rateFlag(), tokenFileFlag(), levelFlag(),
		),
		Action: siteAction(sendSnapshot),
	}
}

func rateFlag() cli.Flag {
	return &cli.StringFlag{Name: "rate", Usage: "send at most `BYTES` per second, with K, M or G"}
}

func tokenFileFlag() cli.Flag {
	return &cli.StringFlag{Name: "token-file", EnvVars: []string{"SIDUS_TOKEN_FILE"}, Usage: "TLS: the `FILE` with what `sidus receive --token` printed; - is standard input"}
}

func decryptFlag() cli.Flag {
	return &cli.BoolFlag{Name: "decrypt", Usage: "let what is encrypted in the store leave it in the clear, in a portable stream"}
}

func levelFlag() cli.Flag {
	return &cli.StringFlag{Name: "level", Value: "default", Usage: "compress at `N`: 1 to 19, fast, default, better, best, or none"}
}

func sendSnapshot(ctx context.Context, c *cli.Context, s *site) error {
	args, err := want(c)
	if err != nil {
		return err
	}
	snapshot, err := s.manager.Resolve(ctx, args[0])
	if err != nil {
		return err
	}
	var base *image.Snapshot
	if text := c.String("base"); text != "" {
		found, err := s.manager.Resolve(ctx, text)
		if err != nil {
			return err
		}
		if found.ID == snapshot.ID {
			return usagef("--base %s is the snapshot itself", text)
		}
		base = &found
	}
	dial, err := dialerOf(args[1], func() (string, error) { return readToken(c) })
	if err != nil {
		return err
	}
	sender, err := newSender(c, s)
	if err != nil {
		return err
	}
	if sender.Rate, err = rateOf(c); err != nil {
		return err
	}
	sender.Portable, sender.Decrypt = c.Bool("portable"), c.Bool("decrypt")
	report, err := sender.Send(ctx, dial, snapshot, base, c.String("tree"))
	if err != nil {
		return transferProblem(ctx, err)
	}
	return print(c, report, func(w io.Writer) {
		for _, sent := range report.Snapshots {
			what := "all of it"
			if sent.Base != "" {
				what = "the difference to " + string(sent.Base)
			}
			fmt.Fprintf(w, "sent %s (%s) to %s: %s, %s in %s\n", sent.Ref, sent.ID, report.Host, what,
				humanize.IBytes(uint64(report.Bytes)), time.Duration(report.Seconds*float64(time.Second)).Round(10*time.Millisecond))
		}
	})
}

// transferProblem says what a failed transfer means.
func transferProblem(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, transfer.ErrCut):
		return fmt.Errorf("%w\nwhat has arrived is kept: given again, the command goes on there", err)
	}
	return err
}

// newSender makes a sender with a progress bar.
func newSender(c *cli.Context, s *site) (*transfer.Sender, error) {
	level, err := stream.ParseLevel(c.String("level"))
	if err != nil {
		return nil, usagef("--level: %s", err)
	}
	sender := &transfer.Sender{Manager: s.manager, Store: s.store, Layout: s.layout, Program: "sidus " + version, Log: logrus.StandardLogger(), Level: level}
	var bar *byteProgress
	sender.Progress = func(ref string, p stream.Progress) {
		if p == (stream.Progress{}) {
			if bar != nil {
				bar.finish()
			}
			bar = nil
			return
		}
		if bar == nil {
			bar = newByteProgress("send " + ref)
		}
		bar.update(p.Payload, p.Total, p.Stream)
	}
	return sender, nil
}

func rateOf(c *cli.Context) (int64, error) {
	text := c.String("rate")
	if text == "" {
		return 0, nil
	}
	return parseSize("rate", text)
}

// dialerOf reads an address. token is called if one is wanted.
func dialerOf(text string, token func() (string, error)) (transfer.Dial, error) {
	address, err := transfer.ParseAddress(text)
	if err != nil {
		return nil, err
	}
	if address.Scheme == "ssh" {
		return transfer.DialSSH(address, term.IsTerminal(int(os.Stdin.Fd()))), nil
	}
	secret, err := token()
	if err != nil {
		return nil, err
	}
	parsed, err := transfer.ParseToken(secret)
	if err != nil {
		return nil, err
	}
	return transfer.DialTLS(address, parsed), nil
}

// maxToken is the longest token file that is read, in bytes.
const maxToken = 4096

// readToken reads the token that the command line names. It never stands on the
// command line itself, which others can see, and which the history keeps.
func readToken(c *cli.Context) (string, error) {
	path := c.String("token-file")
	if path == "" {
		if text := os.Getenv("SIDUS_TOKEN"); text != "" {
			return text, nil
		}
		return "", usagef("a tls:// address needs the receiver's token: `sidus receive --token` there prints it; give it in a file, by --token-file")
	}
	file := os.Stdin
	if path != "-" {
		var err error
		if file, err = os.Open(path); err != nil {
			return "", fmt.Errorf("--token-file: %w", err)
		}
		defer file.Close()
	}
	text, err := io.ReadAll(io.LimitReader(file, maxToken))
	if err != nil {
		return "", fmt.Errorf("--token-file: %w", err)
	}
	return string(text), nil
}

// targetToken is the file that keeps a target's token.
func (s *site) targetToken(target string) string {
	return filepath.Join(s.layout.TransferSecrets(), "target-"+target+".token")
}

// keepToken keeps a target's token, which was checked.
func (s *site) keepToken(target, text string) error {
	if err := os.MkdirAll(s.layout.TransferSecrets(), 0o700); err != nil {
		return err
	}
	return os.WriteFile(s.targetToken(target), []byte(strings.TrimSpace(text)+"\n"), 0o600)
}

func (s *site) dropToken(target string) error {
	if err := os.Remove(s.targetToken(target)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
