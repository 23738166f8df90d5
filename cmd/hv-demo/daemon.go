package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// daemon is a running hvd.
type daemon struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; read after done
}

// startDaemon starts hvd on a data directory. Its messages go to the end of the file at logPath.
func startDaemon(bin, dataDir, logPath string) (*daemon, error) {
	log, err := os.OpenFile(logPath, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	defer log.Close() // the process has a descriptor of its own
	cmd := exec.Command(filepath.Join(bin, "hvd"), "--data-dir", dataDir, "--listen", "off")
	cmd.Stderr = log
	cmd.Env = cleanEnvironment()
	// A group of its own: Ctrl-C on the terminal reaches the demo alone, which then ends things in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	d := &daemon{cmd: cmd, done: make(chan struct{})}
	go func() {
		defer close(d.done)
		d.err = cmd.Wait()
	}()
	return d, nil
}

// cleanEnvironment is this process's environment without settings of the user's own hvd.
func cleanEnvironment() []string {
	var env []string
	for _, entry := range os.Environ() {
		if !strings.HasPrefix(entry, "HV_") {
			env = append(env, entry)
		}
	}
	return append(env, "HV_CONFIG="+os.DevNull)
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

// kill ends hvd with SIGKILL and waits for its end. It does no harm to one that has ended.
func (d *daemon) kill() error {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-d.done
	return nil
}

// stop ends hvd with SIGTERM and wants it to end clean.
func (d *daemon) stop(ctx context.Context) error {
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-d.done:
		return d.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// mostMemory is the largest resident memory that hvd had. It must have ended.
func (d *daemon) mostMemory() units.Size {
	usage, _ := d.cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if usage == nil {
		return 0
	}
	return units.Size(usage.Maxrss) * 1024
}

// tail returns the last bytes of a log, from the start of a line.
func tail(path string) string {
	const most = 2000
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	end, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	text := make([]byte, min(end, most))
	if _, err := f.ReadAt(text, end-int64(len(text))); err != nil && !errors.Is(err, io.EOF) {
		return ""
	}
	if int64(len(text)) < end {
		_, rest, _ := strings.Cut(string(text), "\n")
		return rest
	}
	return string(text)
}

// fabric is the command hv-storage-fabric, for one daemon.
type fabric struct {
	bin      string
	endpoint string
}

// run executes one command and returns its standard output. The error is the command's own line.
func (f fabric) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(f.bin, "hv-storage-fabric"), append([]string{"--endpoint", f.endpoint}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.Env = cleanEnvironment()
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		if line := strings.TrimSpace(said.String()); line != "" {
			return "", errors.New(line)
		}
		return "", fmt.Errorf("hv-storage-fabric %s: %w", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(string(out)), nil
}
