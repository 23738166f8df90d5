package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// replicateGroup begins to keep a copy of the volumes of a group, or changes how that is done and which volumes it has.
func (c *Control) replicateGroup(ctx context.Context, group string, want replicationRecord, limit *uint64) error {
	for {
		volumes, members, err := c.toReplicate(group)
		if err != nil {
			return fmt.Errorf("replicate group %q: %w", group, err)
		}
		held := slices.Compact(slices.Sorted(slices.Values(slices.Concat(volumes, members))))
		release, err := c.names.hold(ctx, "replication", held...)
		if err != nil {
			return fmt.Errorf("replicate group %q: %w", group, err)
		}
		if v, m, err := c.toReplicate(group); err != nil || !slices.Equal(v, volumes) || !slices.Equal(m, members) {
			release() // it was changed, or a volume renamed, before the names were held
			continue
		}
		err = c.replicateHeld(ctx, group, volumes, want, limit)
		release()
		return err
	}
}

// toReplicate is which volumes a group that is replicated shall have, and which it has: what is a group of volumes here, or else what came with a replication and was promoted.
func (c *Control) toReplicate(group string) (volumes, members []string, err error) {
	c.mu.Lock()
	for _, r := range c.groupLocked(group) {
		members = append(members, r.record.Volume)
	}
	c.mu.Unlock()
	g, err := c.Group(group)
	switch {
	case errors.Is(err, block.ErrNotFound) && len(members) > 0:
		return members, members, nil
	case err != nil:
		return nil, nil, err
	case len(g.Volumes) == 0:
		return nil, nil, fmt.Errorf("all its volumes were deleted: %w", block.ErrNotFound)
	}
	return g.Volumes, members, nil
}

// replicateHeld does it while the names of all volumes are held.
func (c *Control) replicateHeld(ctx context.Context, group string, volumes []string, want replicationRecord, limit *uint64) error {
	c.mu.Lock()
	members := c.groupLocked(group)
	c.mu.Unlock()
	want.Group = &replicaGroup{Name: group, ID: newID()}
	if len(members) > 0 {
		first := c.recordIn(members[0])
		want.Group.ID = first.Group.ID
		if limit == nil {
			limit = &first.LimitBytes // for those that are new
		}
	}
	var change replicationChange
	for _, r := range members {
		record := c.recordIn(r)
		if slices.Contains(volumes, record.Volume) {
			continue
		}
		if record.Role != roleSource {
			return fmt.Errorf("replicate group %q: volume %q is a %s of the group that was replicated to here, and not one of the volumes of group %q here: `hv-storage-fabric volume group set` makes them the same: %w", group, record.Volume, record.Role, group, ErrRefused)
		}
		change.drop = append(change.drop, r)
	}
	for _, volume := range volumes {
		info, err := c.mayReplicate(volume, want.Group.ID)
		if err != nil {
			return err
		}
		if r := c.replicationOf(volume); r == nil {
			change.add = append(change.add, newSource(info, want, limit))
		} else if err := c.mayJoin(c.recordIn(r), want); err != nil {
			return err
		} else {
			change.records = append(change.records, r)
		}
	}
	change.how = func(_ int, record *replicationRecord) error {
		record.source(want, limit)
		return nil
	}
	release, err := c.occupy(slices.Concat(change.records, change.drop)...)
	if err != nil {
		return err
	}
	err = c.changeReplications(change)
	release()
	if err != nil {
		return errors.Join(err, c.startAll(members)) // with what it was
	}
	for _, r := range change.drop {
		volume := c.recordIn(r).Volume
		c.showFence(volume)
		c.tidyPoints(ctx, volume)
	}
	return c.startAll(slices.Concat(change.records, change.add))
}

// mayJoin reports why a volume that is replicated by itself cannot become one of a group: its copy must be the one that the group would have.
func (c *Control) mayJoin(record, want replicationRecord) error {
	if record.Group != nil || record.Role != roleSource {
		return nil
	}
	now, err := replica.ParseTarget(record.Target)
	if err != nil {
		return err
	}
	to, err := replica.ParseTarget(want.Target)
	if err != nil {
		return err
	}
	if !now.SamePlace(to) || now.Volume != record.Volume {
		return fmt.Errorf("replicate volume %q with its group: it is replicated to %s, and members of a group keep their names, at %s; stop that one first: %w", record.Volume, record.Target, want.Target, ErrRefused)
	}
	return nil
}

// startAll starts what is a source of some replications: volumes, and groups once.
func (c *Control) startAll(rs []*replication) error {
	var errs []error
	begun := map[string]bool{}
	for _, r := range rs {
		record, now := c.replicationRecordOf(c.recordIn(r).Volume)
		if !now || record.Group != nil && begun[record.Group.ID] {
			continue
		}
		if record.Group != nil {
			begun[record.Group.ID] = true
		}
		errs = append(errs, c.startSource(r))
	}
	return errors.Join(errs...)
}

// holdReplications holds the names of a replicated volume, or of all of @GROUP.
func (c *Control) holdReplications(ctx context.Context, verb, name string) (rs []*replication, release func(), err error) {
	fail := func(err error) error {
		if _, group := strings.CutPrefix(name, "@"); group {
			return fmt.Errorf("%s %s: %w", verb, name, err)
		}
		return fmt.Errorf("%s volume %q: %w", verb, name, err)
	}
	for {
		if rs, err = c.named(name); err != nil {
			return nil, nil, fail(err)
		}
		var volumes []string
		for _, record := range c.recordsIn(rs) {
			volumes = append(volumes, record.Volume)
			if name != record.name() && record.Group != nil {
				return nil, nil, fail(fmt.Errorf("it is replicated together with the others of %s: name that: %w", record.name(), ErrRefused))
			}
		}
		if release, err = c.names.hold(ctx, "replication", volumes...); err != nil {
			return nil, nil, fail(err)
		}
		if now, err := c.named(name); err == nil && slices.Equal(now, rs) {
			return rs, release, nil
		}
		release() // it was changed before the names were held
	}
}

// part is what a cycle does for one volume of a group.
type part struct {
	r    *replication
	base string // the point that both sides have
	from uint64 // where the stream goes on
	done bool   // the target has all of it
}

// groupCycle brings the target to a new point of all volumes of a group, or goes on with one that was begun. It is a point there when every part of it is, and for all of them at once.
func (c *Control) groupCycle(ctx context.Context, rs []*replication, session *replicaSession) error {
	records := c.recordsIn(rs)
	for i, record := range records {
		if record.FencedBy != 0 { // the other side said so in a hello of its own
			return c.fence(rs[i], record.FencedBy)
		}
	}
	target, err := replica.ParseTarget(records[0].Target)
	if err != nil {
		return err
	}
	peer, err := c.opts.DialReplica(target)
	if err != nil {
		return err
	}
	defer peer.Close()
	states, err := c.greetGroup(ctx, rs, peer)
	if err != nil {
		return err
	}
	parts, err := c.agreeAll(ctx, rs, states)
	if err != nil {
		return err
	}
	if err := c.nextGroupPoint(ctx, rs, parts, states); err != nil {
		return err
	}
	if err := c.sendParts(ctx, target, parts, session); err != nil {
		return err
	}
	return c.commitGroup(ctx, rs, peer)
}

// greetGroup asks the target how the volumes are, and fences all if one of them is a primary of a greater epoch.
func (c *Control) greetGroup(ctx context.Context, rs []*replication, peer ReplicaPeer) ([]replica.State, error) {
	hello := replica.GroupHello{Group: c.recordIn(rs[0]).Group.ID}
	for _, r := range rs {
		h, err := c.helloOf(r)
		if err != nil {
			return nil, err
		}
		hello.Members = append(hello.Members, replica.MemberHello{Volume: c.recordIn(r).Volume, Hello: h})
	}
	answer, err := peer.HelloGroup(ctx, hello)
	if err != nil {
		return nil, err
	}
	if len(answer.Members) != len(rs) {
		return nil, fmt.Errorf("an answer for %d volumes of a group of %d: %w", len(answer.Members), len(rs), block.ErrInvalid)
	}
	var refused error
	for i, r := range rs {
		switch err := c.heed(r, answer.Members[i]); {
		case errors.Is(err, errFenced):
			return nil, err
		case err != nil && refused == nil:
			refused = fmt.Errorf("volume %q: %w", c.recordIn(r).Volume, err)
		}
	}
	return answer.Members, refused
}

// agreeAll finds the newest point of each volume that both sides have, and keeps that one alone, beside the one that is being sent.
func (c *Control) agreeAll(ctx context.Context, rs []*replication, states []replica.State) (parts []part, err error) {
	anyNews := false
	for i, record := range c.recordsIn(rs) {
		base, news, err := record.common(states[i])
		if err != nil {
			return nil, err
		}
		anyNews = anyNews || news
		parts = append(parts, part{r: rs[i], base: base})
	}
	if !anyNews {
		return parts, nil
	}
	if err := c.changeReplications(replicationChange{records: rs, how: func(i int, record *replicationRecord) error {
		record.keepCommon(parts[i].base)
		return nil
	}}); err != nil {
		return nil, err
	}
	for _, record := range c.recordsIn(rs) {
		c.tidyPoints(ctx, record.Volume)
	}
	return parts, nil
}

// nextGroupPoint makes the point that is to be sent, of all volumes at one moment, or keeps the one of which the target has something, and notes where each part goes on.
func (c *Control) nextGroupPoint(ctx context.Context, rs []*replication, parts []part, states []replica.State) error {
	records := c.recordsIn(rs)
	same, some := true, false
	for i, record := range records {
		s, has := record.Sending, states[i].Receiving
		same = same && s != nil && s.ID == records[0].Sending.ID
		if s == nil || has == nil || has.Point != s.ID || has.Base != parts[i].base {
			continue
		}
		parts[i].from, parts[i].done = has.ReachedBytes, has.Complete
		some = some || has.ReachedBytes > 0 || has.Complete
	}
	if same && some {
		return nil
	}
	var volumes []string
	for i, record := range records {
		volumes = append(volumes, record.Volume)
		parts[i].from, parts[i].done = 0, false
	}
	release, err := c.names.hold(ctx, "replication", volumes...)
	if err != nil {
		return err
	}
	defer release()
	point := replicaPoint{ID: newID(), At: c.opts.Now().UTC()}
	var names []blockstore.StateName
	for _, volume := range volumes {
		names = append(names, blockstore.StateName{Volume: volume, Snapshot: pointName(point.ID)})
	}
	if _, err := c.engine.CreateSnapshots(ctx, names, false); err != nil {
		return err
	}
	if err := c.flushVolume(ctx, volumes[0]); err != nil { // they are one record of the log
		return err
	}
	if err := c.changeReplications(replicationChange{records: rs, how: func(_ int, record *replicationRecord) error {
		record.Sending = &point
		return nil
	}}); err != nil {
		return err
	}
	for _, volume := range volumes {
		c.tidyPoints(ctx, volume) // points that were being sent and are not needed any more
	}
	return nil
}

// sendParts sends what the target lacks of a point, a few volumes at once. When one fails no other begins, and those that are on their way get there: what the target has of them is kept.
func (c *Control) sendParts(ctx context.Context, target replica.Target, parts []part, session *replicaSession) error {
	failed, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all sync.WaitGroup
	for _, p := range parts {
		if p.done {
			continue
		}
		select {
		case <-failed.Done():
		case c.senders <- struct{}{}:
			all.Go(func() {
				defer func() { <-c.senders }()
				if failed.Err() != nil {
					return
				}
				if err := c.sendPart(ctx, target, p, session); err != nil {
					stop(fmt.Errorf("volume %q: %w", c.recordIn(p.r).Volume, err))
				}
			})
		}
	}
	all.Wait()
	return context.Cause(failed)
}

func (c *Control) sendPart(ctx context.Context, target replica.Target, p part, session *replicaSession) error {
	record := c.recordIn(p.r)
	peer, err := c.opts.DialReplica(target.Member(record.Volume))
	if err != nil {
		return err
	}
	defer peer.Close()
	point := *record.Sending
	begin := replica.Begin{Pair: record.Pair, Epoch: record.Epoch, Point: point.ID, Base: p.base, FromBytes: p.from, At: point.At, Group: record.Group.ID}
	progress := c.beginProgress(p.r)
	return peer.Send(ctx, begin, func(ctx context.Context, w io.Writer) error {
		return c.sendPoint(ctx, record.Volume, p.base, point.ID, p.from, limitedWriter{ctx, w, &session.bucket}, progress)
	})
}

// commitGroup has the target take the point that is there in parts, and notes that it has.
func (c *Control) commitGroup(ctx context.Context, rs []*replication, peer ReplicaPeer) error {
	records := c.recordsIn(rs)
	point := *records[0].Sending
	commit := replica.Commit{Group: records[0].Group.ID, At: point.At}
	for _, record := range records {
		commit.Members = append(commit.Members, replica.CommitMember{Volume: record.Volume, Pair: record.Pair, Epoch: record.Epoch})
	}
	if err := peer.Commit(ctx, point.ID, commit); err != nil {
		return err
	}
	if err := c.changeReplications(replicationChange{records: rs, how: func(_ int, record *replicationRecord) error {
		record.Points, record.Sending = []replicaPoint{point}, nil
		return nil
	}}); err != nil {
		return err
	}
	for _, record := range records {
		c.tidyPoints(ctx, record.Volume)
	}
	return nil
}
