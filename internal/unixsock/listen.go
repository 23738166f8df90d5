package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// MaxPath is the longest path of a unix socket on Linux, in bytes: sun_path less its final zero.
const MaxPath = 107

// Access says who may connect.
type Access struct {
	Mode fs.FileMode // permission bits; connecting needs write permission
	UID  int         // owner, -1 for the process's own
	GID  int         // group, -1 for the process's own
}

// Private is access for the process's own user alone.
func Private() Access { return Access{Mode: 0o600, UID: -1, GID: -1} }

// CheckPath reports a path that is too long for a socket. The error wraps block.ErrInvalid.
func CheckPath(path string) error {
	if len(path) > MaxPath {
		return fmt.Errorf("socket path %s has %d bytes, a unix socket takes at most %d: %w", path, len(path), MaxPath, block.ErrInvalid)
	}
	return nil
}

// Listen opens a socket at path. A socket that a dead process left there is replaced, anything else is an error: the caller holds
// whatever lock makes it the only one that may listen. The socket's mode never exceeds access.Mode, not even between bind and chmod.
// Closing the listener removes the path.
func Listen(path string, access Access) (*net.UnixListener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Linux gives the path the mode of the socket's own inode, less the umask. So it is narrowed before bind.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var chmodErr error
		err := c.Control(func(fd uintptr) { chmodErr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, chmodErr)
	}}
	listener, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := grant(path, access); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	return listener.(*net.UnixListener), nil
}

// grant gives the socket its owner before its mode, so that a wide mode never meets the wrong group.
func grant(path string, access Access) error {
	if access.UID >= 0 || access.GID >= 0 {
		if err := os.Chown(path, access.UID, access.GID); err != nil {
			return fmt.Errorf("set the owner of socket %s: %w", path, err)
		}
	}
	if err := os.Chmod(path, access.Mode.Perm()); err != nil {
		return fmt.Errorf("set the mode of socket %s: %w", path, err)
	}
	return nil
}

func removeStale(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("look at %s: %w", path, err)
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way and is not a socket: %w", path, block.ErrExists)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the stale socket %s: %w", path, err)
	}
	return nil
}
