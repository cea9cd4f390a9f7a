package lvm

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"sidus/image/store"
	"sidus/image/tool"
)

// Errors beside those of package store.
var (
	// ErrNotAStore is the error of a place that holds something else.
	ErrNotAStore = errors.New("not a Sidus store")
	// ErrTimeout is the error of a command that did not end in time. It comes
	// with store.ErrUnavailable.
	ErrTimeout = errors.New("no answer in time")
	// ErrNoKernelSupport is the error of a kernel without thin pools.
	ErrNoKernelSupport = errors.New("this kernel has no thin pools of the device mapper: load them (modprobe dm_thin_pool), or choose another backend")
)

// words are what LVM's commands say, and what it means. The first that is
// found counts.
var words = []struct {
	text  string
	class error
}{
	{"Failure to communicate with kernel device-mapper driver", ErrNoKernelSupport},
	{"not detected in your kernel", ErrNoKernelSupport},
	{"module not loaded", ErrNoKernelSupport},
	{"too large for circular buffer", store.ErrNoSpace},
	{"Failed to write VG", store.ErrUnavailable},
	{"insufficient free space", store.ErrNoSpace},
	{"Insufficient free space", store.ErrNoSpace},
	{"Free space in pool", store.ErrNoSpace},
	{"reached threshold", store.ErrNoSpace},
	{"No space left on device", store.ErrNoSpace},
	{"Failed to find logical volume", store.ErrNotFound},
	{"Cannot process volume group", store.ErrUnavailable},
	{"Cannot access VG", store.ErrUnavailable},
	{"is exported", store.ErrUnavailable},
	{"is read-only", store.ErrUnavailable},
	{"metadata_read_only", store.ErrUnavailable},
	{"Cannot change VG", store.ErrUnavailable},
	{"already exists in volume group", store.ErrExists},
	{"in use", store.ErrInUse},
	{"is used by another device", store.ErrInUse},
	{"Check of pool", store.ErrUnavailable},
	{"Input/output error", store.ErrUnavailable},
	{"Device or resource busy", store.ErrInUse},
}

// classify turns a program's failure into one of the classes of store and says
// what it was done to. That something is missing or there already counts only
// if the message names the logical volume about: a command touches others too.
func classify(what any, about lv, err error) error {
	if err == nil {
		return nil
	}
	text := tool.StderrOf(err)
	if errors.Is(err, tool.ErrNotInstalled) || errors.Is(err, ErrTimeout) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || text == "" {
		return fmt.Errorf("%v: %w", what, err)
	}
	for line := range strings.Lines(text) {
		for _, w := range words {
			if !strings.Contains(line, w.text) {
				continue
			}
			switch w.class {
			case store.ErrNotFound, store.ErrExists, store.ErrInUse:
				if about != "" && !strings.Contains(line, string(about)) {
					continue
				}
			}
			return fmt.Errorf("%v: %w: %w", what, w.class, err)
		}
	}
	return fmt.Errorf("%v: %w", what, err)
}
