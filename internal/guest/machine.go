package guest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
)

// Machine is a running guest. Its methods may be called from several goroutines.
type Machine struct {
	dir       string
	qmpSocket string
	cmd       *exec.Cmd
	stdin     io.WriteCloser // the guest's serial input
	stderr    bytes.Buffer   // qemu's own messages; read after done
	console   *console
	qmpMu     sync.Mutex // one QMP session at a time, as qemu serves no more
	done      chan struct{}
	err       error // how qemu ended; read after done
}

// startMachine starts qemu with args. The machine owns dir from then on; Wait removes it.
func startMachine(ctx context.Context, dir, qmpSocket string, args []string) (*Machine, error) {
	path, err := findProgram("qemu-system-x86_64")
	if err != nil {
		return nil, err
	}
	m := &Machine{dir: dir, qmpSocket: qmpSocket, console: newConsole(), done: make(chan struct{})}
	m.cmd = exec.CommandContext(ctx, path, args...)
	m.cmd.Stderr = &m.stderr
	if m.stdin, err = m.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	stdout, err := m.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	go func() {
		defer close(m.done)
		// Wait closes the pipe, so everything must have been read from it before.
		m.console.readFrom(stdout)
		m.err = m.ended(ctx, m.cmd.Wait())
		os.RemoveAll(dir)
	}()
	return m, nil
}

// ended explains how qemu ended: nil for a guest that powered off.
func (m *Machine) ended(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("guest was killed: %w", ctx.Err())
	default:
		return fmt.Errorf("qemu ended: %w: %s", err, lastLine(m.stderr.Bytes()))
	}
}

// PID returns the process id of this machine's qemu.
func (m *Machine) PID() int { return m.cmd.Process.Pid }

// Serial returns the serial output so far, at most its last 4 MiB.
func (m *Machine) Serial() string { return m.console.text() }

// WaitMarker waits until a line of the serial console, past ones included, has marker as whole words: "SYNCED 2" is not found
// in "SYNCED 20". It returns that line. If the guest ends without it, or ctx ends, the error shows the last lines there are.
func (m *Machine) WaitMarker(ctx context.Context, marker string) (line string, err error) {
	next := 0
	for {
		lines, after, ended, changed := m.console.since(next)
		for _, line := range lines {
			if hasMarker(line, marker) {
				return line, nil
			}
		}
		if ended {
			<-m.done
			return "", fmt.Errorf("wait for %q: the guest has ended (qemu: %s); %s", marker, lastLine(m.stderr.Bytes()), m.tail())
		}
		next = after
		select {
		case <-changed:
		case <-ctx.Done():
			return "", fmt.Errorf("wait for %q: %w; %s", marker, ctx.Err(), m.tail())
		}
	}
}

// tail returns the end of the serial output, for errors.
func (m *Machine) tail() string {
	const shown = 12 // lines
	lines := strings.Split(strings.TrimSpace(m.Serial()), "\n")
	return "last console lines:\n" + strings.Join(lines[max(0, len(lines)-shown):], "\n")
}

// Synced returns the number of the newest file that the guest has reported as fsynced, 0 if there is none.
func (m *Machine) Synced() int {
	newest := 0
	lines, _, _, _ := m.console.since(0)
	for _, line := range lines {
		if n, ok := syncedNumber(line); ok {
			newest = max(newest, n)
		}
	}
	return newest
}

// Errors returns the lines in which the guest or its kernel complains about its disk.
func (m *Machine) Errors() []string {
	var found []string
	lines, _, _, _ := m.console.since(0)
	for _, line := range lines {
		if isErrorLine(line) {
			found = append(found, line)
		}
	}
	return found
}

// Stop asks the task to end early. The guest then unmounts its disk and powers off, which Wait waits for.
func (m *Machine) Stop() error {
	if _, err := io.WriteString(m.stdin, "stop\n"); err != nil {
		return fmt.Errorf("stop guest: %w", err)
	}
	return nil
}

// QMP runs a command of the QEMU Machine Protocol, such as "query-status"; arguments may be nil.
// It returns the "return" part of the reply, or the error that QEMU answered.
func (m *Machine) QMP(ctx context.Context, command string, arguments any) (json.RawMessage, error) {
	m.qmpMu.Lock()
	defer m.qmpMu.Unlock()
	return qmpRun(ctx, m.qmpSocket, command, arguments)
}

// Wait waits until qemu has ended. The error is nil if the guest powered itself off.
func (m *Machine) Wait() error {
	<-m.done
	return m.err
}

// Kill ends the guest as a power cut would, and waits for its qemu. The disk is left as it is.
func (m *Machine) Kill() error {
	if err := m.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill guest: %w", err)
	}
	<-m.done
	return nil
}
