// Command sidus keeps operating-system trees on one server and boots machines
// from them over the network. There is one file per command; each parses its
// options, calls the packages that do the work, and prints.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"

	"sidus/image/build/sandbox"
)

// version is set by the Makefile.
var version = "development"

func main() {
	// The first process of a sandbox is this program again.
	sandbox.Main()
	os.Exit(run(os.Args))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	logrus.SetFormatter(&logrus.TextFormatter{FullTimestamp: true, TimestampFormat: "2006-01-02 15:04:05"})
	app := newApp()
	ordered, err := arrange(app, args)
	if err == nil {
		err = app.RunContext(ctx, ordered)
	}
	if err == nil {
		return exitOK
	}
	code := exitCode(err)
	report(err, code, wantsJSON(args))
	return code
}

func newApp() *cli.App {
	var app *cli.App
	app = &cli.App{
		Name:    "sidus",
		Usage:   "one operating-system tree, hundreds of diskless machines",
		Version: version,
		Description: "A tree is built in phases; each leaves a snapshot. A channel points to one snapshot,\n" +
			"and nodes boot what their channel points to. `sidus COMMAND --help` explains a command.\n\n" +
			"   sidus init\n" +
			"   sidus build recipes/demo.yaml\n" +
			"   sidus promote demo@latest\n" +
			"   sidus network add lab --subnet 10.0.0.0/24\n" +
			"   sidus serve --interface eth1\n" +
			"   sidus status",
		HideHelpCommand:           true,
		DisableSliceFlagSeparator: true,
		// Errors are reported by run, once, with the right exit code.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Commands: []*cli.Command{
			initCommand(), buildCommand(), importCommand(), exportCommand(),
			listCommand(), showCommand(), logCommand(), diffCommand(),
			snapshotCommand(), branchCommand(), rollbackCommand(), deleteCommand(), renameCommand(), resizeCommand(), setCommand(),
			shellCommand(), execCommand(),
			promoteCommand(), channelCommand(),
			sendCommand(), receiveCommand(), replicateCommand(), takeoverCommand(), demoteCommand(), readyCommand(), holdsCommand(),
			networkCommand(), nodeCommand(), serveCommand(), statusCommand(), benchCommand(),
			checkCommand(), gcCommand(), backupCommand(), restoreCommand(), unmountCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return unknownCommand(app.Commands, nil, c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	settle(app.Commands)
	return app
}

// settle gives commands what urfave/cli does not hand down from the program.
func settle(commands []*cli.Command) {
	for _, command := range commands {
		command.HideHelpCommand = true
		command.OnUsageError = usageError
		settle(command.Subcommands)
	}
}

func usageError(_ *cli.Context, err error, _ bool) error {
	return usagef("%s; `--help` explains the options", err)
}

// usageProblem is an error in the command line.
type usageProblem struct{ text string }

func (p usageProblem) Error() string { return p.text }

func usagef(format string, args ...any) error {
	return usageProblem{fmt.Sprintf(format, args...)}
}
