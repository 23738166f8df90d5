package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// changeRole runs do on the replication of a volume, or on those of @GROUP, while the names are held and no session of them runs.
func (c *Control) changeRole(ctx context.Context, verb, name string, do func([]*replication) error) error {
	rs, release, err := c.holdReplications(ctx, verb, name)
	if err != nil {
		return err
	}
	defer release()
	free, err := c.occupy(rs...)
	if err != nil {
		return err
	}
	if err = do(rs); err != nil {
		err = fmt.Errorf("%s %s: %w", verb, calledName(name), err)
	}
	free()
	return errors.Join(err, c.startAll(rs)) // which does nothing for what is no source, or none any more
}

// calledName is what errors call a volume or a group.
func calledName(name string) string {
	if strings.HasPrefix(name, "@") {
		return name
	}
	return fmt.Sprintf("volume %q", name)
}

// PromoteReplica makes an ordinary volume of a replica, or such volumes of all of @GROUP, as they were at the last complete point, with an epoch that is greater than their source's: which is refused from now on, learns why, and takes no
// writes any more. The volumes of a group are as they were at one moment, and all are promoted or none.
func (c *Control) PromoteReplica(ctx context.Context, name string) error {
	return c.changeRole(ctx, "promote", name, func(rs []*replication) error {
		records := c.recordsIn(rs)
		if err := mayPromote(records); err != nil {
			return err
		}
		if err := c.changeReplications(replicationChange{records: rs, how: func(_ int, record *replicationRecord) error {
			if record.Role == roleReplica {
				record.Role, record.Epoch = rolePromoting, record.Epoch+1
			}
			return nil
		}}); err != nil {
			return err
		}
		var errs []error
		for _, r := range rs {
			if c.recordIn(r).Role == rolePromoting {
				errs = append(errs, c.finishPromotion(ctx, r))
			}
		}
		return errors.Join(errs...)
	})
}

// mayPromote reports why volumes cannot be promoted. Of a group some may have become primaries in a try that did not end.
func mayPromote(records []replicationRecord) error {
	waiting := false
	for _, record := range records {
		waiting = waiting || record.receives()
		switch {
		case !record.receives() && (record.Role != rolePrimary || len(records) == 1):
			return fmt.Errorf("it is a %s and no replica: %w", record.Role, ErrRefused)
		case record.newest().ID == replica.Empty:
			return fmt.Errorf("nothing of it is complete yet: %w", ErrRefused)
		case record.newest().ID != records[0].newest().ID:
			return fmt.Errorf("volumes %q and %q have no point of one moment: %w", records[0].Volume, record.Volume, ErrRefused)
		case record.Role == roleReplica && record.Epoch >= replica.MaxEpoch:
			return fmt.Errorf("its epoch is the last one: %w", ErrRefused)
		}
	}
	if !waiting {
		return fmt.Errorf("its volumes are promoted already: %w", ErrRefused)
	}
	return nil
}

// finishPromotion makes a primary of a volume that is being promoted. To repeat it after a crash does no harm, as nobody writes before it is over.
func (c *Control) finishPromotion(ctx context.Context, r *replication) error {
	record := c.recordIn(r)
	if record.Receiving != nil {
		if err := c.engine.Rollback(ctx, record.Volume, pointName(record.newest().ID)); err != nil {
			return err
		}
		if err := c.flushVolume(ctx, record.Volume); err != nil {
			return err
		}
	}
	if err := c.changeReplication(r, func(record *replicationRecord) { record.Role, record.Receiving = rolePrimary, nil }); err != nil {
		return err
	}
	c.tidyPoints(ctx, record.Volume)
	c.log.Warn("a replica was promoted", "volume", record.Volume, "epoch", record.Epoch, "point", record.newest().At)
	return nil
}

// Demotion is what a demotion gives up, or would.
type Demotion struct {
	LostBytes uint64   // what differs from the newest point that the other side may have
	Left      []string // volumes of a group of which the other side has nothing: they are replicated no more, and stay what they are
}

// DemoteReplica makes replicas of a source or a primary, or of all of @GROUP, that are not attached: they take what the other side, once that is promoted, sends. What was written since the last point that both have is lost with the first
// point that comes. dryRun changes nothing.
func (c *Control) DemoteReplica(ctx context.Context, name string, dryRun bool) (d Demotion, err error) {
	err = c.changeRole(ctx, "demote", name, func(rs []*replication) error {
		var change replicationChange
		var points [][]replicaPoint
		for _, r := range rs {
			record := c.recordIn(r)
			if record.Role != roleSource && record.Role != rolePrimary {
				return fmt.Errorf("it is a replica already: %w", ErrRefused)
			}
			known := append([]replicaPoint{}, record.Points...)
			if record.Sending != nil {
				known = append(known, *record.Sending) // the other side may have it
			}
			if len(known) == 0 {
				change.drop = append(change.drop, r)
				d.Left = append(d.Left, record.Volume)
				continue
			}
			n, err := c.differenceBytes(ctx, record.Volume, pointName(known[len(known)-1].ID), "")
			if err != nil {
				return err
			}
			d.LostBytes += n
			change.records, points = append(change.records, r), append(points, known)
		}
		if len(points) == 0 {
			return fmt.Errorf("the other side has nothing of it: %w", ErrRefused)
		}
		if dryRun {
			return nil
		}
		for _, r := range change.records {
			if err := c.refuseAttached("demote", c.recordIn(r).Volume); err != nil {
				return err
			}
		}
		change.how = func(i int, record *replicationRecord) error {
			record.Epoch = max(record.Epoch, record.FencedBy)
			record.Role, record.Points, record.Sending, record.FencedBy, record.Target, record.Interval, record.Peer, record.LimitBytes = roleReplica, points[i], nil, 0, "", 0, "", 0
			record.Receiving = &receivingRecord{} // the content is that of no point
			return nil
		}
		if err := c.changeReplications(change); err != nil {
			return err
		}
		for _, volume := range d.Left {
			c.showFence(volume)
		}
		return nil
	})
	return d, err
}

// StopReplication ends the replication of a source or a primary, or of all of @GROUP, for good; the volumes stay as they are and take writes. What the target has stays there. To begin anew later sends everything.
func (c *Control) StopReplication(ctx context.Context, name string) error {
	return c.changeRole(ctx, "stop replicating", name, func(rs []*replication) error {
		records := c.recordsIn(rs)
		for _, record := range records {
			if record.receives() {
				return fmt.Errorf("it is a replica: its source stops it; here, promote it or delete it: %w", ErrRefused)
			}
		}
		if err := c.forgetReplications(rs...); err != nil {
			return err
		}
		for _, record := range records {
			c.showFence(record.Volume)
			c.tidyPoints(ctx, record.Volume)
		}
		return nil
	})
}

// dropReplica prepares the deletion of a volume, whose name is held. A source is refused; a replica or primary gets no more. release lets its sessions in again, or, when the volume is gone, forgets its replication.
func (c *Control) dropReplica(volume string) (release func(deleted bool) error, err error) {
	r := c.replicationOf(volume)
	if r == nil {
		return func(bool) error { return nil }, nil
	}
	if c.recordIn(r).Role == roleSource {
		return nil, c.refuseReplicated("delete", volume)
	}
	free, err := c.occupy(r)
	if err != nil {
		return nil, err
	}
	return func(deleted bool) error {
		defer free()
		if deleted {
			return c.forgetReplications(r)
		}
		return nil
	}, nil
}

// replicaProgress is what a replication has done since the start. It is guarded by Control.mu.
type replicaProgress struct {
	now       *sending // of the cycle under way; nil: none is
	begun     time.Time
	cycles    uint64
	failures  uint64
	failed    string // why the last cycle failed; empty if it did not
	failedAt  time.Time
	bytes     uint64 // of data, in complete cycles
	wireBytes uint64
	rate      float64 // of the last complete cycle that had data, bytes a second
}

// failedSince is why a cycle failed since a time.
func (p *replicaProgress) failedSince(t time.Time) string {
	if p.failed != "" && !p.failedAt.Before(t) {
		return p.failed
	}
	return ""
}

// beginProgress counts from the beginning of a cycle.
func (c *Control) beginProgress(r *replication) *sending {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.progress.now, r.progress.begun = &sending{}, c.opts.Now()
	return r.progress.now
}

// noteCycle keeps what became of a cycle of some volumes, and logs it if it failed.
func (c *Control) noteCycle(err error, rs ...*replication) {
	now := c.opts.Now()
	c.mu.Lock()
	name := rs[0].record.name()
	for _, r := range rs {
		r.progress.note(now, err)
	}
	c.mu.Unlock()
	if err == nil || errors.Is(err, errFenced) {
		return
	}
	if tell, heldBack := c.repeats.tell("replication " + name + err.Error()); tell {
		c.log.Warn("a point of a replication failed and will be tried again", "volume", name, "error", err, "heldBack", heldBack)
	}
}

// note keeps what became of a cycle.
func (p *replicaProgress) note(now time.Time, err error) {
	if s := p.now; s != nil && err == nil {
		p.bytes, p.wireBytes = p.bytes+s.done.Load(), p.wireBytes+s.wire.Load()
		if d := now.Sub(p.begun).Seconds(); d > 0 && s.done.Load() > 0 {
			p.rate = float64(s.done.Load()) / d
		}
	}
	p.now, p.failed = nil, ""
	if err != nil {
		p.failed, p.failedAt = strings.ReplaceAll(err.Error(), "\n", "; "), now
		p.failures++
	} else {
		p.cycles++
	}
}
