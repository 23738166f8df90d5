package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

const (
	guardTime  = 2 * time.Minute // after which the guard thaws guests although its parent lives: longer than any freeze
	guardReady = 'r'             // what the guard says when it watches
	guardDone  = 'd'             // what it is told when nothing is frozen any more
)

// thawGuard is a process of its own that thaws guests if this one is killed while they are frozen.
type thawGuard struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// guardGuests starts a guard. Guests are frozen only when it watches.
func (a *app) guardGuests(uri string, domains []libvirt.Domain) (*thawGuard, error) {
	g := &thawGuard{cmd: exec.Command("/proc/self/exe", guardArgs(uri, domains)...)}
	g.cmd.Stderr = os.Stderr
	g.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // an interrupt from the terminal is not for it
	out, err := g.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if g.in, err = g.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if err := g.cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
		return nil, errors.Join(errors.New("the process that would thaw guests, if this one were killed, does not start"), g.in.Close(), g.cmd.Wait())
	}
	return g, nil
}

func guardArgs(uri string, domains []libvirt.Domain) []string {
	args := []string{"thaw-guard", "--connect", uri, "--"}
	for _, d := range domains {
		args = append(args, d.UUID)
	}
	return args
}

// end tells the guard that nothing is frozen, and waits for it.
func (g *thawGuard) end() error {
	_, err := g.in.Write([]byte{guardDone})
	return errors.Join(err, g.in.Close(), g.cmd.Wait())
}

// newThawGuard is the command that a guard runs. People have no use for it.
func newThawGuard(a *app) *cobra.Command {
	var connect string
	c := &cobra.Command{
		Use:    "thaw-guard UUID...",
		Short:  "Thaw guests of libvirt when who has frozen them is gone",
		Args:   console.Between(1, 10000, "UUID"),
		Hidden: true,
		RunE: func(c *cobra.Command, args []string) error {
			signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
			if _, err := a.out.Write([]byte{guardReady}); err != nil {
				return err
			}
			if told(a.in) {
				return nil
			}
			ctx := context.WithoutCancel(c.Context())
			conn, _, err := a.libvirt(ctx, connect)
			if err != nil {
				return fmt.Errorf("guests may still be frozen: %w", err)
			}
			defer conn.Close()
			var all error
			for _, id := range args {
				d, err := conn.FindUUID(ctx, id)
				if err == nil {
					err = conn.Thaw(ctx, d)
				}
				all = errors.Join(all, err)
			}
			return all
		},
	}
	c.Flags().StringVar(&connect, "connect", "", connectHelp)
	return c
}

// told waits until the parent says that all is well, which is true, or is gone, or takes too long.
func told(in io.Reader) bool {
	result := make(chan bool, 1)
	go func() { // ends with the process at the latest
		var b [1]byte
		n, _ := io.ReadFull(in, b[:])
		result <- n == 1 && b[0] == guardDone
	}()
	select {
	case well := <-result:
		return well
	case <-time.After(guardTime):
		return false
	}
}
