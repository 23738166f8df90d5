package control

import (
	"fmt"
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

// Acquire implements nbd.Exports.
func (s sharedExports) Acquire(name string) (nbd.Export, func(), error) {
	a, err := s.c.use(name)
	if err != nil {
		return nbd.Export{}, nil, err
	}
	device, err := s.c.openDevice(a)
	s.c.noteProblem(a, err)
	if err != nil {
		s.c.unuse(a)
		return nbd.Export{}, nil, err
	}
	export := nbd.Export{Name: name, Device: device, MinBlock: block.SectorSize, PreferredBlock: preferredBlock, MaxBlock: maxBlock}
	return export, func() { s.c.unuse(a) }, nil
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

// nbdEvents logs what an operator should know of the NBD server.
func (c *Control) nbdEvents() nbd.Events {
	return nbd.Events{
		Connected: func(p nbd.Peer) { c.log.Info("NBD client connected", "volume", p.Export) },
		Disconnected: func(p nbd.Peer, err error) {
			if err != nil {
				c.log.Warn("NBD client lost", "volume", p.Export, "error", err)
				return
			}
			c.log.Info("NBD client left", "volume", p.Export)
		},
		HandshakeFailed: func(_ net.Addr, err error) { c.log.Info("NBD handshake failed", "error", err) },
		Refused: func(net.Addr) {
			c.log.Warn("NBD connection refused: too many", "max", c.opts.Config.NBD.MaxConnections)
		},
		RequestFailed: func(p nbd.Peer, f nbd.Failure) {
			c.log.Error("NBD request failed", "volume", p.Export, "command", f.Command, "offsetBytes", f.Off, "lengthBytes", f.Len, "error", f.Err)
		},
		Evicted: func(p nbd.Peer) {
			c.log.Warn("NBD client dropped: it stalled while memory was short", "volume", p.Export)
		},
		AcceptFailed: func(err error) { c.log.Error("NBD accept failed", "error", err) },
	}
}
