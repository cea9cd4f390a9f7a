package lab

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A NIC is a network card of a machine.
type NIC struct {
	// Bridge is the name of the segment that the card is plugged into.
	Bridge string
	// Model is QEMU's name of the card, "virtio-net-pci" if empty; "e1000" and
	// "rtl8139" have a PXE ROM, too.
	Model string
	// MAC is the hardware address; nil means 52:54:00:00:<machine>:<card>,
	// counted from 1 in each lab.
	MAC net.HardwareAddr
	// NoPXE keeps the firmware from booting with this card. The other cards
	// are tried in their order.
	NoPXE bool
}

// MachineOptions describes a virtual machine. Only NICs are needed, for a
// machine that boots from the network.
type MachineOptions struct {
	// Name is the name in messages and files; "machine<n>" if empty.
	Name string
	// NICs are the network cards, in the order of their PCI slots.
	NICs []NIC
	// Memory in MiB; 0 means 1024.
	Memory int
	// CPUs is the number of processors; 0 means 1.
	CPUs int
	// Machine is QEMU's machine type; "pc" if empty ("q35" is the other).
	Machine string
	// Accel is QEMU's accelerator; "tcg,thread=multi" if empty: software
	// emulation, which works everywhere.
	Accel string
	// Kernel, Initrd and CommandLine boot a kernel without any boot loader.
	Kernel, Initrd, CommandLine string
	// Args are added to QEMU's command line.
	Args []string
}

// A Machine is a virtual machine. It is off for good when QEMU has ended: on
// the guest's power-off, Quit, or Lab.Close.
type Machine struct {
	// Console is what the machine writes to its screen in text mode while the
	// firmware and the boot loader run, and to its first serial port later.
	Console *Transcript
	// MACs are the hardware addresses of the cards.
	MACs []net.HardwareAddr
	// Taps are the devices in the namespace that the cards are plugged into.
	Taps []string

	name    string
	process *Process
	qmp     *qmp
	stdin   io.WriteCloser
	shells  atomic.Int64
}

// Boot starts a machine. By default it boots from the network.
func (l *Lab) Boot(opts MachineOptions) (*Machine, error) {
	l.mu.Lock()
	l.machines++
	number := l.machines
	l.mu.Unlock()
	if opts.Name == "" {
		opts.Name = fmt.Sprintf("machine%d", number)
	}
	m := &Machine{name: opts.Name}
	args := []string{
		"-name", opts.Name,
		"-accel", or(opts.Accel, "tcg,thread=multi"),
		"-machine", or(opts.Machine, "pc"),
		"-smp", strconv.Itoa(max(opts.CPUs, 1)),
		"-m", strconv.Itoa(orInt(opts.Memory, 1024)),
		"-nodefaults", "-no-user-config", "-nographic", "-vga", "std",
		// The guest's random numbers come from here: it need not wait for some.
		"-device", "virtio-rng-pci",
		"-chardev", "stdio,id=console,signal=off,mux=off", "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
		"-boot", "order=n",
	}
	for i, nic := range opts.NICs {
		tap, err := l.addTap(nic.Bridge)
		if err != nil {
			return nil, err
		}
		mac := nic.MAC
		if mac == nil {
			mac = net.HardwareAddr{0x52, 0x54, 0, 0, byte(number), byte(i + 1)}
		}
		m.Taps = append(m.Taps, tap)
		m.MACs = append(m.MACs, mac)
		device := fmt.Sprintf("%s,netdev=net%d,mac=%s", or(nic.Model, "virtio-net-pci"), i, mac)
		if nic.NoPXE {
			device += ",romfile="
		} else {
			device += fmt.Sprintf(",bootindex=%d", i+1)
		}
		args = append(args,
			"-netdev", fmt.Sprintf("tap,id=net%d,ifname=%s,script=no,downscript=no", i, tap),
			"-device", device)
	}
	if opts.Kernel != "" {
		args = append(args, "-kernel", opts.Kernel, "-append", opts.CommandLine)
		if opts.Initrd != "" {
			args = append(args, "-initrd", opts.Initrd)
		}
	}
	cmd := exec.Command("qemu-system-x86_64", append(args, opts.Args...)...)
	// The temporary files of snapshot=on, which would outlive a QEMU that is
	// killed.
	cmd.Env = append(os.Environ(), "TMPDIR="+l.dir)

	// The monitor is one end of a socket pair: no path that could be too long,
	// taken, or left over.
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	cmd.ExtraFiles = []*os.File{theirs}
	if m.qmp, err = newQMP(os.NewFile(uintptr(pair[0]), "monitor")); err != nil {
		return nil, err
	}
	if m.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, errors.Join(err, m.qmp.conn.Close())
	}
	if m.process, err = l.start(cmd, opts.Name, filepath.Join(l.dir, fmt.Sprintf("%s.%d.console", opts.Name, number))); err != nil {
		return nil, errors.Join(err, m.qmp.conn.Close())
	}
	m.Console = m.process.Output
	go func() {
		<-m.process.done
		_ = m.qmp.conn.Close()
	}()
	if _, err := m.qmp.call("qmp_capabilities", nil); err != nil {
		_ = m.process.Close()
		return nil, fmt.Errorf("machine %s: %w: %s", m.name, err, tail([]byte(m.Console.String())))
	}
	return m, nil
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func orInt(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// WaitText waits until the console shows something that matches the regular
// expression text, from the machine's start on, and returns the submatches.
// To wait for what is said from now on, use Console.Len and Console.WaitFor.
func (m *Machine) WaitText(ctx context.Context, text string) ([]string, error) {
	found, _, err := m.Console.WaitFor(ctx, 0, regexp.MustCompile(text))
	if err != nil {
		return nil, fmt.Errorf("machine %s: %w", m.name, err)
	}
	return found, nil
}

// Type sends text to the serial console, as if it were typed.
func (m *Machine) Type(text string) error {
	_, err := io.WriteString(m.stdin, text)
	return err
}

// PowerDown presses the power button.
func (m *Machine) PowerDown() error { return m.do("system_powerdown", nil) }

// Reset presses the reset button.
func (m *Machine) Reset() error { return m.do("system_reset", nil) }

// Pause stops the machine's processors, Resume lets them go on.
func (m *Machine) Pause() error { return m.do("stop", nil) }

// Resume undoes Pause.
func (m *Machine) Resume() error { return m.do("cont", nil) }

// SetLink plugs the cable of the card with the given number (from 0) in or
// out, which the guest can see.
func (m *Machine) SetLink(nic int, up bool) error {
	return m.do("set_link", map[string]any{"name": fmt.Sprintf("net%d", nic), "up": up})
}

// Screenshot writes what the screen shows to a file in the format PPM.
func (m *Machine) Screenshot(file string) error {
	return m.do("screendump", map[string]any{"filename": file})
}

// Quit pulls the plug and waits until QEMU has ended.
func (m *Machine) Quit() error {
	if m.do("quit", nil) != nil {
		return m.process.Close()
	}
	<-m.process.done
	return nil
}

// Wait waits until the machine is off.
func (m *Machine) Wait(ctx context.Context) error {
	if err := m.process.Wait(ctx); err != nil {
		return fmt.Errorf("machine %s: %w; the last words:\n%s", m.name, err, tail([]byte(m.Console.String())))
	}
	return nil
}

// Events are what QEMU has told of the machine so far.
func (m *Machine) Events() []Event { return m.qmp.all() }

// WaitEvent waits for the first event of that name at or behind number from
// of Events; it returns the number behind it, too.
func (m *Machine) WaitEvent(ctx context.Context, from int, name string) (Event, int, error) {
	e, next, err := m.qmp.wait(ctx, from, name)
	if err != nil {
		return e, next, fmt.Errorf("machine %s: waiting for %s: %w; the last words:\n%s", m.name, name, err, tail([]byte(m.Console.String())))
	}
	return e, next, nil
}

func (m *Machine) do(command string, arguments any) error {
	if _, err := m.qmp.call(command, arguments); err != nil {
		return fmt.Errorf("machine %s: %w", m.name, err)
	}
	return nil
}

// An ExitError says that a command that Shell ran did not exit with 0.
type ExitError struct {
	Command string
	Status  int
	Output  string
}

func (e *ExitError) Error() string {
	return fmt.Sprintf("%s: exit status %d: %s", e.Command, e.Status, tail([]byte(e.Output)))
}

// Shell runs a command in the root shell that waits at the serial console and
// returns what it wrote to its standard output and standard error. The error
// is an *ExitError if the command failed. The tree must log root in there:
// AutologinUnit is a drop-in of serial-getty@ttyS0.service that does.
//
// The output is carried as base64 between marks, so that messages of the
// kernel before and after it do no harm. One command at a time.
func (m *Machine) Shell(ctx context.Context, command string) (string, error) {
	n := m.shells.Add(1)
	from := m.Console.Len()
	// The marks are put together by printf: the echo of this line has none.
	line := fmt.Sprintf(" { %s\n} >/run/.lab.out 2>&1; s=$?; dmesg -n 1; printf '\\n@%%s%d:%%s:' LAB $s; base64 -w0 </run/.lab.out; printf ':%%s%d@\\n' LAB\n", command, n, n)
	if err := m.Type(line); err != nil {
		return "", fmt.Errorf("machine %s: %w", m.name, err)
	}
	re := regexp.MustCompile(fmt.Sprintf(`@LAB%d:(\d+):([^:@]*):LAB%d@`, n, n))
	found, _, err := m.Console.WaitFor(ctx, from, re)
	if err != nil {
		return "", fmt.Errorf("machine %s: %s: %w", m.name, command, err)
	}
	out, err := base64.StdEncoding.DecodeString(found[2])
	if err != nil {
		return "", fmt.Errorf("machine %s: %s: the console garbled its output: %w", m.name, command, err)
	}
	if found[1] != "0" {
		status, _ := strconv.Atoi(found[1])
		return string(out), &ExitError{Command: command, Status: status, Output: string(out)}
	}
	return string(out), nil
}

// AutologinPath and AutologinUnit are a file of a tree that gives Shell what
// it needs. Only for trees of tests: it lets anyone at the serial port in.
const (
	AutologinPath = "/etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf"
	AutologinUnit = `[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I vt220
`
)
