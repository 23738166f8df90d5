package control

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// recheckClients is how often a detach looks for clients that slipped in while it began.
const recheckClients = 10 * time.Millisecond

// AttachSpec says how a volume is exported.
type AttachSpec struct {
	Volume string
	// OwnSocket adds a socket that serves this volume only, with the owner (USER[:GROUP], default hvd's own) and mode (octal, default
	// 0600) given.
	OwnSocket   bool
	Owner, Mode string
	// TCP serves the volume over TCP as well, each change durable before its reply, unless TCPWriteback leaves that to the volume's own mode.
	TCP, TCPWriteback bool
	// Clients are the names in the certificates of those who may use it over TCP. None: all that the door lets in, or, for a volume that is
	// attached already, those who could before.
	Clients []string
	// ReadOnly refuses every change.
	ReadOnly bool
	// Inject is what shall go wrong (package nbd/inject). Empty leaves that as it is; "none" ends it.
	Inject string
	// Force serves a volume over TCP again although writes of its client may be lost.
	Force bool
}

// Attach exports a volume over NBD, now and after every restart, until Detach. Attaching it again in the same way does nothing. warning
// is something that the caller should know; it may be empty.
func (c *Control) Attach(ctx context.Context, spec AttachSpec) (attached Attachment, warning string, err error) {
	err = c.change(ctx, "attach", spec.Volume, nil, func() error {
		if warning, err = c.attach(ctx, spec); err != nil {
			return fmt.Errorf("attach volume %q: %w", spec.Volume, err)
		}
		return nil
	})
	if err != nil {
		return Attachment{}, "", err
	}
	return *c.attachmentOf(spec.Volume), warning, nil
}

func (c *Control) attach(ctx context.Context, spec AttachSpec) (warning string, err error) {
	if err := c.checkSpec(spec); err != nil {
		return "", err
	}
	info, err := c.visible(spec.Volume)
	if err == nil {
		err = c.refuseReplica("attach", spec.Volume)
	}
	if err != nil {
		return "", err
	}
	a := newAttachment(attachmentRecord{
		Volume: spec.Volume, UUID: info.UUID.String(), AttachedAt: c.opts.Now().UTC(),
		way: spec.way(), Clients: spec.Clients, Inject: spec.faults(),
	})
	access, err := a.record.access()
	if err != nil {
		return "", err
	}
	if done, err := c.reattach(a.record, spec); done || err != nil {
		return c.keyless(spec.Clients), err
	}
	if err := c.enter(ctx, a); err != nil {
		return "", err
	}
	if dir := unreachable(c.socket(&a.record), access); spec.OwnSocket && dir != "" {
		warning = fmt.Sprintf("users other than root and the daemon's cannot pass %s to reach the socket; chmod o+x it or set nbd.volume-socket-dir", dir)
	}
	return join(join(warning, c.tcpWarning(spec)), c.keyless(spec.Clients)), nil
}

// enter opens the device, puts the attachment into the table and on disk, and opens its own socket; on an error nothing of it stays.
func (c *Control) enter(ctx context.Context, a *attachment) error {
	if _, err := c.openDevice(a); err != nil {
		return err
	}
	c.mu.Lock()
	c.mu.attachments[a.record.Volume] = a
	c.fenceLocked(a)
	c.mu.Unlock()
	err := c.listenOwn(a)
	if err == nil {
		err = c.saveAttachments()
	}
	if err != nil {
		c.leave(a)
		cutOff, cancel := context.WithCancel(ctx)
		cancel() // a client that was quicker than this fault
		return errors.Join(err, c.end(cutOff, a))
	}
	return nil
}

// Detach ends the export of a volume. Connected clients make it fail with block.ErrInUse, unless force ends their connections after the
// requests in flight.
func (c *Control) Detach(ctx context.Context, volume string, force bool) error {
	return c.change(ctx, "detach", volume, nil, func() error {
		if err := c.detach(ctx, volume, force); err != nil {
			return fmt.Errorf("detach volume %q: %w", volume, err)
		}
		return nil
	})
}

func (c *Control) detach(ctx context.Context, volume string, force bool) error {
	a, err := c.beginDetach(volume, force)
	if err != nil {
		return err
	}
	if err := c.saveAttachments(); err != nil {
		c.stay(a)
		return err
	}
	drain, cancel := context.WithTimeout(ctx, c.drainTime(volume))
	defer cancel()
	return c.end(drain, a)
}

// end lets the clients of a leaving attachment go, until ctx ends, and then takes it apart.
func (c *Control) end(ctx context.Context, a *attachment) error {
	c.mu.Lock()
	stopSocket := a.stopSocket
	c.mu.Unlock()
	if stopSocket != nil {
		stopSocket()
	}
	for waiting := true; waiting; {
		for _, export := range c.exportsOf(a.record.Volume) {
			if err := c.nbd.DropConnections(ctx, export); err != nil {
				c.log.Warn("connections were cut off", "export", export, "reason", err)
			}
		}
		select {
		case <-a.idle:
			waiting = false
		case <-time.After(recheckClients): // one acquired the export but the server did not know it yet
		}
	}
	err := a.close()
	c.remove(a)
	return err
}

// beginDetach lets nobody in any more.
func (c *Control) beginDetach(volume string, force bool) (*attachment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.mu.attachments[volume]
	if a == nil {
		return nil, fmt.Errorf("it is not attached: %w", block.ErrNotFound)
	}
	if a.uses > 0 && !force {
		if a.uses == 1 {
			return nil, fmt.Errorf("a client is connected: %w", block.ErrInUse)
		}
		return nil, fmt.Errorf("%d clients are connected: %w", a.uses, block.ErrInUse)
	}
	a.leaving = true
	a.noteIdle()
	return a, nil
}

func (c *Control) leave(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.leaving = true
	a.noteIdle()
}

// stay undoes leave.
func (c *Control) stay(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.leaving = false
	a.idle = make(chan struct{})
}

func (c *Control) remove(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.attachments, a.record.Volume)
}

// listenShared opens the socket of all exports.
func (c *Control) listenShared() error {
	listener, err := unixsock.Listen(c.opts.Config.NBD.Socket, unixsock.Private())
	if err != nil {
		return err
	}
	c.goServe("nbd", func() error { return c.nbd.Serve(c.background, listener) })
	return nil
}

// listenOwn opens the volume's own socket, if it shall have one.
func (c *Control) listenOwn(a *attachment) error {
	if !a.record.OwnSocket {
		return nil
	}
	access, err := a.record.access()
	if err != nil {
		return err
	}
	path := c.socket(&a.record)
	if err := unixsock.CheckPath(path); err != nil {
		return fmt.Errorf("%w; set nbd.volume-socket-dir to a shorter path", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return fmt.Errorf("make the directory of volume sockets: %w", err)
	}
	listener, err := unixsock.Listen(path, access)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(c.background)
	c.mu.Lock()
	a.stopSocket = stop
	c.mu.Unlock()
	exports := ownExports{sharedExports{c}, a.record.Volume}
	c.goServe("nbd "+a.record.Volume, func() error { return c.nbd.ServeExports(ctx, listener, exports) })
	return nil
}

// exportsOf names the exports that an attached volume stands for: itself and its snapshots.
func (c *Control) exportsOf(volume string) []string {
	exports := []string{volume}
	if strings.Contains(volume, momentMark) {
		return exports
	}
	snapshots, err := c.engine.Snapshots(volume)
	if err != nil {
		c.log.Warn("list the snapshots of a volume that is detached", "volume", volume, "error", err)
	}
	for _, s := range snapshots {
		exports = append(exports, volume+"@"+s.Name)
	}
	return exports
}
