package control

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// changeRole runs do on the replication of a volume, while its name is held and no session of it runs.
func (c *Control) changeRole(ctx context.Context, verb, volume string, do func(*replication) error) error {
	return c.change(ctx, verb, volume, nil, func() error {
		r := c.replicationOf(volume)
		if r == nil {
			if _, err := c.visible(volume); err != nil {
				return err
			}
			return fmt.Errorf("%s volume %q: it has no replication: %w", verb, volume, block.ErrNotFound)
		}
		release, err := c.occupy(ctx, r)
		if err != nil {
			return err
		}
		if err = do(r); err != nil {
			err = fmt.Errorf("%s volume %q: %w", verb, volume, err)
		}
		release()
		if c.replicationOf(volume) != r {
			return err
		}
		return errors.Join(err, c.startSource(r)) // which does nothing unless it is a source still
	})
}

// PromoteReplica makes an ordinary volume of a replica, as it was at its last complete point, with an epoch that is greater than its source's: which is refused from now on, learns why, and takes no writes any more.
func (c *Control) PromoteReplica(ctx context.Context, volume string) error {
	return c.changeRole(ctx, "promote", volume, func(r *replication) error {
		record := c.recordIn(r)
		switch {
		case record.Role != roleReplica && record.Role != rolePromoting:
			return fmt.Errorf("it is a %s and no replica: %w", record.Role, ErrRefused)
		case record.newest().ID == replica.Empty:
			return fmt.Errorf("nothing of it is complete yet: %w", ErrRefused)
		case record.Epoch >= replica.MaxEpoch:
			return fmt.Errorf("its epoch is the last one: %w", ErrRefused)
		}
		if record.Role == roleReplica {
			if err := c.changeReplication(r, func(record *replicationRecord) { record.Role, record.Epoch = rolePromoting, record.Epoch+1 }); err != nil {
				return err
			}
		}
		return c.finishPromotion(ctx, r)
	})
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
	c.log.Warn("a replica was promoted", "volume", record.Volume, "epoch", record.Epoch, "point", record.newest().At)
	return nil
}

// DemoteReplica makes a replica of a volume that is a source or a primary, and not attached: it takes what the other side, once that is promoted, sends. What was written since the last point that both have is lost with the first point
// that comes. dryRun changes nothing. lostBytes is how much differs from the newest point.
func (c *Control) DemoteReplica(ctx context.Context, volume string, dryRun bool) (lostBytes uint64, err error) {
	err = c.changeRole(ctx, "demote", volume, func(r *replication) error {
		record := c.recordIn(r)
		if record.Role != roleSource && record.Role != rolePrimary {
			return fmt.Errorf("it is a replica already: %w", ErrRefused)
		}
		points := append([]replicaPoint{}, record.Points...)
		if record.Sending != nil {
			points = append(points, *record.Sending) // the other side may have it
		}
		if len(points) == 0 {
			return fmt.Errorf("the other side has nothing of it: %w", ErrRefused)
		}
		if lostBytes, err = c.differenceBytes(ctx, volume, pointName(points[len(points)-1].ID), ""); err != nil {
			return err
		}
		if dryRun {
			return nil
		}
		if err := c.refuseAttached("demote", volume); err != nil {
			return err
		}
		return c.changeReplication(r, func(record *replicationRecord) {
			record.Epoch = max(record.Epoch, record.FencedBy)
			record.Role, record.Points, record.Sending, record.FencedBy, record.Target, record.Interval, record.Peer = roleReplica, points, nil, 0, "", 0, ""
			record.Receiving = &receivingRecord{} // the content is that of no point
		})
	})
	return lostBytes, err
}

// StopReplication ends the replication of a source or a primary for good; the volume stays as it is and takes writes. What the target has stays there. To begin anew later sends everything.
func (c *Control) StopReplication(ctx context.Context, volume string) error {
	return c.changeRole(ctx, "stop replicating", volume, func(r *replication) error {
		if record := c.recordIn(r); record.receives() {
			return fmt.Errorf("it is a replica: its source stops it; here, promote it or delete it: %w", ErrRefused)
		}
		if err := c.forgetReplication(r); err != nil {
			return err
		}
		c.showFence(volume)
		c.tidyPoints(ctx, volume)
		return nil
	})
}

// dropReplica prepares the deletion of a volume, whose name is held. A source is refused; a replica or primary gets no more. release lets its sessions in again, or, when the volume is gone, forgets its replication.
func (c *Control) dropReplica(ctx context.Context, volume string) (release func(deleted bool) error, err error) {
	r := c.replicationOf(volume)
	if r == nil {
		return func(bool) error { return nil }, nil
	}
	if c.recordIn(r).Role == roleSource {
		return nil, c.refuseReplicated("delete", volume)
	}
	free, err := c.occupy(ctx, r)
	if err != nil {
		return nil, err
	}
	return func(deleted bool) error {
		defer free()
		if deleted {
			return c.forgetReplication(r)
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

// noteCycle keeps what became of a cycle, and logs it if it failed.
func (c *Control) noteCycle(r *replication, err error) {
	now := c.opts.Now()
	c.mu.Lock()
	p, volume := &r.progress, r.record.Volume
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
	c.mu.Unlock()
	if err == nil || errors.Is(err, errFenced) {
		return
	}
	if tell, heldBack := c.repeats.tell("replication " + volume + err.Error()); tell {
		c.log.Warn("a point of a replication failed and will be tried again", "volume", volume, "error", err, "heldBack", heldBack)
	}
}
