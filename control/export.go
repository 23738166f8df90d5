package control

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Block sizes announced to NBD clients, in bytes. The largest is what QEMU uses at most.
const (
	preferredBlock = block.Size
	maxBlock       = 32 << 20
)

// sharedExports is the table of the socket that serves all attached volumes. It has no default export.
type sharedExports struct{ c *Control }

// Acquire implements nbd.Exports. Beside an attached volume its snapshots are to be had, read-only, as VOLUME@SNAPSHOT.
func (s sharedExports) Acquire(name string) (nbd.Export, func(), error) {
	return s.acquire(name, false)
}

func (s sharedExports) acquire(name string, overTCP bool) (nbd.Export, func(), error) {
	volume, snapshot, ofSnapshot := strings.Cut(name, "@")
	if strings.Contains(name, momentMark) {
		volume, snapshot, ofSnapshot = name, "", false // has an attachment of its own
	}
	a, err := s.c.use(volume)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	if ofSnapshot {
		return s.acquireSnapshot(a, name, snapshot)
	}
	view, err := s.c.openDevice(a)
	s.c.noteProblem(a, err)
	if err != nil {
		s.c.unuse(a)
		return nbd.Export{}, nil, err
	}
	leave := func() {}
	if overTCP && !a.record.isMoment() {
		view, leave = s.c.overTCP(a, view)
	}
	return exportOf(name, view), func() { leave(); s.c.unuse(a) }, nil
}

// exportOf is a volume, one of its snapshots or one of its moments, under the name that clients know it by. All of one volume share what memory the server has for it.
func exportOf(name string, view shown) nbd.Export {
	volume, _, _ := strings.Cut(name, "@")
	return nbd.Export{Name: name, Tenant: volume, Device: view, MinBlock: block.SectorSize, PreferredBlock: preferredBlock, MaxBlock: maxBlock}
}

// acquireSnapshot opens a snapshot of an attached volume for one connection. While it lasts the snapshot cannot be deleted.
func (s sharedExports) acquireSnapshot(a *attachment, name, snapshot string) (nbd.Export, func(), error) {
	err := fmt.Errorf("export %q: %w", name, block.ErrNotFound)
	var device Device
	if snapshot != "" && !hidden(snapshot) {
		device, err = s.c.engine.OpenDevice(a.record.Volume, snapshot)
	}
	if err != nil {
		s.c.unuse(a)
		return nbd.Export{}, nil, err
	}
	return exportOf(name, reporting{device}), func() {
		if err := device.Close(); err != nil {
			s.c.log.Warn("close snapshot", "export", name, "error", err)
		}
		s.c.unuse(a)
	}, nil
}

// List implements nbd.Exports.
func (s sharedExports) List() []nbd.Export {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	exports := make([]nbd.Export, 0, len(s.c.mu.attachments))
	for name, a := range s.c.mu.attachments {
		if !a.leaving {
			exports = append(exports, nbd.Export{Name: name})
		}
	}
	slices.SortFunc(exports, func(a, b nbd.Export) int { return strings.Compare(a.Name, b.Name) })
	return exports
}

// ownExports is the table of a volume's own socket: that volume, which is the default export too.
type ownExports struct {
	sharedExports
	volume string
}

// Acquire implements nbd.Exports.
func (o ownExports) Acquire(name string) (nbd.Export, func(), error) {
	if strings.HasPrefix(name, o.volume+"@") {
		return o.sharedExports.Acquire(name)
	}
	if name != "" && name != o.volume {
		return nbd.Export{}, nil, fmt.Errorf("export %q on the socket of volume %q: %w", name, o.volume, block.ErrNotFound)
	}
	return o.sharedExports.Acquire(o.volume)
}

// List implements nbd.Exports.
func (o ownExports) List() []nbd.Export { return []nbd.Export{{Name: o.volume}} }

// use counts a connection in.
func (c *Control) use(name string) (*attachment, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a := c.mu.attachments[name]
	if a == nil || a.leaving {
		return nil, fmt.Errorf("export %q: %w", name, block.ErrNotFound)
	}
	a.uses++
	return a, nil
}

func (c *Control) unuse(a *attachment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	a.uses--
	a.noteIdle()
}

// noteIdle is called with Control.mu held.
func (a *attachment) noteIdle() {
	if !a.leaving || a.uses > 0 {
		return
	}
	select {
	case <-a.idle:
	default:
		close(a.idle)
	}
}

// noteProblem remembers why an export does not serve, or that it does again. A missing socket of its own is not mended by an open.
func (c *Control) noteProblem(a *attachment, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err != nil:
		a.problem = err.Error()
	case !a.record.OwnSocket || a.stopSocket != nil:
		a.problem = ""
	}
}

// tellOfFailure logs a request that the device could not do, the first of its kind in a minute: a guest that is out of space, or a disk that is damaged, fails thousands of them a second. All
// are counted (Stats).
func (c *Control) tellOfFailure(p nbd.Peer, f nbd.Failure) {
	tell, heldBack := c.repeats.tell(fmt.Sprint("NBD request failed\x00", p.Export, "\x00", f.Command, "\x00", f.Told))
	if !tell {
		return
	}
	about := []any{"volume", p.Export, "command", f.Command, "offsetBytes", f.Off, "lengthBytes", f.Len, "error", f.Err}
	if heldBack > 0 {
		about = append(about, "heldBack", heldBack)
	}
	c.log.Error("NBD request failed", about...)
}

// nbdEvents logs what an operator should know of the NBD server.
func (c *Control) nbdEvents() nbd.Events {
	clients := newClientLog(c.log, c.opts.Now)
	return nbd.Events{
		Connected:       clients.came,
		Disconnected:    clients.went,
		HandshakeFailed: func(from net.Addr, err error) { c.tellOf(slog.LevelInfo, from, "NBD handshake failed", "error", err) },
		Refused: func(from net.Addr) {
			c.tellOf(slog.LevelWarn, from, "NBD connection refused: too many", "max", c.opts.Config.NBD.MaxConnections)
		},
		RequestFailed: c.tellOfFailure,
		Evicted: func(p nbd.Peer) {
			c.log.Warn("NBD client dropped: it stalled while memory was short", "volume", p.Export)
		},
		AcceptFailed: func(err error) { c.log.Error("NBD accept failed", "error", err) },
	}
}
