package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// ReplicaGroupHello answers the source of a group, and makes the volumes if it may. They are of the group when the first point of all of them is complete.
func (c *Control) ReplicaGroupHello(ctx context.Context, s ReplicaSender, group string, h replica.GroupHello) (replica.GroupState, error) {
	fail := func(err error) (replica.GroupState, error) {
		return replica.GroupState{}, fmt.Errorf("replicas of group %q: %w", group, err)
	}
	if err := errors.Join(c.admitSender(s), checkGroup(group), replica.CheckID("group", h.Group), replica.CheckMembers(len(h.Members))); err != nil {
		return fail(err)
	}
	if err := c.freeGroup(group, h.Group); err != nil {
		return fail(err)
	}
	answer := replica.GroupState{Members: []replica.State{}}
	for _, m := range h.Members {
		if record, found := c.replicationRecordOf(m.Volume); found && record.Group != nil && !record.isOf(h.Group) {
			return fail(fmt.Errorf("volume %q is one of another group, %s: %w", m.Volume, record.name(), ErrRefused))
		}
		state, err := c.ReplicaHello(ctx, s, m.Volume, m.Hello)
		if err != nil {
			return fail(err)
		}
		answer.Members = append(answer.Members, state)
	}
	return answer, nil
}

// freeGroup reports whether the name of a group is another replication's here.
func (c *Control) freeGroup(name, id string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.freeGroupLocked(name, id)
}

func (c *Control) freeGroupLocked(name, id string) error {
	if rs := c.groupLocked(name); len(rs) > 0 && !rs[0].record.isOf(id) {
		return fmt.Errorf("there is a replicated group of that name, with volume %q, and it is another: %w", rs[0].record.Volume, block.ErrExists)
	}
	return nil
}

// CommitReplicas makes a point of a group, of which each volume has its part, the newest of all of them: durably, at once, and for all or none. To repeat it does no harm.
func (c *Control) CommitReplicas(ctx context.Context, s ReplicaSender, group, point string, m replica.Commit) error {
	if err := c.commitReplicas(ctx, s, group, point, m); err != nil {
		return fmt.Errorf("point %s of group %q: %w", point, group, err)
	}
	return nil
}

func (c *Control) commitReplicas(ctx context.Context, s ReplicaSender, group, point string, m replica.Commit) error {
	if err := errors.Join(c.admitSender(s), checkGroup(group), replica.CheckID("group", m.Group), replica.CheckID("point", point), replica.CheckMembers(len(m.Members))); err != nil {
		return err
	}
	volumes := make([]string, 0, len(m.Members))
	for _, member := range m.Members {
		if err := errors.Join(checkVolume(member.Volume), replica.CheckEpoch(member.Epoch)); err != nil {
			return err
		}
		if slices.Contains(volumes, member.Volume) {
			return fmt.Errorf("volume %q is named twice: %w", member.Volume, block.ErrInvalid)
		}
		volumes = append(volumes, member.Volume)
	}
	ctx, done, err := c.work(ctx)
	if err != nil {
		return err
	}
	defer done()
	release, err := c.names.hold(ctx, "replication", volumes...)
	if err != nil {
		return err
	}
	defer release()
	rs := make([]*replication, 0, len(volumes))
	for _, member := range m.Members {
		r := c.replicationOf(member.Volume)
		if r == nil {
			return fmt.Errorf("replica %q: %w", member.Volume, block.ErrNotFound)
		}
		record := c.recordIn(r)
		if err := cmp.Or(record.admitTo(s, member.Pair), record.mayCommit(point, member.Epoch)); err != nil {
			return err
		}
		if _, err := c.snapshot(member.Volume, pointName(point)); err != nil {
			return err
		}
		rs = append(rs, r)
	}
	free, err := c.occupy(rs...) // what is still being received is of no point that this one is
	if err != nil {
		return err
	}
	defer free()
	if err := c.commitHeld(rs, group, point, m); err != nil {
		return err
	}
	for _, volume := range volumes {
		c.tidyPoints(ctx, volume)
	}
	return nil
}

// mayCommit reports why a point cannot become the newest of a replica.
func (r *replicationRecord) mayCommit(point string, epoch uint64) error {
	switch {
	case epoch < r.Epoch:
		return fmt.Errorf("volume %q: epoch %d is over, %d counts: %w", r.Volume, epoch, r.Epoch, ErrRefused)
	case r.Role != roleReplica:
		return fmt.Errorf("volume %q is a %s: demote it first: %w", r.Volume, r.Role, ErrRefused)
	case r.holds(point), r.Receiving == nil && r.newest().ID == point:
		return nil
	}
	return fmt.Errorf("volume %q has not all of it: %w", r.Volume, ErrRefused)
}

// commitHeld writes down that the volumes have the point, and are the group. Those that the group had before, and has no more, stay what they are, each for itself.
func (c *Control) commitHeld(rs []*replication, group, point string, m replica.Commit) error {
	c.mu.Lock()
	all := slices.Clone(rs)
	for _, r := range c.membersLocked(m.Group) {
		if !slices.Contains(rs, r) && r.record.Role == roleReplica {
			all = append(all, r)
		}
	}
	c.mu.Unlock()
	return c.changeReplications(replicationChange{records: all, how: func(i int, record *replicationRecord) error {
		if i >= len(rs) {
			if record.isOf(m.Group) && record.Role == roleReplica {
				record.Group = nil
			}
			return nil
		}
		if err := record.mayCommit(point, m.Members[i].Epoch); err != nil {
			return err
		}
		if err := c.freeGroupLocked(group, m.Group); err != nil {
			return err
		}
		record.Epoch, record.Receiving = m.Members[i].Epoch, nil
		record.Points = []replicaPoint{{ID: point, At: m.At.UTC()}}
		record.Group = &replicaGroup{Name: group, ID: m.Group}
		return nil
	}})
}
