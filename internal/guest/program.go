package guest

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// packageOf names the Debian package that holds each program the guest needs, for the hint in the error.
func packageOf(program string) string {
	switch program {
	case "mke2fs", "e2fsck", "debugfs":
		return "e2fsprogs"
	case "qemu-system-x86_64":
		return "qemu-system-x86"
	case "dpkg-deb":
		return "dpkg"
	case "apt-get", "apt-cache", "apt-config":
		return "apt"
	case "xz":
		return "xz-utils"
	default:
		return program
	}
}

// findProgram resolves a program by PATH and then by the sbin folders, which an ordinary user's PATH lacks on Debian.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find program %s: not installed, run: apt-get install %s", name, packageOf(name))
}

// command is a program that is to run to its end, with its output kept for the error.
type command struct {
	dir    string                  // working folder, empty for the caller's
	env    []string                // added to the caller's environment
	stdin  []byte                  // nil for no input
	okay   func(exitCode int) bool // nil: only 0 is success
	report bool                    // the reason of a failure is on standard output, and is all of it
}

// run starts the program, waits for it and returns its standard output.
// A failure is one line: the program, how it ended and what it said last.
func (c command) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	path, err := findProgram(name)
	if err != nil {
		return nil, err
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = c.dir, &stdout, &stderr
	// Locale C keeps the messages that are parsed or shown independent of the user's language.
	cmd.Env = append(append(os.Environ(), "LC_ALL=C"), c.env...)
	if c.stdin != nil {
		cmd.Stdin = bytes.NewReader(c.stdin)
	}
	err = cmd.Run()
	if ctx.Err() != nil {
		return nil, fmt.Errorf("run %s: %w", name, ctx.Err())
	}
	if err != nil && (cmd.ProcessState == nil || c.okay == nil || !c.okay(cmd.ProcessState.ExitCode())) {
		reason := lastLine(stderr.Bytes(), stdout.Bytes())
		if c.report {
			reason = strings.Join(strings.Fields(stdout.String()), " ")
		}
		return nil, fmt.Errorf("run %s: %w: %.500s", name, err, reason)
	}
	return stdout.Bytes(), nil
}

// lastLine returns the last line that is not blank of the first output that has one.
func lastLine(outputs ...[]byte) string {
	for _, output := range outputs {
		lines := strings.Split(strings.TrimSpace(string(output)), "\n")
		if last := strings.TrimSpace(lines[len(lines)-1]); last != "" {
			return last
		}
	}
	return "no message"
}
