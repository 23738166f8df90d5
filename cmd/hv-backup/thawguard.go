package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

const (
	guardTime    = 2 * time.Minute // after which the guard thaws guests although its parent lives: longer than any freeze
	guardTries   = 2 * time.Minute // in which it tries to, libvirtd may restart
	guardDial    = 20 * time.Second
	guardPause   = time.Second
	guardAtLeast = time.Minute // for thawing where libvirtd came back late
	guardReady   = 'r'         // what the guard says when it watches
	guardDone    = 'd'         // what it is told when nothing is frozen any more
	guardLeft    = 'l'         // what it is told when its parent has said what is frozen, and ends
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

// leave lets the guard thaw on, without waiting for it. Who reads what this process says need not wait for it either.
func (g *thawGuard) leave() error {
	_, err := g.in.Write([]byte{guardLeft})
	return errors.Join(err, g.in.Close(), g.cmd.Process.Release())
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
			switch told(a.in) {
			case guardDone:
				return nil
			case guardLeft:
				if err := letGo(); err != nil {
					a.note("hv-backup: %v", err)
				}
			}
			return a.thawAll(context.WithoutCancel(c.Context()), connect, args)
		},
	}
	c.Flags().StringVar(&connect, "connect", "", connectHelp)
	return c
}

// letGo closes what this process has of its parent's streams: what there is to say the parent has said. Who was killed has not, and his guard keeps them.
func letGo() error {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, fd := range []int{1, 2} {
		err = errors.Join(err, unix.Dup3(int(null.Fd()), fd, 0))
	}
	return errors.Join(err, null.Close())
}

// thawAll thaws the guests of domains, each with a connection of its own, so that one that does not answer keeps no other waiting.
func (a *app) thawAll(ctx context.Context, uri string, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, guardTries)
	defer cancel()
	errs := make([]error, len(ids))
	var all sync.WaitGroup
	for i, id := range ids {
		all.Go(func() {
			for {
				again := false
				if again, errs[i] = a.thawOne(ctx, uri, id); !again {
					return
				}
				select {
				case <-ctx.Done():
					errs[i] = fmt.Errorf("domain %s: %w: %w", id, libvirt.ErrFrozen, errs[i])
					return
				case <-time.After(guardPause):
				}
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// thawOne thaws the guest of a domain, and says whether to try again.
func (a *app) thawOne(ctx context.Context, uri, id string) (again bool, err error) {
	dialing, cancel := context.WithTimeout(ctx, guardDial)
	defer cancel()
	conn, _, err := a.libvirt(dialing, uri)
	if errors.Is(err, block.ErrInvalid) {
		return false, err
	}
	if err != nil {
		return true, err
	}
	defer conn.Close()
	d, err := conn.FindUUID(dialing, id)
	if errors.Is(err, block.ErrNotFound) || errors.Is(err, block.ErrInvalid) {
		return false, nil // it has ended, and is no more
	}
	if err != nil {
		return true, err
	}
	end, _ := ctx.Deadline()
	return false, conn.Thaw(ctx, d, time.Until(end)+guardAtLeast)
}

// told waits until the parent says guardDone or guardLeft, or is gone, or takes too long, which both are 0.
func told(in io.Reader) byte {
	result := make(chan byte, 1)
	go func() { // ends with the process at the latest
		var b [1]byte
		_, _ = io.ReadFull(in, b[:])
		result <- b[0]
	}()
	select {
	case word := <-result:
		return word
	case <-time.After(guardTime):
		return 0
	}
}
