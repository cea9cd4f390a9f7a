package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// FactsFile is where the boot script of package boot/initramfs leaves what it
// found out: lines of KEY=value, whose values need no quotes.
const FactsFile = "/run/sidus/boot.env"

// Facts is what the boot script found out about the card that carries the
// root file system, and its lease.
type Facts struct {
	Device  string
	MAC     net.HardwareAddr
	Address netip.Addr
	// Lease is how long the address was given for, LeaseUptime when: the time
	// since the kernel started.
	Lease, LeaseUptime time.Duration
}

// ReadFacts reads a file as the boot script writes it. Keys that are not known
// are let pass: the script may be newer.
func ReadFacts(path string) (Facts, error) {
	f, err := os.Open(path)
	if err != nil {
		return Facts{}, err
	}
	defer f.Close()
	facts, err := parseFacts(f)
	if err != nil {
		return Facts{}, fmt.Errorf("%s: %w", path, err)
	}
	return facts, nil
}

func parseFacts(from io.Reader) (Facts, error) {
	values := map[string]string{}
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		key, value, ok := strings.Cut(lines.Text(), "=")
		if !ok {
			return Facts{}, fmt.Errorf("the line %.80q is not KEY=value", lines.Text())
		}
		values[key] = value
	}
	if err := lines.Err(); err != nil {
		return Facts{}, err
	}
	f := Facts{Device: values["DEVICE"]}
	if f.Device == "" {
		return Facts{}, fmt.Errorf("no DEVICE")
	}
	var err error
	if f.MAC, err = net.ParseMAC(values["MAC"]); err != nil {
		return Facts{}, fmt.Errorf("MAC: %w", err)
	}
	if f.Address, err = netip.ParseAddr(values["ADDRESS"]); err != nil {
		return Facts{}, fmt.Errorf("ADDRESS: %w", err)
	}
	if !f.Address.Is4() {
		return Facts{}, fmt.Errorf("ADDRESS: %s is not of IPv4", f.Address)
	}
	for key, target := range map[string]*time.Duration{"LEASE_SECONDS": &f.Lease, "LEASE_UPTIME": &f.LeaseUptime} {
		seconds, err := strconv.ParseUint(values[key], 10, 32)
		if err != nil {
			return Facts{}, fmt.Errorf("%s: %w", key, err)
		}
		*target = time.Duration(seconds) * time.Second
	}
	return f, nil
}

// Uptime is the time since the kernel started.
func Uptime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), " ")
	seconds, err := strconv.ParseFloat(first, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/uptime: %w", err)
	}
	return time.Duration(seconds * float64(time.Second)), nil
}
