package control

import (
	"fmt"
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
	Space         string // "ok", "near full", "nearly full" or "full"
	NBDSocket     string
	NBDTCP        string                 // nbds://HOST:PORT or nbd://HOST:PORT; empty where NBD is not served over TCP
	Problems      []string               // attached volumes that are not served, and why; other things that should not be so
	Alarms        []string               // what is nearly full, or full, or otherwise needs somebody, and the next step
	Faults        []string               // attached volumes in which something goes wrong on purpose, and what
	Encryption    *blockstore.Encryption // nil: the store is not encrypted
}

// Status returns the state of the daemon. It answers when the daemon is ready.
func (c *Control) Status() Status {
	stats := c.engine.Stats()
	s := Status{
		Version: c.opts.Version, DataDir: c.opts.Config.DataDir, PID: os.Getpid(), StartedAt: c.started,
		UptimeSeconds: uint64(max(0, c.opts.Now().Sub(c.started)) / time.Second),
		Volumes:       stats.Volumes, Connections: c.nbd.Stats().Connections, Space: stats.Space.String(),
		NBDSocket: c.opts.Config.NBD.Socket, Problems: []string{}, Alarms: []string{}, Faults: []string{}, Encryption: c.engine.Encryption(),
	}
	c.checkConditions()
	for _, alarm := range c.Alarms().Now() {
		s.Alarms = append(s.Alarms, alarm.Line())
	}
	if n := stats.Corruptions; n > 0 {
		s.Problems = append(s.Problems, fmt.Sprintf("data failed its check %d times since the start: the log says where; stop hvd and run hv-storage-fabric store check %s", n, s.DataDir))
	}
	if behind := c.Index().behind(); behind != "" {
		s.Problems = append(s.Problems, behind)
	}
	if c.tcp != nil {
		s.NBDTCP = c.tcp.base()
		if err := c.tcp.checkSecrets(); err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	s.Problems = append(s.Problems, diskProblems(c.engine.Redundancy())...)
	s.Problems = append(s.Problems, c.scheduleProblems()...)
	s.Problems = append(s.Problems, c.restoreProblems()...)
	s.Problems = append(s.Problems, c.replicationProblems()...)
	s.Problems = append(s.Problems, c.repositoryProblems()...)
	for _, a := range c.Attachments() {
		s.Attached++
		if a.Problem != "" {
			s.Problems = append(s.Problems, a.Volume+": "+a.Problem)
		}
		if a.Inject != "" {
			s.Faults = append(s.Faults, a.Volume+": "+a.Inject)
		}
	}
	return s
}

// Stats returns the counters of the store.
func (c *Control) Stats() blockstore.Stats { return c.engine.Stats() }
