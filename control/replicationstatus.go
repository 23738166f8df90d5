package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// Replication is what a user sees of a volume's replication, or of a group's: that has the sums of its members.
type Replication struct {
	Volume          string     `json:"volume"`          // or @GROUP
	Group           string     `json:"group,omitempty"` // whose volumes have points of one moment
	Role            string     `json:"role"`            // source, replica, promoting or primary
	State           string     `json:"state"`           // sending, receiving, ready (all of it came, and the others of its group are awaited), waiting, failing, fenced or promoted
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
	LimitBytes      uint64     `json:"limitBytes"`  // a second, of a source, or of all of its group together; 0: none
	Error           string     `json:"error,omitempty"`

	Members []Replication `json:"members,omitempty"` // of a group
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
		if s, err := c.volumeReplication(ctx, volume); err == nil {
			list = append(list, s)
		}
	}
	return list
}

// Replication describes the replication of a volume, or of @GROUP.
func (c *Control) Replication(ctx context.Context, name string) (Replication, error) {
	if !strings.HasPrefix(name, "@") {
		return c.volumeReplication(ctx, name)
	}
	rs, err := c.named(name)
	if err != nil {
		return Replication{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, allBehindTime)
	defer cancel()
	var members []Replication
	for _, record := range c.recordsIn(rs) {
		one, err := c.volumeReplication(ctx, record.Volume)
		if err != nil {
			return Replication{}, err
		}
		members = append(members, one)
	}
	return ofGroup(name, members), nil
}

// ofGroup describes a group by its members.
func ofGroup(name string, members []Replication) Replication {
	all := members[0] // what they have in common
	all.Volume, all.Pair, all.Members = name, "", members
	all.TotalBytes, all.DoneBytes, all.RateBytes, all.DataBytes, all.WireBytes = 0, 0, 0, 0, 0
	behind, known := uint64(0), true
	for _, m := range members {
		all.TotalBytes, all.DoneBytes, all.RateBytes = all.TotalBytes+m.TotalBytes, all.DoneBytes+m.DoneBytes, all.RateBytes+m.RateBytes
		all.DataBytes, all.WireBytes = all.DataBytes+m.DataBytes, all.WireBytes+m.WireBytes
		all.Epoch, all.FencedBy, all.Failures = max(all.Epoch, m.Epoch), max(all.FencedBy, m.FencedBy), max(all.Failures, m.Failures)
		if stateRank[m.State] > stateRank[all.State] {
			all.State = m.State
		}
		if known = known && m.BehindBytes != nil; known {
			behind += *m.BehindBytes
		}
		all.Error = cmp.Or(all.Error, m.Error)
	}
	if all.BehindBytes = &behind; !known {
		all.BehindBytes = nil
	}
	return all
}

// stateRank says which state is that of a group whose members have several.
var stateRank = map[string]int{"waiting": 0, "promoted": 1, "ready": 2, "receiving": 3, "sending": 3, "failing": 4, "fenced": 5}

func (c *Control) volumeReplication(ctx context.Context, volume string) (Replication, error) {
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
		RateBytes: p.rate, Cycles: p.cycles, Failures: p.failures, DataBytes: p.bytes, WireBytes: p.wireBytes, Error: p.failed, LimitBytes: record.LimitBytes,
	}
	if record.Group != nil {
		s.Group = record.Group.Name
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
	case record.Receiving != nil && record.Receiving.Complete:
		s.State = "ready"
	default:
		s.State = "waiting"
	}
	return s, record, nil
}

// replicationProblems says which replications do not go on.
func (c *Control) replicationProblems() (all []string) {
	told := map[string]bool{}
	for _, volume := range c.replicatedVolumes() {
		s, record, err := c.replicationNow(volume)
		name := record.name()
		if err != nil || told[name] {
			continue
		}
		switch told[name] = true; { // those of a group are alike
		case s.State == "fenced":
			all = append(all, fmt.Sprintf("%s: its replica was promoted, so it takes no writes: `hv-storage-fabric volume replicate demote %s`, or `stop` to go its own way", name, name))
		case s.State == "failing":
			all = append(all, fmt.Sprintf("%s: its replication fails: %s", name, s.Error))
		case s.Role == rolePromoting:
			all = append(all, fmt.Sprintf("%s: its promotion is not complete: run `hv-storage-fabric volume replicate promote %s` again", name, name))
		case s.Role == roleSource && c.otherMembers(record):
			all = append(all, fmt.Sprintf("%s: the group has other volumes than are replicated: run `hv-storage-fabric volume replicate %s %s` again", name, name, record.Target))
		default:
			told[name] = false
		}
	}
	return all
}

// otherMembers reports whether the group of a source, if there is one of volumes here, has become another.
func (c *Control) otherMembers(record replicationRecord) bool {
	if record.Group == nil {
		return false
	}
	volumes, members, err := c.toReplicate(record.Group.Name)
	return err == nil && !slices.Equal(volumes, members)
}
