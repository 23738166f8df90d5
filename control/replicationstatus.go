package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// Replication is what a user sees of a volume's replication.
type Replication struct {
	Volume          string     `json:"volume"`
	Role            string     `json:"role"`  // source, replica, promoting or primary
	State           string     `json:"state"` // sending, receiving, waiting, failing, fenced or promoted
	Pair            string     `json:"pair"`
	Epoch           uint64     `json:"epoch"`
	FencedBy        uint64     `json:"fencedBy,omitempty"` // epoch of the other side, which was promoted
	Target          string     `json:"target,omitempty"`
	Peer            string     `json:"peer,omitempty"`
	IntervalSeconds float64    `json:"intervalSeconds,omitempty"`
	PointAt         *time.Time `json:"pointAt"`     // of the last complete point; null: none is
	RPOSeconds      *float64   `json:"rpoSeconds"`  // its age: what a promotion now would lose; null: everything. Of a replica by the clocks of both machines
	BehindBytes     *uint64    `json:"behindBytes"` // of a source: what differs now from the last complete point; null: not known
	TotalBytes      uint64     `json:"totalBytes"`  // of data in the point that is being sent
	DoneBytes       uint64     `json:"doneBytes"`   // of these, or of what is being received
	RateBytes       float64    `json:"rateBytes"`   // a second: of the point under way, or of the last one that had any
	Cycles          uint64     `json:"cycles"`      // points that became complete since hvd started
	Failures        uint64     `json:"failures"`    // tries that did not, since hvd started
	DataBytes       uint64     `json:"dataBytes"`   // in complete points that were sent or received since hvd started
	WireBytes       uint64     `json:"wireBytes"`   // of a source: what that took on the wire
	Error           string     `json:"error,omitempty"`
}

// How long it is counted at most what targets do not have: of one volume, and of all.
const (
	behindTime    = 2 * time.Second
	allBehindTime = 5 * time.Second
)

// Replications lists all replications ordered by volume.
func (c *Control) Replications(ctx context.Context) []Replication {
	ctx, cancel := context.WithTimeout(ctx, allBehindTime)
	defer cancel()
	list := []Replication{}
	for _, volume := range c.replicatedVolumes() {
		if s, err := c.Replication(ctx, volume); err == nil {
			list = append(list, s)
		}
	}
	return list
}

// Replication describes the replication of a volume.
func (c *Control) Replication(ctx context.Context, volume string) (Replication, error) {
	s, record, err := c.replicationNow(volume)
	if err != nil {
		return s, err
	}
	if p := record.newest(); p.ID != "" && record.Role == roleSource {
		ctx, cancel := context.WithTimeout(ctx, behindTime)
		defer cancel()
		if n, err := c.differenceBytes(ctx, volume, pointName(p.ID), ""); err == nil {
			s.BehindBytes = &n
		}
	}
	return s, nil
}

// replicationNow describes a replication without asking the engine.
func (c *Control) replicationNow(volume string) (Replication, replicationRecord, error) {
	now := c.opts.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.mu.replications[volume]
	if r == nil {
		return Replication{}, replicationRecord{}, fmt.Errorf("replication of volume %q: %w", volume, block.ErrNotFound)
	}
	record, p := r.record, &r.progress
	s := Replication{
		Volume: volume, Role: record.Role, Pair: record.Pair, Epoch: record.Epoch, FencedBy: record.FencedBy, Target: record.Target, Peer: record.Peer, IntervalSeconds: record.Interval.Seconds(),
		RateBytes: p.rate, Cycles: p.cycles, Failures: p.failures, DataBytes: p.bytes, WireBytes: p.wireBytes, Error: p.failed,
	}
	if at := record.newest(); at.ID != "" && at.ID != replica.Empty {
		age := max(0, now.Sub(at.At).Seconds())
		s.PointAt, s.RPOSeconds = &at.At, &age
	}
	if n := p.now; n != nil {
		s.TotalBytes, s.DoneBytes = n.total.Load(), n.done.Load()
		if d := now.Sub(p.begun).Seconds(); d > 0.1 {
			s.RateBytes = float64(s.DoneBytes) / d
		}
	}
	switch {
	case record.FencedBy != 0:
		s.State = "fenced"
	case record.Role == rolePrimary || record.Role == rolePromoting:
		s.State = "promoted"
	case p.failed != "":
		s.State = "failing"
	case p.now != nil && record.Role == roleSource:
		s.State = "sending"
	case p.now != nil:
		s.State = "receiving"
	default:
		s.State = "waiting"
	}
	return s, record, nil
}

// replicationProblems says which replications do not go on.
func (c *Control) replicationProblems() (all []string) {
	for _, volume := range c.replicatedVolumes() {
		switch s, _, err := c.replicationNow(volume); {
		case err != nil:
		case s.State == "fenced":
			all = append(all, fmt.Sprintf("%s: its replica was promoted, so it takes no writes: `hv-storage-fabric volume replicate demote %s`, or `stop` to go its own way", volume, volume))
		case s.State == "failing":
			all = append(all, fmt.Sprintf("%s: its replication fails: %s", volume, s.Error))
		case s.Role == rolePromoting:
			all = append(all, fmt.Sprintf("%s: its promotion is not complete: run `hv-storage-fabric volume replicate promote %s` again", volume, volume))
		}
	}
	return all
}
