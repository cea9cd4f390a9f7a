package protocol

import (
	"fmt"
	"slices"
)

// Step is how far one boot has got.
type Step string

// The steps of a boot, in their order.
const (
	StepDHCP   Step = "dhcp"   // the firmware was told what to load
	StepConfig Step = "config" // the boot loader's configuration was rendered: the session opens
	StepKernel Step = "kernel" // the kernel was asked for
	StepInitrd Step = "initrd" // the initial RAM file system was asked for
	StepRoot   Step = "root"   // the root was mounted
	StepUp     Step = "up"     // the agent has reported
)

var steps = []Step{StepDHCP, StepConfig, StepKernel, StepInitrd, StepRoot, StepUp}

// Steps returns every step, the first first.
func Steps() []Step { return slices.Clone(steps) }

// ParseStep checks that text names a step. The error wraps ErrMalformed.
func ParseStep(text string) (Step, error) {
	if !slices.Contains(steps, Step(text)) {
		return "", fmt.Errorf("step %q: %w: there is no such step", text, ErrMalformed)
	}
	return Step(text), nil
}

// Rank is the place of s in the order of a boot, 1 for the first, and 0 for
// what is no step.
func (s Step) Rank() int { return slices.Index(steps, s) + 1 }

// Before tells whether a boot comes through s before it comes to t.
func (s Step) Before(t Step) bool { return s.Rank() < t.Rank() }
