package main

import (
	"strings"

	"github.com/urfave/cli/v2"
)

// Options that several commands have.

func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", Value: "/var/lib/sidus", EnvVars: []string{"SIDUS_STATE"}, Usage: "the folder `DIR` of the catalog and the embedded store"}
}

func verboseFlag() cli.Flag {
	return &cli.BoolFlag{Name: "verbose", Usage: "also log what is run, and how long it takes"}
}

func jsonFlag() cli.Flag { return &cli.BoolFlag{Name: "json", Usage: "print JSON"} }

func messageFlag() cli.Flag {
	return &cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "why this is done, for the history: `TEXT`"}
}

func yesFlag() cli.Flag {
	return &cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask"}
}

func waitFlag() cli.Flag {
	return &cli.BoolFlag{Name: "wait", Usage: "if somebody works on the tree, wait until he is done"}
}

// reads are the options of a command that only shows something.
func reads(flags ...cli.Flag) []cli.Flag {
	return append(flags, jsonFlag(), stateFlag(), verboseFlag())
}

// changes are the options of a command that changes something.
func changes(flags ...cli.Flag) []cli.Flag {
	return append(flags, messageFlag(), jsonFlag(), stateFlag(), verboseFlag())
}

// describe is the text of a command's --help: what it does, examples, and the
// exit status.
func describe(text string, examples ...string) string {
	var b strings.Builder
	b.WriteString(strings.TrimSpace(text))
	b.WriteString("\n\n")
	for i, example := range examples {
		if i == 0 {
			b.WriteString("EXAMPLES:\n")
		}
		b.WriteString("   " + example + "\n")
	}
	b.WriteString("\n" + exitHelp)
	return b.String()
}
