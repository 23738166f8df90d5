package control

import (
	"os"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Status is the short answer to "how is it?".
type Status struct {
	Version       string
	DataDir       string
	PID           int
	StartedAt     time.Time
	UptimeSeconds uint64
	Volumes       int
	Attached      int
	Connections   int    // NBD connections, those in handshake included
	Space         string // "ok", "near full" or "full"
	NBDSocket     string
	Problems      []string // attached volumes that are not served, and why
}

// Status returns the state of the daemon. It answers when the daemon is ready.
func (c *Control) Status() Status {
	stats := c.engine.Stats()
	s := Status{
		Version: c.opts.Version, DataDir: c.opts.Config.DataDir, PID: os.Getpid(), StartedAt: c.started,
		UptimeSeconds: uint64(max(0, c.opts.Now().Sub(c.started)) / time.Second),
		Volumes:       stats.Volumes, Connections: c.nbd.Stats().Connections, Space: stats.Space.String(),
		NBDSocket: c.opts.Config.NBD.Socket, Problems: []string{},
	}
	for _, a := range c.Attachments() {
		s.Attached++
		if a.Problem != "" {
			s.Problems = append(s.Problems, a.Volume+": "+a.Problem)
		}
	}
	return s
}

// Stats returns the counters of the store.
func (c *Control) Stats() blockstore.Stats { return c.engine.Stats() }
