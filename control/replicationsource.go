package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// Bounds of the time between two points of a replication.
const (
	DefaultReplicaInterval = time.Minute
	MinReplicaInterval     = time.Second
	MaxReplicaInterval     = 7 * 24 * time.Hour

	maxSenders = 4           // points that are sent at once; each takes 5 MiB of buffers
	firstRetry = time.Second // after a failed cycle; doubled each time
	lastRetry  = 30 * time.Second
)

// ReplicaPeer is the hvd that a source sends to. replica.Client is one.
type ReplicaPeer interface {
	// Hello asks how the volume is there.
	Hello(ctx context.Context, h replica.Hello) (replica.State, error)
	// Send sends a stream, and returns when its point is complete and durable at the other side. send has ended by then.
	Send(ctx context.Context, b replica.Begin, send func(ctx context.Context, w io.Writer) error) error
	Close()
}

// dialReplica is the usual Options.DialReplica.
func (c *Control) dialReplica(t replica.Target) (ReplicaPeer, error) {
	client, err := replica.NewClient(t, c.replicaFiles())
	if err != nil {
		return nil, err // and not a nil *Client in an interface
	}
	return client, nil
}

// errFenced means that the other side is a primary of a greater epoch.
var errFenced = errors.New("fenced")

// Replicate begins to keep a copy of a volume in another hvd, now and after every restart, until StopReplication. Of a volume that was promoted, or that is a source already, it changes target and interval; the other side then has to be
// what it was before, demoted. interval 0 is the default.
func (c *Control) Replicate(ctx context.Context, volume, target string, interval time.Duration) error {
	if interval == 0 {
		interval = DefaultReplicaInterval
	}
	if interval < MinReplicaInterval || interval > MaxReplicaInterval {
		return fmt.Errorf("interval of %v: want %v to %v: %w", interval, MinReplicaInterval, MaxReplicaInterval, block.ErrInvalid)
	}
	to, err := replica.ParseTarget(target)
	if err != nil {
		return err
	}
	if err := checkVolume(to.Volume); err != nil {
		return fmt.Errorf("target %q: %w", target, err)
	}
	peer, err := c.opts.DialReplica(to) // what is wrong with the files of TLS is told at once
	if err != nil {
		return err
	}
	peer.Close()
	return c.change(ctx, "replicate", volume, nil, func() error {
		info, err := c.visible(volume)
		if err != nil {
			return err
		}
		if err := c.refuseRestoring("replicate", volume); err != nil {
			return err
		}
		if err := c.refuseReplica("replicate", volume); err != nil {
			return err
		}
		r := c.replicationOf(volume)
		if r == nil {
			r = &replication{record: replicationRecord{
				Volume: volume, UUID: info.UUID.String(), Pair: newID(), Epoch: 1, Role: roleSource, Points: []replicaPoint{}, Target: to.String(), Interval: interval,
			}}
			if err := c.addReplication(r); err != nil {
				return err
			}
			return c.startSource(r)
		}
		if by := c.recordIn(r).FencedBy; by != 0 {
			return fmt.Errorf("replicate volume %q: the other side was promoted, with epoch %d: demote this one, or stop its replication: %w", volume, by, ErrRefused)
		}
		release, err := c.occupy(ctx, r)
		if err != nil {
			return err
		}
		err = c.changeReplication(r, func(record *replicationRecord) {
			record.Role, record.Target, record.Interval = roleSource, to.String(), interval
		})
		release()
		return errors.Join(err, c.startSource(r)) // with what it was, if that failed
	})
}

// startSource sends a volume until Close, or until its session ends. It does nothing for one that is fenced or no source.
func (c *Control) startSource(r *replication) error {
	record := c.recordIn(r)
	if record.Role != roleSource || record.FencedBy != 0 {
		return nil
	}
	ctx, done, err := c.work(context.Background())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	session := &replicaSession{cancel: cancel, over: make(chan struct{}), wake: make(chan struct{}, 1)}
	if err := c.enterSession(ctx, r, session); err != nil {
		cancel()
		done()
		return err
	}
	go func() {
		defer done()
		defer cancel()
		defer c.leaveSession(r, session)
		c.runSource(ctx, r, session)
	}()
	return nil
}

// startSources goes on with all sources, after a start.
func (c *Control) startSources() error {
	for _, volume := range c.replicatedVolumes() {
		if err := c.startSource(c.replicationOf(volume)); err != nil {
			return err
		}
	}
	return nil
}

// runSource makes a point after the other until ctx ends or the volume is fenced.
func (c *Control) runSource(ctx context.Context, r *replication, session *replicaSession) {
	retry := firstRetry
	for {
		begun := c.opts.Now()
		err := c.cycle(ctx, r)
		if ctx.Err() != nil {
			return
		}
		c.noteCycle(r, err)
		if errors.Is(err, errFenced) {
			return
		}
		wait := c.recordIn(r).Interval - c.opts.Now().Sub(begun)
		if err != nil {
			wait, retry = retry, min(2*retry, lastRetry)
		} else {
			retry = firstRetry
		}
		if err == nil && c.wanted(r, session) {
			continue
		}
		if !c.waitForCycle(ctx, r, session, wait) {
			return
		}
	}
}

// waitForCycle returns when the next cycle shall begin; false when none shall.
func (c *Control) waitForCycle(ctx context.Context, r *replication, session *replicaSession, wait time.Duration) bool {
	timer := time.NewTimer(max(0, wait))
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return ctx.Err() == nil
		case <-session.wake:
			if c.wanted(r, session) { // and not since a cycle that was under way when it was asked for
				return ctx.Err() == nil
			}
		case <-ctx.Done():
			return false
		}
	}
}

// wanted reports whether somebody waits for a newer point than there is.
func (c *Control) wanted(r *replication, session *replicaSession) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return r.record.newest().At.Before(session.want)
}

// cycle brings the target to a new point, or goes on with one that was begun.
func (c *Control) cycle(ctx context.Context, r *replication) error {
	record := c.recordIn(r)
	if record.FencedBy != 0 { // the other side said so in a hello of its own
		return c.fence(r, record.FencedBy)
	}
	target, err := replica.ParseTarget(record.Target)
	if err != nil {
		return err
	}
	peer, err := c.opts.DialReplica(target)
	if err != nil {
		return err
	}
	defer peer.Close()
	select {
	case c.senders <- struct{}{}:
		defer func() { <-c.senders }()
	case <-ctx.Done():
		return ctx.Err()
	}
	state, err := c.hello(ctx, r, peer)
	if err != nil {
		return err
	}
	base, err := c.agree(ctx, r, state)
	if err != nil {
		return err
	}
	from, err := c.nextPoint(ctx, r, base, state.Receiving)
	if err != nil {
		return err
	}
	record = c.recordIn(r)
	point := *record.Sending
	begin := replica.Begin{Pair: record.Pair, Epoch: record.Epoch, Point: point.ID, Base: base, FromBytes: from, At: point.At}
	progress := c.beginProgress(r)
	if err := peer.Send(ctx, begin, func(ctx context.Context, w io.Writer) error {
		return c.sendPoint(ctx, record.Volume, base, point.ID, from, w, progress)
	}); err != nil {
		return err
	}
	return c.completePoint(ctx, r, point.ID)
}

// hello asks the target how it is, and fences the volume if the target is a primary of a greater epoch.
func (c *Control) hello(ctx context.Context, r *replication, peer ReplicaPeer) (replica.State, error) {
	record := c.recordIn(r)
	info, err := c.engine.Volume(record.Volume)
	if err != nil {
		return replica.State{}, err
	}
	state, err := peer.Hello(ctx, replica.Hello{
		Pair: record.Pair, Epoch: record.Epoch, Source: record.Volume, SizeBytes: info.SizeBytes, Chunking: info.Chunking.String(), Mode: info.Mode.String(), Create: len(record.Points) == 0,
	})
	switch {
	case err != nil:
		return state, err
	case state.Pair != record.Pair:
		return state, fmt.Errorf("%s answers for another pair: %w", record.Target, block.ErrInvalid)
	case state.Epoch > record.Epoch:
		if err := replica.CheckEpoch(state.Epoch); err != nil {
			return state, err
		}
		return state, c.fence(r, state.Epoch)
	case state.Role != replica.RoleReplica:
		return state, fmt.Errorf("%s is no replica, with epoch %d: demote it there: %w", record.Target, state.Epoch, ErrRefused)
	}
	return state, nil
}

// fence keeps a volume's clients from writing: the other side was promoted. The error is errFenced when that is durable.
func (c *Control) fence(r *replication, epoch uint64) error {
	fencedOff := fmt.Errorf("the other side was promoted, with epoch %d: %w", epoch, errFenced)
	if c.recordIn(r).FencedBy == epoch {
		return fencedOff
	}
	if err := c.changeReplication(r, func(record *replicationRecord) { record.FencedBy = epoch }); err != nil {
		return err
	}
	record := c.recordIn(r)
	c.showFence(record.Volume)
	c.log.Error("the replica of a volume was promoted: this one takes no writes any more; demote it, or stop its replication to go its own way", "volume", record.Volume, "epoch", record.Epoch, "promotedEpoch", epoch)
	return fencedOff
}

// showFence lets the clients of an attached volume write, or keeps them from it, as its record says.
func (c *Control) showFence(volume string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if a := c.mu.attachments[volume]; a != nil {
		c.fenceLocked(a)
	}
}

func (c *Control) fenceLocked(a *attachment) {
	r := c.mu.replications[a.record.Volume]
	a.fenced.Store(r != nil && r.record.FencedBy != 0)
}

// agree finds the newest point that both sides have, and keeps that one alone, beside the one that is being sent.
func (c *Control) agree(ctx context.Context, r *replication, state replica.State) (base string, err error) {
	record := c.recordIn(r)
	mine := slices.Clone(record.Points)
	if record.Sending != nil {
		mine = append(mine, *record.Sending)
	}
	for i, p := range slices.Backward(mine) {
		if !slices.Contains(state.Points, p.ID) {
			continue
		}
		if p.ID == record.newest().ID && len(record.Points) == 1 {
			return p.ID, nil
		}
		err := c.changeReplication(r, func(record *replicationRecord) {
			record.Points = []replicaPoint{p}
			if i == len(mine)-1 {
				record.Sending = nil // it came, and the answer did not
			}
		})
		if err != nil {
			return "", err
		}
		c.tidyPoints(ctx, record.Volume)
		return p.ID, nil
	}
	if len(record.Points) == 0 && slices.Contains(state.Points, replica.Empty) {
		return replica.Empty, nil
	}
	return "", fmt.Errorf("%s and volume %q have no point in common any more: delete the one there, stop this replication and begin anew: %w", record.Target, record.Volume, ErrRefused)
}

// nextPoint makes the point that is to be sent, or keeps the one of which the target has a part, and returns where to go on.
func (c *Control) nextPoint(ctx context.Context, r *replication, base string, has *replica.Receiving) (from uint64, err error) {
	record := c.recordIn(r)
	if s := record.Sending; s != nil && has != nil && has.Point == s.ID && has.Base == base && has.ReachedBytes > 0 {
		return has.ReachedBytes, nil
	}
	release, err := c.names.hold(ctx, "replication", record.Volume)
	if err != nil {
		return 0, err
	}
	defer release()
	point := replicaPoint{ID: newID(), At: c.opts.Now().UTC()}
	if _, err := c.takePoint(ctx, record.Volume, point.ID); err != nil {
		return 0, err
	}
	if err := c.changeReplication(r, func(record *replicationRecord) { record.Sending = &point }); err != nil {
		return 0, err
	}
	c.tidyPoints(ctx, record.Volume) // one that was being sent and is not needed any more
	return 0, nil
}

// completePoint notes that the target has a point.
func (c *Control) completePoint(ctx context.Context, r *replication, id string) error {
	err := c.changeReplication(r, func(record *replicationRecord) {
		if s := record.Sending; s != nil && s.ID == id {
			record.Points, record.Sending = []replicaPoint{*s}, nil
		}
	})
	if err != nil {
		return err
	}
	c.tidyPoints(ctx, c.recordIn(r).Volume)
	return nil
}

// SyncReplication has a source make a point now, and returns when one is complete that has every write which was replied before.
func (c *Control) SyncReplication(ctx context.Context, volume string) error {
	asked := c.opts.Now()
	r := c.replicationOf(volume)
	if r == nil {
		return fmt.Errorf("replication of volume %q: %w", volume, block.ErrNotFound)
	}
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for asleep := true; ; {
		c.mu.Lock()
		record, session, failed := r.record, r.session, r.progress.failedSince(asked)
		if session != nil && session.want.Before(asked) {
			session.want, asleep = asked, true
		}
		c.mu.Unlock()
		switch {
		case record.Role != roleSource || session == nil:
			return fmt.Errorf("replication of volume %q: it is not being sent: see `hv-storage-fabric volume replicate status %s`: %w", volume, volume, ErrRefused)
		case !record.newest().At.Before(asked):
			return nil
		case failed != "":
			return fmt.Errorf("replication of volume %q: %s: %w", volume, failed, ErrRefused)
		}
		if asleep {
			asleep = false
			select {
			case session.wake <- struct{}{}:
			default: // it is about to look
			}
		}
		select {
		case <-look.C:
		case <-ctx.Done():
			return ctx.Err()
		case <-c.background.Done():
			return fmt.Errorf("hvd is shutting down: %w", block.ErrClosed)
		}
	}
}
