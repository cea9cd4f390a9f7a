package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"sidus/boot/node"
	"sidus/image"
	"sidus/image/build"
	"sidus/image/store"
)

// The exit codes are an interface: scripts rely on them.
const (
	exitOK       = 0
	exitFailed   = 1
	exitUsage    = 2   // the command line, a name, or a recipe is wrong
	exitNotFound = 3   // a tree, snapshot, channel, network or node is not there
	exitInUse    = 4   // exists already, is needed by others, or somebody works there
	exitNoSpace  = 5   // the store, or the disk below it, is full
	exitFindings = 6   // check found something
	exitSecrets  = 7   // the tree holds secrets
	exitStopped  = 130 // Ctrl-C
)

const exitHelp = "EXIT STATUS: 0 done; 1 failed; 2 wrong command line, name or recipe; 3 not found;\n" +
	"   4 exists already, in use, or needed by others; 5 no space; 6 check found something;\n" +
	"   7 the tree holds secrets; 130 interrupted."

// programExit carries the exit status of a program that ran inside a tree.
type programExit int

func (p programExit) Error() string { return fmt.Sprintf("the program ended with status %d", int(p)) }

func exitCode(err error) int {
	var status programExit
	var usage usageProblem
	var secrets *image.SecretsError
	var changed *build.ChangedError
	switch {
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage), errors.Is(err, store.ErrBadName), errors.Is(err, node.ErrInvalid), errors.Is(err, image.ErrIncomplete), isRecipeError(err):
		return exitUsage
	case errors.Is(err, context.Canceled):
		return exitStopped
	case errors.As(err, &secrets):
		return exitSecrets
	case errors.Is(err, errFindings):
		return exitFindings
	case errors.Is(err, store.ErrNotFound):
		return exitNotFound
	case errors.Is(err, store.ErrExists), errors.Is(err, store.ErrInUse), errors.As(err, &changed):
		return exitInUse
	case errors.Is(err, store.ErrNoSpace):
		return exitNoSpace
	}
	return exitFailed
}

// wantsJSON looks for --json by itself, since the command line may be what
// could not be understood.
func wantsJSON(args []string) bool {
	if end := slices.Index(args, "--"); end >= 0 {
		args = args[:end]
	}
	return slices.Contains(args, "--json")
}

func report(err error, code int, asJSON bool) {
	var status programExit
	if errors.As(err, &status) {
		return // the program has said what there is to say
	}
	if asJSON {
		_ = json.NewEncoder(os.Stderr).Encode(map[string]any{"error": err.Error(), "exit_status": code})
		return
	}
	fmt.Fprintln(os.Stderr, "sidus:", printable(err.Error()))
}

// printable takes the power from control characters that a message quotes: a
// terminal would obey them.
func printable(text string) string {
	var b strings.Builder
	for _, r := range strings.ToValidUTF8(text, "\uFFFD") {
		if r == '\n' || r == '\t' || !unicode.IsControl(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}
