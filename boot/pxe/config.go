package pxe

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"sidus/boot/protocol"
	"sidus/image/store"
)

// ErrUnrenderable is wrapped by the errors of values that would not be read
// by a boot loader as they are meant.
var ErrUnrenderable = errors.New("cannot be told to a boot loader")

// Loader names a boot loader, and with it the form of its configuration.
type Loader string

// The boot loaders.
const (
	PXELINUX Loader = "pxelinux" // reads kernel and initrd by TFTP
	// LPXELINUX is the PXELINUX that reads by HTTP too.
	LPXELINUX Loader = "lpxelinux"
	IPXE      Loader = "ipxe"
	GRUB      Loader = "grub"
)

// Config is all that a boot loader has to be told to boot one machine.
type Config struct {
	// MAC is the address of the card that the machine boots with.
	MAC net.HardwareAddr
	// Node is the machine's name, and Title what it boots, in people's words
	// ("debian@14"); both are shown on its screen. Either may be empty.
	Node  string
	Title string

	Session  protocol.SessionID
	Snapshot store.SnapshotID

	// KernelURL and InitrdURL are where the files are by HTTP.
	KernelURL string
	InitrdURL string
	// KernelPath and InitrdPath are the files' names on the TFTP server.
	KernelPath string
	InitrdPath string

	// ScriptURL is where the iPXE script of this machine is, to ask again
	// after a failure. Empty: the script gives up instead.
	ScriptURL string

	// CommandLine is the kernel's, as protocol.CommandLine renders it.
	CommandLine string
}

// SetFiles fills in the addresses of kernel, initrd and script for the
// Snapshot, Session and MAC of c, under the base address of the HTTP server
// ("http://10.0.0.1:8080").
func (c *Config) SetFiles(base string) {
	c.KernelURL = protocol.BootFileURL(base, c.Snapshot, protocol.Kernel, c.Session)
	c.InitrdURL = protocol.BootFileURL(base, c.Snapshot, protocol.Initrd, c.Session)
	c.KernelPath = protocol.BootFilePath(c.Snapshot, protocol.Kernel)
	c.InitrdPath = protocol.BootFilePath(c.Snapshot, protocol.Initrd)
	c.ScriptURL = ScriptURL(base, c.MAC)
}

// Then is what a machine does for which there is nothing to boot.
type Then int

// What a machine does for which there is nothing to boot.
const (
	ThenLocal Then = iota // starts from its local disk
	ThenRetry             // waits, and asks again
)

// Nothing is the answer of a Booter for a machine that has nothing to boot.
type Nothing struct {
	// Reason is one sentence for the person before the screen.
	Reason string
	Then   Then
	// Wait is how long the reason is shown before the machine goes on;
	// 0 means 10 s before the local disk and 30 s before asking again.
	Wait time.Duration
}

// Error returns the reason.
func (n *Nothing) Error() string { return "nothing to boot: " + n.Reason }

func (n *Nothing) wait() time.Duration {
	switch {
	case n.Wait > 0:
		return n.Wait.Round(time.Second)
	case n.Then == ThenRetry:
		return 30 * time.Second
	}
	return 10 * time.Second
}

// Booter decides what a machine boots.
type Booter interface {
	// Boot opens the session of a machine and says what it boots. The error
	// is a *Nothing if that is nothing. Any other error means that it cannot
	// be told now; the machine is then made to ask again.
	//
	// client is the machine's IP address, as far as it is known.
	Boot(ctx context.Context, mac net.HardwareAddr, client netip.Addr, loader Loader) (Config, error)
}

// Progress says that one boot has reached a step. Session and MAC are empty
// and Client is invalid where they are not known.
type Progress struct {
	Step     protocol.Step
	Session  protocol.SessionID
	MAC      net.HardwareAddr
	Snapshot store.SnapshotID
	Client   netip.Addr
}

// Stepper is told how far boots have got: the DHCP server tells of StepDHCP,
// the TFTP and HTTP servers of StepConfig (after the configuration was
// rendered), StepKernel and StepInitrd. A step may be told more than once, for
// firmware asks again for what it has not heard. By TFTP a kernel is asked for
// without a session: then the snapshot and the client's address say whose it
// is. It must not keep the caller waiting.
type Stepper interface {
	Step(ctx context.Context, p Progress)
}

// AsNothing turns the error of a Booter into what the machine is told.
func AsNothing(err error) *Nothing {
	if n, ok := errors.AsType[*Nothing](err); ok {
		return n
	}
	return &Nothing{Reason: "the server cannot tell for now; its log says why", Then: ThenRetry}
}

// validate refuses what a boot loader would not read as it is meant.
func (c Config) validate(loader Loader) error {
	if len(c.MAC) != 6 {
		return fmt.Errorf("hardware address %q: %w: it has not six bytes", c.MAC, ErrUnrenderable)
	}
	for what, text := range map[string]string{
		"node": c.Node, "title": c.Title, "kernel URL": c.KernelURL, "initrd URL": c.InitrdURL,
		"kernel path": c.KernelPath, "initrd path": c.InitrdPath, "script URL": c.ScriptURL,
		"command line": c.CommandLine,
	} {
		if err := checkLine(what, text); err != nil {
			return err
		}
	}
	if len(c.CommandLine) > protocol.MaxCommandLine {
		return fmt.Errorf("command line: %w: it has %d bytes, at most %d are safe", ErrUnrenderable, len(c.CommandLine), protocol.MaxCommandLine)
	}
	byHTTP := loader == IPXE || loader == LPXELINUX
	if byHTTP {
		for what, text := range map[string]string{"kernel URL": c.KernelURL, "initrd URL": c.InitrdURL, "script URL": c.ScriptURL} {
			if text == "" && what == "script URL" {
				continue
			}
			if err := checkURL(what, text); err != nil {
				return err
			}
		}
	} else {
		for what, text := range map[string]string{"kernel path": c.KernelPath, "initrd path": c.InitrdPath} {
			if text == "" || strings.ContainsAny(text, " \t$'\"\\{}") {
				return fmt.Errorf("%s %q: %w", what, text, ErrUnrenderable)
			}
		}
	}
	return nil
}

func checkURL(what, text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" || u.Host == "" || strings.ContainsAny(text, " \t$'\"\\{}") {
		return fmt.Errorf("%s %q: %w: it is no plain HTTP address", what, text, ErrUnrenderable)
	}
	return nil
}

// checkLine refuses control characters: a line break would let a value write
// commands of its own.
func checkLine(what, text string) error {
	if strings.ContainsFunc(text, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
		return fmt.Errorf("%s %q: %w: it has a control character", what, text, ErrUnrenderable)
	}
	return nil
}
