package main

import (
	"errors"
	"net"
	"strings"
)

// sendNotification sends a state to the service manager, see sd_notify(3).
func sendNotification(socket, state string) (err error) {
	if strings.HasPrefix(socket, "@") {
		socket = "\x00" + socket[1:] // an abstract socket
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	_, err = conn.Write([]byte(state))
	return err
}
