package protocol

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"strconv"
	"strings"

	"sidus/image/store"
)

// MaxCommandLine is the number of bytes that a rendered command line may
// have. The kernel takes 2,047 on x86 and cuts the rest off in silence; boot
// loaders add BOOT_IMAGE= and initrd= with the addresses of both files, about
// 300 bytes.
const MaxCommandLine = 1700

// CommandLine is what a booting kernel is told, and what the initramfs hook
// and the agent read from /proc/cmdline.
type CommandLine struct {
	Protocol int // 0 means Version when rendered
	Session  SessionID
	Snapshot store.SnapshotID
	// NFS is the address of the NFS server, NFSPath the exported directory of
	// the snapshot, "/snapshot/<id>" if empty.
	NFS     netip.AddrPort
	NFSPath string
	// HTTP is the base address of the HTTP server, for example
	// "http://10.0.0.1:8080".
	HTTP string
	// MachineID is the machine-id(5) of the node: 32 hexadecimal digits.
	MachineID string
	// Hostname is the node's name; empty leaves it to DHCP.
	Hostname string
	// NFSOptions are further mount options of the root.
	NFSOptions []string
	// BootMAC is the address of the card that the node boots with.
	BootMAC net.HardwareAddr
	// Extra holds the words after ours, separated by spaces: those of the
	// boot entry, of the channel, of the node. A word may have parts in
	// double quotes, as the kernel takes them. When parsed: every word that
	// is not one of ours, in their order.
	Extra string
}

// ErrNotSidus is returned by ParseCommandLine for the command line of a
// kernel that was not booted by Sidus.
var ErrNotSidus = errors.New("not booted by sidus")

// Render returns the command line. What would not be read back as it was
// meant (control characters, spaces in a value, a word among the extra ones
// that is ours to set) is refused with an error that wraps ErrMalformed.
func (c CommandLine) Render() (string, error) {
	if c.Protocol == 0 {
		c.Protocol = Version
	}
	if c.NFSPath == "" {
		c.NFSPath = "/snapshot/" + string(c.Snapshot)
	}
	if err := c.validate(); err != nil {
		return "", fmt.Errorf("kernel command line: %w", err)
	}
	words := []string{
		"boot=sidus",
		"sidus.protocol=" + strconv.Itoa(c.Protocol),
		"sidus.session=" + string(c.Session),
		"sidus.snapshot=" + string(c.Snapshot),
		"sidus.nfs=" + c.NFS.String() + ":" + c.NFSPath,
		"sidus.http=" + c.HTTP,
		"sidus.machine-id=" + c.MachineID,
	}
	if c.Hostname != "" {
		words = append(words, "sidus.hostname="+c.Hostname)
	}
	if len(c.NFSOptions) > 0 {
		words = append(words, "sidus.nfsopts="+strings.Join(c.NFSOptions, ","))
	}
	words = append(words, "BOOTIF=01-"+strings.ReplaceAll(c.BootMAC.String(), ":", "-"))
	extra, err := extraWords(c.Extra)
	if err != nil {
		return "", fmt.Errorf("kernel command line: %w", err)
	}
	line := strings.Join(append(words, extra...), " ")
	if len(line) > MaxCommandLine {
		return "", fmt.Errorf("kernel command line: %w: %w: it has %d bytes, a kernel is sure to take %d", ErrMalformed, ErrTooLarge, len(line), MaxCommandLine)
	}
	return line, nil
}

// ParseCommandLine reads a kernel's command line, as in /proc/cmdline. The
// error wraps ErrNotSidus if no word of ours is in it, ErrTooNew if it is of
// a newer protocol, and ErrMalformed if a word is missing, is there twice, or
// has a value that it cannot have.
func ParseCommandLine(line string) (CommandLine, error) {
	c, err := parseCommandLine(line)
	if err != nil {
		return CommandLine{}, fmt.Errorf("kernel command line: %w", err)
	}
	return c, nil
}

func parseCommandLine(line string) (CommandLine, error) {
	words, err := splitWords(strings.TrimRight(line, "\n\x00"))
	if err != nil {
		return CommandLine{}, err
	}
	ours := map[string]string{}
	var extra []string
	for _, w := range words {
		key, value, _ := strings.Cut(w, "=")
		switch {
		case strings.HasPrefix(key, "sidus."):
			if _, ok := ours[key]; ok {
				return CommandLine{}, fmt.Errorf("%w: %s is there twice", ErrMalformed, key)
			}
			ours[key] = value
		case key == "BOOTIF":
			// PXELINUX's IPAPPEND may add one more; the first is ours.
			if _, ok := ours[key]; !ok {
				ours[key] = value
			}
		case w == "boot=sidus":
		default:
			extra = append(extra, w)
		}
	}
	text, ok := ours["sidus.protocol"]
	if !ok {
		return CommandLine{}, ErrNotSidus
	}
	c := CommandLine{
		Session:   SessionID(ours["sidus.session"]),
		Snapshot:  store.SnapshotID(ours["sidus.snapshot"]),
		HTTP:      ours["sidus.http"],
		MachineID: ours["sidus.machine-id"],
		Hostname:  ours["sidus.hostname"],
		Extra:     strings.Join(extra, " "),
	}
	if c.Protocol, err = strconv.Atoi(text); err != nil || c.Protocol < 1 {
		return CommandLine{}, fmt.Errorf("%w: sidus.protocol=%s", ErrMalformed, text)
	}
	if c.Protocol > Version {
		return CommandLine{}, fmt.Errorf("%w: sidus.protocol=%d, the newest known is %d", ErrTooNew, c.Protocol, Version)
	}
	address, dir, ok := strings.Cut(ours["sidus.nfs"], ":/")
	if !ok {
		return CommandLine{}, fmt.Errorf("%w: sidus.nfs=%q is not <ip>:<port>:<path>", ErrMalformed, ours["sidus.nfs"])
	}
	c.NFSPath = "/" + dir
	if c.NFS, err = netip.ParseAddrPort(address); err != nil {
		return CommandLine{}, fmt.Errorf("%w: sidus.nfs: %v", ErrMalformed, err)
	}
	if opts := ours["sidus.nfsopts"]; opts != "" {
		c.NFSOptions = strings.Split(opts, ",")
	}
	mac, ok := strings.CutPrefix(ours["BOOTIF"], "01-")
	if !ok {
		return CommandLine{}, fmt.Errorf("%w: BOOTIF=%q is not 01-<hardware address>", ErrMalformed, ours["BOOTIF"])
	}
	if c.BootMAC, err = net.ParseMAC(mac); err != nil {
		return CommandLine{}, fmt.Errorf("%w: BOOTIF: %v", ErrMalformed, err)
	}
	return c, c.validate()
}

func (c CommandLine) validate() error {
	if _, err := ParseSessionID(string(c.Session)); err != nil {
		return err
	}
	if err := c.Snapshot.Validate(); err != nil {
		return fmt.Errorf("%w: %v", ErrMalformed, err)
	}
	if !c.NFS.IsValid() || c.NFS.Addr().Zone() != "" {
		return fmt.Errorf("%w: NFS address %s", ErrMalformed, c.NFS)
	}
	if err := checkWord("NFS path", c.NFSPath); err != nil {
		return err
	}
	if !path.IsAbs(c.NFSPath) {
		return fmt.Errorf("%w: NFS path %q is not absolute", ErrMalformed, c.NFSPath)
	}
	if err := checkWord("HTTP address", c.HTTP); err != nil {
		return err
	}
	if u, err := url.Parse(c.HTTP); err != nil || u.Scheme != "http" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return fmt.Errorf("%w: %q is not the address of an HTTP server", ErrMalformed, c.HTTP)
	}
	if !isHex32(c.MachineID) {
		return fmt.Errorf("%w: machine-id %.40q has not 32 lowercase hexadecimal digits", ErrMalformed, c.MachineID)
	}
	if c.Hostname != "" {
		if err := CheckHostname(c.Hostname); err != nil {
			return err
		}
	}
	for _, o := range c.NFSOptions {
		if err := checkWord("NFS option", o); err != nil {
			return err
		}
		if strings.Contains(o, ",") {
			return fmt.Errorf("%w: NFS option %q has a comma", ErrMalformed, o)
		}
	}
	if len(c.BootMAC) != 6 {
		return fmt.Errorf("%w: hardware address %q has not six bytes", ErrMalformed, c.BootMAC)
	}
	return nil
}

// CheckHostname checks that name can be a node's name everywhere: one to
// sixty-four letters, digits, hyphens and dots, in labels that neither begin
// nor end with a hyphen (RFC 1123, and the kernel's limit of 64). The error
// wraps ErrMalformed.
func CheckHostname(name string) error {
	if len(name) == 0 || len(name) > 64 {
		return fmt.Errorf("hostname %.70q: %w: it has 1 to 64 characters", name, ErrMalformed)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("hostname %q: %w: bad label %q", name, ErrMalformed, label)
		}
		for i := range len(label) {
			c := label[i] | 0x20
			if (c < 'a' || c > 'z') && (label[i] < '0' || label[i] > '9') && label[i] != '-' {
				return fmt.Errorf("hostname %q: %w: it may have letters, digits, hyphens and dots", name, ErrMalformed)
			}
		}
	}
	return nil
}

func checkWord(what, text string) error {
	if text == "" {
		return fmt.Errorf("%w: %s is empty", ErrMalformed, what)
	}
	if hasControl(text) || strings.ContainsAny(text, " \"") {
		return fmt.Errorf("%w: %s %q has a space, a quote or a control character", ErrMalformed, what, text)
	}
	return nil
}

// CheckExtra checks words that are to be added to a command line: balanced
// quotes, no control characters, and none of the words that Sidus sets
// itself. The error wraps ErrMalformed.
func CheckExtra(text string) error {
	_, err := extraWords(text)
	return err
}

func extraWords(text string) ([]string, error) {
	if hasControl(text) {
		return nil, fmt.Errorf("%w: the words %q have a control character", ErrMalformed, text)
	}
	words, err := splitWords(text)
	if err != nil {
		return nil, err
	}
	for _, w := range words {
		key, _, _ := strings.Cut(strings.Trim(w, `"`), "=")
		if key == "boot" || key == "BOOTIF" || strings.HasPrefix(key, "sidus.") {
			return nil, fmt.Errorf("%w: the word %q is set by Sidus itself", ErrMalformed, w)
		}
		// What follows is for init(1); ours would not be seen as the kernel's.
		if w == "--" || w == "---" {
			return nil, fmt.Errorf("%w: %q ends the kernel's words", ErrMalformed, w)
		}
	}
	return words, nil
}

// splitWords splits at white space outside double quotes and keeps the
// quotes, as the kernel's next_arg() takes them.
func splitWords(text string) ([]string, error) {
	var words []string
	start, quoted := -1, false
	for i := range len(text) {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
			if start < 0 {
				start = i
			}
		case !quoted && (c == ' ' || c == '\t' || c == '\n'):
			if start >= 0 {
				words = append(words, text[start:i])
			}
			start = -1
		case start < 0:
			start = i
		}
	}
	if quoted {
		return nil, fmt.Errorf("%w: a double quote is not closed in %.200q", ErrMalformed, text)
	}
	if start >= 0 {
		words = append(words, text[start:])
	}
	return words, nil
}
