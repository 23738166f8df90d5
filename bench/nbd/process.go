package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// process is a running server in its group.
type process struct {
	args  []string
	cmd   *exec.Cmd
	group *group
	log   string
	done  chan struct{}
	err   error // how it ended; read after done
}

// startProcess starts a server in a new group. What it says goes to the end of the file at logPath.
func startProcess(name, logPath string, args []string) (*process, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has a descriptor of its own
	p := &process{args: args, group: newGroup(name), log: logPath, done: make(chan struct{})}
	wrapped := p.group.wrap(args)
	p.cmd = exec.Command(wrapped[0], wrapped[1:]...)
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Env = cleanEnvironment()
	// A process group of its own: Ctrl-C on the terminal reaches this program alone, which then ends things in order.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", args[0], err), p.group.remove())
	}
	p.group.pid = p.cmd.Process.Pid
	go func() {
		defer close(p.done)
		p.err = p.cmd.Wait()
	}()
	return p, nil
}

// cleanEnvironment is this process's environment without settings of the user's own hvd.
func cleanEnvironment() []string {
	env := []string{"HV_CONFIG=" + os.DevNull}
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "HV_") {
			env = append(env, entry)
		}
	}
	return env
}

// listening returns when somebody accepts at a unix socket, or an error when the process ended or took too long.
func (p *process) listening(ctx context.Context, socket string) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended by itself (%w): %s", p.args[0], p.err, tail(p.log))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s at %s: %w", p.args[0], socket, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// patience is how long a server may take to end when it is asked to.
const patience = time.Minute

// stop ends the process, by force if it does not end by itself, and removes its group.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(patience):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	return p.group.remove()
}

// tail returns the end of a log in one line.
func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	text = text[max(0, len(text)-500):]
	return strings.ReplaceAll(strings.TrimSpace(string(text)), "\n", " | ")
}
