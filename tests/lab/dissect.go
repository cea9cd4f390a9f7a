package lab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
)

// ErrNoDissector is wrapped by Dissect's error if tshark is not installed.
var ErrNoDissector = errors.New("tshark is not installed")

// Dissect has Wireshark's dissectors read the packets of a file that tcpdump or
// tshark has written. It returns how many frames each protocol is in, by
// Wireshark's names: dhcp, mount, nfs, rpc. A frame that is malformed is an
// error. rpcPorts are TCP
// ports of ONC RPC that Wireshark does not know.
func Dissect(ctx context.Context, file string, rpcPorts ...int) (map[string]int, error) {
	if _, err := exec.LookPath("tshark"); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoDissector, err)
	}
	args := []string{"-n", "-r", file, "-T", "fields", "-e", "frame.number", "-e", "frame.protocols", "-e", "_ws.malformed", "-e", "_ws.col.Info"}
	for _, port := range rpcPorts {
		args = append(args, "-d", fmt.Sprintf("tcp.port==%d,rpc", port))
	}
	cmd := exec.CommandContext(ctx, "tshark", args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	frames := map[string]int{}
	var malformed []string
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		field := strings.Split(lines.Text(), "\t")
		if len(field) < 4 {
			continue
		}
		once := map[string]bool{}
		for _, part := range strings.Split(field[1], ",") {
			for _, protocol := range strings.Split(part, ":") {
				if !once[protocol] {
					once[protocol] = true
					frames[protocol]++
				}
			}
		}
		if field[2] != "" || once["_ws.malformed"] {
			malformed = append(malformed, fmt.Sprintf("frame %s (%s): %.200s", field[0], field[1], field[3]))
		}
	}
	if err := errors.Join(lines.Err(), cmd.Wait()); err != nil {
		return nil, fmt.Errorf("tshark: %w: %s", err, said.String())
	}
	if len(malformed) > 0 {
		return frames, fmt.Errorf("%d malformed frames, the first: %s", len(malformed), strings.Join(malformed[:min(5, len(malformed))], "; "))
	}
	return frames, nil
}
