package main

import (
	"errors"
	"log/slog"
	"net"
	"os"
)

// notify tells the service manager about a change of state, if there is one that wants to know (sd_notify(3)).
func notify(log *slog.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		err = errors.Join(err, conn.Close())
	}
	if err != nil {
		log.Warn("the service manager was not told", "state", state, "error", err)
	}
}
