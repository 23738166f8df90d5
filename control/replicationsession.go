package control

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// occupy keeps sessions from replications, ends those that run, and returns what lets them in again. It waits for them whoever hangs up meanwhile: a source that was ended and not begun again would send nothing until the next start.
func (c *Control) occupy(rs ...*replication) (release func(), err error) {
	c.mu.Lock()
	for _, r := range rs {
		if err := r.changingLocked(); err != nil {
			c.mu.Unlock()
			return nil, err
		}
	}
	var sessions []*replicaSession
	for _, r := range rs {
		r.busy = true
		if r.session != nil && !slices.Contains(sessions, r.session) {
			sessions = append(sessions, r.session)
		}
	}
	c.mu.Unlock()
	for _, session := range sessions {
		session.cancel()
	}
	for _, session := range sessions {
		<-session.over
	}
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, r := range rs {
			r.busy = false
		}
	}, nil
}

// changingLocked reports why no session can begin. Control.mu is held.
func (r *replication) changingLocked() error {
	if r.over || r.busy {
		return fmt.Errorf("replication of volume %q: it is being changed: %w", r.record.Volume, block.ErrInUse)
	}
	return nil
}

// enterSession makes a session the one of a volume's replication, or of those of a group; the newest counts, as the one before may belong to a connection that is gone.
func (c *Control) enterSession(ctx context.Context, session *replicaSession, rs ...*replication) error {
	for {
		before := (*replicaSession)(nil)
		c.mu.Lock()
		for _, r := range rs {
			if err := r.changingLocked(); err != nil {
				c.mu.Unlock()
				return err
			}
			if r.session != nil {
				before = r.session
			}
		}
		if before == nil {
			session.bucket.SetRate(rs[0].record.LimitBytes)
			for _, r := range rs {
				r.session = session
			}
		}
		c.mu.Unlock()
		if before == nil {
			return nil
		}
		before.cancel()
		select {
		case <-before.over:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// leaveSession ends a session whose devices are closed.
func (c *Control) leaveSession(session *replicaSession, rs ...*replication) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range rs {
		r.session = nil
	}
	close(session.over)
}

// groupOf returns a replication alone, or all of its group, ordered by volume.
func (c *Control) groupOf(r *replication) []*replication {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r.record.Group == nil {
		return []*replication{r}
	}
	return c.membersLocked(r.record.Group.ID)
}

// membersLocked are the replications of a group, ordered by volume. Control.mu is held.
func (c *Control) membersLocked(group string) (rs []*replication) {
	for _, r := range c.mu.replications {
		if r.record.isOf(group) {
			rs = append(rs, r)
		}
	}
	slices.SortFunc(rs, byVolume)
	return rs
}

func byVolume(a, b *replication) int { return cmp.Compare(a.record.Volume, b.record.Volume) }

// named returns the replications that a user means: of a volume, or behind @ those of a group, ordered by volume.
func (c *Control) named(name string) (rs []*replication, err error) {
	group, ofGroup := strings.CutPrefix(name, "@")
	if !ofGroup {
		if err := checkVolume(name); err != nil {
			return nil, err
		}
		if r := c.replicationOf(name); r != nil {
			return []*replication{r}, nil
		}
		if _, err := c.visible(name); err != nil {
			return nil, err
		}
		return nil, fmt.Errorf("volume %q has no replication: %w", name, block.ErrNotFound)
	}
	if err := checkGroup(group); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if rs = c.groupLocked(group); len(rs) == 0 {
		return nil, fmt.Errorf("no group %q is replicated, here or to here: %w", group, block.ErrNotFound)
	}
	return rs, nil
}

// groupLocked are the replications of a group by its name here. Control.mu is held.
func (c *Control) groupLocked(name string) []*replication {
	for _, r := range c.mu.replications {
		if r.record.Group != nil && r.record.Group.Name == name {
			return c.membersLocked(r.record.Group.ID)
		}
	}
	return nil
}

// recordsIn returns the records of replications as they are now.
func (c *Control) recordsIn(rs []*replication) []replicationRecord {
	c.mu.Lock()
	defer c.mu.Unlock()
	records := make([]replicationRecord, len(rs))
	for i, r := range rs {
		records[i] = r.record
	}
	return records
}
