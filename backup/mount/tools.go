package mount

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// tools are what is needed, and the packages of Debian that have them.
var tools = map[string]string{"nbdfuse": "libnbd-bin", "fusermount3": "fuse3", "blkid": "util-linux", "sfdisk": "fdisk", "mount": "mount", "umount": "mount"}

// Check reports whether this process can mount at all: an error says what is missing and where it comes from.
func Check() error {
	var programs, packages []string
	for name, from := range tools {
		if find(name) == "" {
			programs, packages = append(programs, name), append(packages, from)
		}
	}
	if len(programs) > 0 {
		slices.Sort(programs)
		slices.Sort(packages)
		return fmt.Errorf("mounting needs %s, which are not installed (Debian: apt install %s; Nix: libnbd, fuse3, util-linux): %w", strings.Join(programs, ", "), strings.Join(slices.Compact(packages), " "), block.ErrNotFound)
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return fmt.Errorf("mounting needs /dev/fuse (modprobe fuse): %w", err)
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("only root can mount; or use attach, and guestmount on its URI: %w", fs.ErrPermission)
	}
	return nil
}

// find returns the path of a program, "" if there is none. The PATH of a user may lack the folders of the system's programs.
func find(name string) string {
	for _, folder := range []string{"", "/usr/local/sbin/", "/usr/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(folder + name); err == nil {
			return path
		}
	}
	return ""
}

const (
	toolTime  = time.Minute
	maxOutput = 1 << 20 // bytes of a program's output that are kept
)

// toolError is what a program said when it failed.
type toolError struct {
	name string
	said string
	err  error
}

func (e *toolError) Error() string {
	return fmt.Sprintf("%s: %s", e.name, orElse(e.said, e.err.Error()))
}

func (e *toolError) Unwrap() error { return e.err }

func orElse(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// run runs a program for a minute at most and returns its output.
func run(ctx context.Context, name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(name), args...)
	var out, said limited
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); err != nil {
		return "", &toolError{name, strings.Join(strings.Fields(said.String()), " "), err}
	}
	return out.String(), nil
}

// limited keeps the first bytes that are written to it.
type limited struct{ b bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxOutput-l.b.Len())])
	return len(p), nil
}

func (l *limited) String() string { return l.b.String() }
