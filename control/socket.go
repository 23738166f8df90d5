package control

import (
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// exportURI is the URI of an export on a unix socket.
func exportURI(volume, socket string) string {
	return nbd.UnixURI(socket, volume)
}

// access reads owner and mode of a volume's own socket. Users and groups may be names or numbers.
func (r way) access() (unixsock.Access, error) {
	access := unixsock.Private()
	if r.Mode != "" {
		mode, err := strconv.ParseUint(r.Mode, 8, 32)
		if err != nil || mode > 0o777 {
			return access, fmt.Errorf("socket mode %q: want octal permissions such as 0660: %w", r.Mode, block.ErrInvalid)
		}
		access.Mode = fs.FileMode(mode)
	}
	owner, group, hasGroup := strings.Cut(r.Owner, ":")
	if owner != "" {
		u, err := lookup(owner, user.LookupId, user.Lookup)
		if err != nil {
			return access, fmt.Errorf("socket owner %q is not a user here: %w", owner, block.ErrInvalid)
		}
		access.UID, _ = strconv.Atoi(u.Uid)
		access.GID, _ = strconv.Atoi(u.Gid)
	}
	if hasGroup {
		g, err := lookup(group, user.LookupGroupId, user.LookupGroup)
		if err != nil {
			return access, fmt.Errorf("socket group %q is not a group here: %w", group, block.ErrInvalid)
		}
		access.GID, _ = strconv.Atoi(g.Gid)
	}
	return access, nil
}

// lookup finds by number what is a number and by name what is not.
func lookup[T any](text string, byID, byName func(string) (*T, error)) (*T, error) {
	if _, err := strconv.ParseUint(text, 10, 32); err == nil {
		return byID(text)
	}
	return byName(text)
}

// unreachable names the first folder above path that others may not pass, if access is meant for others; else "".
func unreachable(path string, access unixsock.Access) string {
	if access.UID < 0 && access.GID < 0 && access.Mode&0o066 == 0 || access.UID == os.Geteuid() && access.Mode&0o066 == 0 {
		return ""
	}
	for dir := filepath.Dir(path); ; dir = filepath.Dir(dir) {
		if info, err := os.Stat(dir); err == nil && info.Mode().Perm()&0o001 == 0 {
			return dir
		}
		if dir == filepath.Dir(dir) {
			return ""
		}
	}
}
