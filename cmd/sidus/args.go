package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"sidus/image/spell"
)

// arrange puts a command line into the order that urfave/cli v2 understands:
// command, options, `--`, arguments. Users may write options before or after
// the arguments; `--` ends them. Who asks for help gets it, whatever else he
// has written; `sidus help COMMAND` is `sidus COMMAND --help`.
func arrange(app *cli.App, args []string) ([]string, error) {
	if len(args) == 0 {
		return args, nil
	}
	if len(args) > 1 && args[1] == "help" {
		args = append(append([]string{args[0]}, args[2:]...), "--help")
	}
	var path, options, operands []string
	help := false
	commands, flags := app.Commands, append([]cli.Flag{}, app.Flags...)
	flags = append(flags, cli.HelpFlag, cli.VersionFlag)
	var leaf, parent *cli.Command
	// Options that stand before the command belong to it, too; which take a
	// value is known once the command is.
	for rest, i := args[1:], 0; i < len(rest) && leaf == nil; i++ {
		if strings.HasPrefix(rest[i], "-") {
			continue
		}
		if found := findCommand(commands, rest[i]); found != nil {
			flags = append(flags, found.Flags...)
			if commands = found.Subcommands; len(commands) == 0 {
				leaf = found
			}
			parent = found
		}
	}
	commands = app.Commands
	rest := args[1:]
	for len(rest) > 0 {
		word := rest[0]
		rest = rest[1:]
		switch {
		case word == "--":
			operands = append(operands, rest...)
			rest = nil
		case word == "-" || !strings.HasPrefix(word, "-"):
			if found := findCommand(commands, word); found != nil && len(operands) == 0 {
				path = append(path, word)
				commands = found.Subcommands
				continue
			}
			commands = nil
			operands = append(operands, word)
		default:
			options = append(options, word)
			flag := findFlag(flags, word)
			help = help || flag == cli.HelpFlag
			if flag == nil || strings.Contains(word, "=") || isBool(flag) {
				continue // an unknown option is reported by the parser
			}
			if len(rest) == 0 {
				return nil, usagef("the option %s wants a value", word)
			}
			options = append(options, rest[0])
			rest = rest[1:]
		}
	}
	ordered := append(append([]string{args[0]}, path...), options...)
	if len(operands) > 0 {
		if leaf == nil && (parent == nil || parent.ArgsUsage == "") {
			level := app.Commands
			for _, name := range path {
				level = findCommand(level, name).Subcommands
			}
			return nil, unknownCommand(level, path, operands[0])
		}
		ordered = append(append(ordered, "--"), operands...)
	}
	if help {
		return append(append([]string{args[0]}, path...), "--help"), nil
	}
	return ordered, nil
}

// unknownCommand says that there is no such command below path, and which one
// may be meant.
func unknownCommand(commands []*cli.Command, path []string, name string) error {
	text := fmt.Sprintf("there is no command %q", strings.Join(append(slices.Clone(path), name), " "))
	best, distance := "", 3 // more than two letters wrong is another word
	for _, command := range commands {
		for _, known := range command.Names() {
			if d := spell.Distance(name, known); d < distance && d < len(known) {
				best, distance = known, d
			}
		}
	}
	if best != "" {
		text += fmt.Sprintf("; did you mean %q?", best)
	}
	return usagef("%s (`%s --help` lists them)", text, strings.Join(append([]string{"sidus"}, path...), " "))
}

func findCommand(commands []*cli.Command, name string) *cli.Command {
	for _, command := range commands {
		if command.HasName(name) {
			return command
		}
	}
	return nil
}

func findFlag(flags []cli.Flag, word string) cli.Flag {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	for _, flag := range flags {
		for _, n := range flag.Names() {
			if n == name {
				return flag
			}
		}
	}
	return nil
}

func isBool(flag cli.Flag) bool {
	_, ok := flag.(*cli.BoolFlag)
	return ok
}

// want returns the arguments if there are as many as the command's ArgsUsage
// has words. A word in brackets may be missing.
func want(c *cli.Context) ([]string, error) {
	words := strings.Fields(c.Command.ArgsUsage)
	least := 0
	for _, word := range words {
		if !strings.HasPrefix(word, "[") {
			least++
		}
	}
	args := c.Args().Slice()
	if len(args) < least || len(args) > len(words) {
		if len(words) == 0 {
			return nil, usagef("%s takes no arguments; `--help` explains it", c.Command.HelpName)
		}
		return nil, usagef("usage: %s %s; `--help` explains it", c.Command.HelpName, c.Command.ArgsUsage)
	}
	return append(args, make([]string, len(words)-len(args))...), nil
}
