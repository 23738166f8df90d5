package control

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// A client on this machine goes down with it. One on another machine lives on, comes back, and takes for written whatever was replied, flushed or not. So over
// TCP every change is durable before its reply; or else, for who wants writeback there, it is noted durably that a client is about to write, and if this machine goes down
// before that client has left, the client is not let in again until somebody says so. The death of hvd alone loses nothing.

// tcpMode is the write mode of an export over TCP.
func tcpMode(writeback bool) blockstore.WriteMode {
	if writeback {
		return blockstore.ModeWriteback
	}
	return blockstore.ModeDurable
}

// unflushed is that note of one attachment.
type unflushed struct {
	noted   atomic.Bool // what writers look at
	changed sync.Mutex  // held while the note is changed on disk
	clients int         // over TCP, with writeback; guarded by Control.mu
}

// machineBoot identifies this boot of the machine. Where the kernel does not tell, every start of the daemon counts as one.
func machineBoot(started string) string {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if id := strings.TrimSpace(string(text)); err == nil && id != "" {
		return id
	}
	return "hvd of " + started
}

// refuseLostWrites keeps out clients whose writes may have been lost when the machine went down.
func (c *Control) refuseLostWrites(record attachmentRecord) error {
	if record.UnflushedBoot == "" || record.UnflushedBoot == c.opts.Boot {
		return nil
	}
	return fmt.Errorf("not served over TCP: this machine went down while a client had written in writeback mode, and what it had not flushed may be lost; "+
		"restart the guest or check its disk, then `volume attach %s --tcp --writeback --force`: %w", record.Volume, ErrRefused)
}

// overTCP returns what a client over TCP sees of a volume, and what to do when it leaves.
func (c *Control) overTCP(a *attachment, view shown) (_ shown, leave func()) {
	info, err := c.engine.Volume(a.record.Volume)
	switch {
	case a.record.ReadOnly || err == nil && info.Mode == blockstore.ModeDurable:
		return view, func() {}
	case !a.record.TCPWriteback:
		return durable{view}, func() {}
	}
	c.mu.Lock()
	a.unflushed.clients++
	c.mu.Unlock()
	return noting{view, c, a}, func() {
		c.mu.Lock()
		a.unflushed.clients--
		c.mu.Unlock()
		if err := c.forgetUnflushed(a, view); err != nil {
			c.log.Warn("what the last client wrote could not be flushed", "volume", a.record.Volume, "error", err)
		}
	}
}

// settleUnflushed makes durable what clients wrote before only the daemon died, which lost nothing.
func (c *Control) settleUnflushed(a *attachment, view shown) error {
	if a.record.UnflushedBoot != c.opts.Boot {
		return nil
	}
	a.unflushed.noted.Store(true)
	return c.forgetUnflushed(a, view)
}

// noteUnflushed says durably that a client is about to write.
func (c *Control) noteUnflushed(a *attachment) error {
	u := &a.unflushed
	if u.noted.Load() {
		return nil
	}
	u.changed.Lock()
	defer u.changed.Unlock()
	if u.noted.Load() {
		return nil
	}
	if err := c.saveUnflushed(a, c.opts.Boot); err != nil {
		return fmt.Errorf("note that volume %q is being written over TCP: %w", a.record.Volume, err)
	}
	u.noted.Store(true)
	return nil
}

// forgetUnflushed makes durable what was written and takes the note back, if no client is there any more. Whoever comes meanwhile has to note it anew: noted is
// cleared before the clients are counted.
func (c *Control) forgetUnflushed(a *attachment, view shown) error {
	u := &a.unflushed
	u.changed.Lock()
	defer u.changed.Unlock()
	if !u.noted.Swap(false) {
		return nil
	}
	c.mu.Lock()
	clients := u.clients
	c.mu.Unlock()
	if clients > 0 {
		u.noted.Store(true)
		return nil
	}
	if err := view.Flush(context.Background()); err != nil {
		return err // the note stays on disk
	}
	return c.saveUnflushed(a, "")
}

func (c *Control) saveUnflushed(a *attachment, boot string) error {
	c.mu.Lock()
	a.record.UnflushedBoot = boot
	c.mu.Unlock()
	return c.saveAttachments()
}

// noting notes what its client is about to do before it does so.
type noting struct {
	shown
	c *Control
	a *attachment
}

// TryWrite implements nbd.Device.
func (n noting) TryWrite(batch []nbd.Write, fua bool) error {
	if !n.a.unflushed.noted.Load() {
		return block.ErrWouldBlock
	}
	return n.shown.TryWrite(batch, fua)
}

// Write implements nbd.Device.
func (n noting) Write(ctx context.Context, batch []nbd.Write, fua bool) error {
	if err := n.c.noteUnflushed(n.a); err != nil {
		return err
	}
	return n.shown.Write(ctx, batch, fua)
}

// Trim implements nbd.Device.
func (n noting) Trim(ctx context.Context, r block.Range, fua bool) error {
	if err := n.c.noteUnflushed(n.a); err != nil {
		return err
	}
	return n.shown.Trim(ctx, r, fua)
}

// Zero implements nbd.Device.
func (n noting) Zero(ctx context.Context, r block.Range, noHole, fua bool) error {
	if err := n.c.noteUnflushed(n.a); err != nil {
		return err
	}
	return n.shown.Zero(ctx, r, noHole, fua)
}
