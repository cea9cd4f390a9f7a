package labdisk

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"sidus/tests/lab"
)

// ServerOptions describe a machine that is a server in a lab's network.
type ServerOptions struct {
	// Name is the host name.
	Name string
	// Bridge is the segment that the machine's first card is plugged into. SSH
	// goes through it.
	Bridge string
	// Address is the card's, with the length of the network's prefix.
	Address netip.Prefix
	// Cards are further cards: eth1, eth2, …
	Cards []Card
	// Programs are files of this machine that are put into the other's /lab,
	// under the names that are the keys.
	Programs map[string]string
	// Disk is the size in bytes of the empty disk /dev/vdc; 0: 16 GiB. It takes
	// no more space here than what is written to it.
	Disk int64
	// Memory in MiB; 0 means 2048.
	Memory int
}

// A Card is a network card of a server.
type Card struct {
	Bridge  string       // the segment that it is plugged into
	Address netip.Prefix // with the length of the network's prefix
}

// A Server is a machine with the disk of this package that obeys by SSH. It
// ends with its lab.
type Server struct {
	*lab.Machine
	// DiskFile is what the machine's /dev/vdc lies on.
	DiskFile string

	lab     *lab.Lab
	address netip.Addr
	key     string // the file with the key that opens it
}

// ReadyTime is how long a machine may take until it obeys.
const ReadyTime = 8 * time.Minute

// runServer is what the machine runs instead of tests: it gets an address,
// and obeys whoever has the key until it is switched off.
const runServer = `#!/bin/sh
set -e
hostname '%[1]s'
echo '127.0.0.1 localhost %[1]s' >/etc/hosts
ip link set lo up
n=0
for address in %[2]s; do
	ip addr add "$address" dev "eth$n"
	ip link set "eth$n" up
	n=$((n+1))
done
mkdir -p /run/sshd
exec /usr/sbin/sshd -D -e -f /dev/null -h /lab/host_key -o AuthorizedKeysFile=/lab/authorized_keys -o StrictModes=no \
	-o PasswordAuthentication=no -o PermitRootLogin=prohibit-password -o UsePAM=no -o PidFile=none -o UseDNS=no -o MaxStartups=100 \
	-o SetEnv=PATH=/lab:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
`

// StartServer boots a machine from the disk and waits until it obeys.
func (d *Disk) StartServer(ctx context.Context, l *lab.Lab, o ServerOptions) (*Server, error) {
	work := filepath.Join(l.Dir(), "server-"+o.Name)
	data := filepath.Join(work, "data")
	if err := os.MkdirAll(data, 0o700); err != nil {
		return nil, err
	}
	s := &Server{lab: l, address: o.Address.Addr(), key: filepath.Join(work, "key"), DiskFile: filepath.Join(work, "disk.img")}
	for _, key := range []string{s.key, filepath.Join(data, "host_key")} {
		if err := program(ctx, io.Discard, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", key); err != nil {
			return nil, err
		}
	}
	public, err := os.ReadFile(s.key + ".pub")
	if err != nil {
		return nil, err
	}
	var nics []lab.NIC
	var addresses []string
	for _, card := range append([]Card{{o.Bridge, o.Address}}, o.Cards...) {
		nics = append(nics, lab.NIC{Bridge: card.Bridge, NoPXE: true})
		addresses = append(addresses, card.Address.String())
	}
	files := map[string]string{"authorized_keys": string(public), "run": fmt.Sprintf(runServer, o.Name, strings.Join(addresses, " "))}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(data, name), []byte(text), 0o700); err != nil {
			return nil, err
		}
	}
	for name, from := range o.Programs {
		to := filepath.Join(data, name)
		if err := errors.Join(copyFile(from, to), os.Chmod(to, 0o755)); err != nil {
			return nil, err
		}
	}
	image, err := Pack(ctx, data, filepath.Join(work, "data.img"))
	if err != nil {
		return nil, err
	}
	disk, err := os.OpenFile(s.DiskFile, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	size := o.Disk
	if size == 0 {
		size = 16 << 30
	}
	if err := errors.Join(disk.Truncate(size), disk.Close()); err != nil {
		return nil, err
	}
	memory := o.Memory
	if memory == 0 {
		memory = 2048
	}
	s.Machine, err = l.Boot(lab.MachineOptions{
		Name: o.Name, NICs: nics, Memory: memory, CPUs: 2, Machine: "q35", Accel: os.Getenv(AccelEnv),
		Kernel: d.Kernel, Initrd: d.Initrd, CommandLine: RunCommandLine + " panic=10",
		Args: append(d.QEMUArgs(image, "port"), "-chardev", "file,id=port,path="+filepath.Join(work, "said"),
			"-drive", "file="+strings.ReplaceAll(s.DiskFile, ",", ",,")+",format=raw,if=virtio,cache=unsafe,discard=unmap"),
	})
	if err != nil {
		return nil, err
	}
	if err := s.WaitReady(ctx); err != nil {
		said, _ := os.ReadFile(filepath.Join(work, "said"))
		return nil, fmt.Errorf("%w; it said: %s%s", err, last(s.Console.String(), 2000), last(string(said), 2000))
	}
	return s, nil
}

// WaitReady waits until the machine obeys: after its start or a reset.
func (s *Server) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, ReadyTime, fmt.Errorf("it does not obey within %v", ReadyTime))
	defer cancel()
	for {
		_, err := s.lab.Run(ctx, "ssh", s.sshArgs("true")...)
		if err == nil {
			return nil
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return fmt.Errorf("server %s: %w: %w", s.address, context.Cause(ctx), err)
		}
	}
}

// sshArgs are ssh's arguments for a command line of the machine's shell.
func (s *Server) sshArgs(commandLine string, more ...string) []string {
	return append(append([]string{"-F", "/dev/null", "-i", s.key, "-o", "UserKnownHostsFile=/dev/null", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
		"-o", "BatchMode=yes", "-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=20"}, more...), "root@"+s.address.String(), commandLine)
}

// Command is a program of the machine, to be started in the lab's network
// (lab.Lab.Do, lab.Lab.StartCmd). Its exit status is that of the program.
func (s *Server) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "ssh", s.sshArgs(shellWords(append([]string{name}, args...)))...)
}

// Start starts a program of the machine. It gets SIGHUP when what is returned
// is killed.
func (s *Server) Start(name string, args ...string) (*lab.Process, error) {
	return s.lab.StartCmd(exec.Command("ssh", s.sshArgs(shellWords(append([]string{name}, args...)), "-tt")...))
}

// Do runs a command line in the machine's shell and returns what it said.
func (s *Server) Do(ctx context.Context, commandLine string) (string, error) {
	text, err := s.lab.Run(ctx, "ssh", s.sshArgs("set -e; "+commandLine)...)
	if err != nil {
		return text, fmt.Errorf("on the server: %s: %w", commandLine, err)
	}
	return text, nil
}

// shellWords quotes words for a shell.
func shellWords(words []string) string {
	var quoted []string
	for _, word := range words {
		quoted = append(quoted, "'"+quote(word)+"'")
	}
	return strings.Join(quoted, " ")
}
