package catalog

import (
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
)

// Actor says who does something, and with which command.
type Actor struct {
	User    string // the person, also behind sudo
	Command string // the command line
}

// CurrentActor finds out who runs this process. Behind sudo(8) that is the
// person who called it.
func CurrentActor() Actor {
	name := "uid " + strconv.Itoa(os.Getuid())
	if current, err := user.Current(); err == nil {
		name = current.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" && os.Getuid() == 0 {
		name = sudo
	}
	args := append([]string{filepath.Base(os.Args[0])}, os.Args[1:]...)
	command := strings.Join(args, " ")
	if len(command) > 200 {
		command = command[:200] + "…"
	}
	return Actor{User: name, Command: command}
}
