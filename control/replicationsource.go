package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
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

	// MinReplicaLimit is the least bytes a second that a replication can be held to: what is slower looks like a source that is gone.
	MinReplicaLimit = 64 << 10
)

// ReplicaPeer is the hvd that a source sends to. replica.Client is one. It is of a volume there, or of a group.
type ReplicaPeer interface {
	// Hello asks how the volume is there.
	Hello(ctx context.Context, h replica.Hello) (replica.State, error)
	// Send sends a stream, and returns when its point is complete and durable at the other side. send has ended by then.
	Send(ctx context.Context, b replica.Begin, send func(ctx context.Context, w io.Writer) error) error
	// HelloGroup asks how the volumes of the group are there; it answers for each of them.
	HelloGroup(ctx context.Context, h replica.GroupHello) (replica.GroupState, error)
	// Commit has a point of the group, of which all parts were sent, become complete: durably, and for all volumes at once.
	Commit(ctx context.Context, point string, m replica.Commit) error
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

// ReplicateSpec is what a replication shall be.
type ReplicateSpec struct {
	Target     string        // hvd://HOST/NAME; of a group hvd://HOST/@NAME
	Interval   time.Duration // 0: the default
	LimitBytes *uint64       // a second; 0: none; nil: as it is, at first none
}

// check returns the target and the interval.
func (s ReplicateSpec) check() (to replica.Target, interval time.Duration, err error) {
	if interval = s.Interval; interval == 0 {
		interval = DefaultReplicaInterval
	}
	if interval < MinReplicaInterval || interval > MaxReplicaInterval {
		return to, 0, fmt.Errorf("interval of %v: want %v to %v: %w", interval, MinReplicaInterval, MaxReplicaInterval, block.ErrInvalid)
	}
	if s.LimitBytes != nil {
		if err := checkReplicaLimit(*s.LimitBytes); err != nil {
			return to, 0, err
		}
	}
	to, err = replica.ParseTarget(s.Target)
	return to, interval, err
}

func checkReplicaLimit(bytes uint64) error {
	if bytes != 0 && bytes < MinReplicaLimit {
		return fmt.Errorf("limit of %d bytes a second: want at least %d, or 0 for none: %w", bytes, MinReplicaLimit, block.ErrInvalid)
	}
	return nil
}

// Replicate begins to keep a copy of a volume, or of the volumes of @GROUP, in another hvd, now and after every restart, until StopReplication. Of what was promoted, or is a source already, it changes target, interval and limit, and which
// volumes the group has; the other side then has to be what it was before, demoted.
func (c *Control) Replicate(ctx context.Context, name string, spec ReplicateSpec) error {
	to, interval, err := spec.check()
	if err != nil {
		return err
	}
	group, ofGroup := strings.CutPrefix(name, "@")
	if ofGroup != (to.Group != "") {
		return fmt.Errorf("replicate %s to %q: a volume is kept under the name of a volume, and @GROUP under that of a group, as hvd://HOST/@GROUP: %w", name, spec.Target, block.ErrInvalid)
	}
	if ofGroup {
		err = checkGroup(to.Group)
	} else {
		err = checkVolume(to.Volume)
	}
	if err != nil {
		return fmt.Errorf("target %q: %w", spec.Target, err)
	}
	peer, err := c.opts.DialReplica(to) // what is wrong with the files of TLS is told at once
	if err != nil {
		return err
	}
	peer.Close()
	want := replicationRecord{Role: roleSource, Target: to.String(), Interval: interval}
	if ofGroup {
		return c.replicateGroup(ctx, group, want, spec.LimitBytes)
	}
	return c.change(ctx, "replicate", name, nil, func() error { return c.replicateVolume(name, want, spec.LimitBytes) })
}

// replicateVolume does it for one volume, whose name is held.
func (c *Control) replicateVolume(volume string, want replicationRecord, limit *uint64) error {
	info, err := c.mayReplicate(volume, "")
	if err != nil {
		return err
	}
	r := c.replicationOf(volume)
	if r == nil {
		r = newSource(info, want, limit)
		if err := c.addReplication(r); err != nil {
			return err
		}
		return c.startSource(r)
	}
	release, err := c.occupy(r)
	if err != nil {
		return err
	}
	err = c.changeReplication(r, func(record *replicationRecord) { record.source(want, limit) })
	release()
	return errors.Join(err, c.startSource(r)) // with what it was, if that failed
}

// newSource is the replication of a volume that had none.
func newSource(info blockstore.VolumeInfo, want replicationRecord, limit *uint64) *replication {
	record := replicationRecord{Volume: info.Name, UUID: info.UUID.String(), Pair: newID(), Epoch: 1, Points: []replicaPoint{}}
	record.source(want, limit)
	return &replication{record: record}
}

// source makes the record that of a source as it is wanted.
func (r *replicationRecord) source(want replicationRecord, limit *uint64) {
	r.Role, r.Target, r.Interval, r.Group = roleSource, want.Target, want.Interval, want.Group
	if limit != nil {
		r.LimitBytes = *limit
	}
}

// mayReplicate reports why a volume, whose name is held, cannot be a source by itself, or in the group with that id.
func (c *Control) mayReplicate(volume, group string) (info blockstore.VolumeInfo, err error) {
	if info, err = c.visible(volume); err != nil {
		return info, err
	}
	if err := cmp.Or(c.refuseRestoring("replicate", volume), c.refuseReplica("replicate", volume)); err != nil {
		return info, err
	}
	record, found := c.replicationRecordOf(volume)
	switch {
	case !found:
		return info, nil
	case record.FencedBy != 0:
		return info, fmt.Errorf("replicate volume %q: the other side was promoted, with epoch %d: demote this one, or stop its replication: %w", volume, record.FencedBy, ErrRefused)
	case record.Group != nil && record.Group.ID != group:
		return info, fmt.Errorf("replicate volume %q: it is replicated with the others of %s: %w", volume, record.name(), ErrRefused)
	}
	return info, nil
}

// LimitReplication changes how many bytes a second a source, or a group of them, may send; 0 is none. It holds at once, also for the point that is being sent.
func (c *Control) LimitReplication(ctx context.Context, name string, bytes uint64) error {
	if err := checkReplicaLimit(bytes); err != nil {
		return err
	}
	rs, release, err := c.holdReplications(ctx, "limit the replication of", name)
	if err != nil {
		return err
	}
	defer release()
	if err := c.changeReplications(replicationChange{records: rs, how: func(_ int, record *replicationRecord) error {
		if record.Role != roleSource {
			return fmt.Errorf("limit the replication of volume %q: it is a %s, and nothing is sent from here: %w", record.Volume, record.Role, ErrRefused)
		}
		record.LimitBytes = bytes
		return nil
	}}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range rs {
		if r.session != nil {
			r.session.bucket.SetRate(bytes)
		}
	}
	return nil
}

// startSource sends a volume, with all of its group, until Close, or until its session ends. It does nothing for one that is fenced or no source.
func (c *Control) startSource(r *replication) error {
	rs := c.groupOf(r)
	for _, record := range c.recordsIn(rs) {
		if record.Role != roleSource || record.FencedBy != 0 {
			return nil
		}
	}
	ctx, done, err := c.work(context.Background())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	session := &replicaSession{cancel: cancel, over: make(chan struct{}), wake: make(chan struct{}, 1)}
	if err := c.enterSession(ctx, session, rs...); err != nil {
		cancel()
		done()
		return err
	}
	go func() {
		defer done()
		defer cancel()
		defer c.leaveSession(session, rs...)
		c.runSource(ctx, rs, session)
	}()
	return nil
}

// startSources goes on with all sources, after a start.
func (c *Control) startSources() error {
	var rs []*replication
	for _, volume := range c.replicatedVolumes() {
		rs = append(rs, c.replicationOf(volume))
	}
	return c.startAll(rs)
}

// runSource makes a point after the other, of one volume or of those of a group, until ctx ends or they are fenced.
func (c *Control) runSource(ctx context.Context, rs []*replication, session *replicaSession) {
	r, retry := rs[0], firstRetry
	for {
		begun := c.opts.Now()
		err := error(nil)
		if c.recordIn(r).Group != nil {
			err = c.groupCycle(ctx, rs, session)
		} else {
			err = c.cycle(ctx, r, session)
		}
		if ctx.Err() != nil {
			return
		}
		c.noteCycle(err, rs...)
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
func (c *Control) cycle(ctx context.Context, r *replication, session *replicaSession) error {
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
		return c.sendPoint(ctx, record.Volume, base, point.ID, from, limitedWriter{ctx, w, &session.bucket}, progress)
	}); err != nil {
		return err
	}
	return c.completePoint(ctx, r, point.ID)
}

// hello asks the target how it is, and fences the volume if the target is a primary of a greater epoch.
func (c *Control) hello(ctx context.Context, r *replication, peer ReplicaPeer) (replica.State, error) {
	h, err := c.helloOf(r)
	if err != nil {
		return replica.State{}, err
	}
	state, err := peer.Hello(ctx, h)
	if err != nil {
		return state, err
	}
	return state, c.heed(r, state)
}

// helloOf is what a source says of its volume.
func (c *Control) helloOf(r *replication) (replica.Hello, error) {
	record := c.recordIn(r)
	info, err := c.engine.Volume(record.Volume)
	if err != nil {
		return replica.Hello{}, err
	}
	return replica.Hello{
		Pair: record.Pair, Epoch: record.Epoch, Source: record.Volume, SizeBytes: info.SizeBytes, Chunking: info.Chunking.String(), Mode: info.Mode.String(), Create: len(record.Points) == 0,
	}, nil
}

// heed reports why nothing can be sent to a target that is so, and fences the volume if the target is a primary of a greater epoch.
func (c *Control) heed(r *replication, state replica.State) error {
	record := c.recordIn(r)
	switch {
	case state.Pair != record.Pair:
		return fmt.Errorf("%s answers for another pair: %w", record.Target, block.ErrInvalid)
	case state.Epoch > record.Epoch:
		if err := replica.CheckEpoch(state.Epoch); err != nil {
			return err
		}
		return c.fence(r, state.Epoch)
	case state.Role != replica.RoleReplica:
		return fmt.Errorf("%s is no replica, with epoch %d: demote it there: %w", record.Target, state.Epoch, ErrRefused)
	}
	return nil
}

// fence keeps the clients of a volume, and of all of its group, from writing: the other side was promoted. The error is errFenced when that is durable.
func (c *Control) fence(r *replication, epoch uint64) error {
	rs, volume := c.groupOf(r), c.recordIn(r).Volume
	fencedOff := fmt.Errorf("the other side was promoted, with epoch %d: %w", epoch, errFenced)
	if !slices.ContainsFunc(c.recordsIn(rs), func(record replicationRecord) bool { return !record.fencedAs(volume, epoch) }) {
		return fencedOff
	}
	if err := c.changeReplications(replicationChange{records: rs, how: func(i int, record *replicationRecord) error {
		if rs[i] == r {
			record.FencedBy = epoch
		} else if record.Role == roleSource || record.Role == rolePrimary {
			record.FencedBy = max(record.FencedBy, min(record.Epoch+1, replica.MaxEpoch))
		}
		return nil
	}}); err != nil {
		return err
	}
	for _, record := range c.recordsIn(rs) {
		c.showFence(record.Volume)
		c.log.Error("the replica of a volume was promoted: this one takes no writes any more; demote it, or stop its replication to go its own way", "volume", record.Volume, "epoch", record.Epoch, "promotedEpoch", record.FencedBy)
	}
	return fencedOff
}

// fencedAs reports whether nothing has to be noted when a volume of the group is fenced by an epoch.
func (r *replicationRecord) fencedAs(volume string, epoch uint64) bool {
	if r.Volume == volume {
		return r.FencedBy == epoch
	}
	return r.FencedBy != 0 || r.Role != roleSource && r.Role != rolePrimary
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
	base, agreed, err := record.common(state)
	if err != nil || !agreed {
		return base, err
	}
	if err := c.changeReplication(r, func(record *replicationRecord) { record.keepCommon(base) }); err != nil {
		return "", err
	}
	c.tidyPoints(ctx, record.Volume)
	return base, nil
}

// common finds the newest point that both sides have. news: the record does not say so yet, and keepCommon makes it.
func (r *replicationRecord) common(state replica.State) (base string, news bool, err error) {
	if s := r.Sending; s != nil && slices.Contains(state.Points, s.ID) {
		return s.ID, true, nil
	}
	for _, p := range slices.Backward(r.Points) {
		if slices.Contains(state.Points, p.ID) {
			return p.ID, p.ID != r.newest().ID || len(r.Points) > 1, nil
		}
	}
	if len(r.Points) == 0 && slices.Contains(state.Points, replica.Empty) {
		return replica.Empty, false, nil
	}
	return "", false, fmt.Errorf("%s and volume %q have no point in common any more: delete the one there, stop this replication and begin anew: %w", r.Target, r.Volume, ErrRefused)
}

// keepCommon keeps one point alone, beside the one that is being sent.
func (r *replicationRecord) keepCommon(base string) {
	if s := r.Sending; s != nil && s.ID == base { // it came, and the answer did not
		r.Points, r.Sending = []replicaPoint{*s}, nil
		return
	}
	if i := slices.IndexFunc(r.Points, func(p replicaPoint) bool { return p.ID == base }); i >= 0 {
		r.Points = []replicaPoint{r.Points[i]}
	}
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

// SyncReplication has a source, with all of its group, make a point now, and returns when one is complete that has every write which was replied before.
func (c *Control) SyncReplication(ctx context.Context, name string) error {
	asked := c.opts.Now()
	rs, err := c.named(name)
	if err != nil {
		return err
	}
	r := rs[0]
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
			return fmt.Errorf("replication of %s: it is not being sent: see `hv-storage-fabric volume replicate status %s`: %w", name, name, ErrRefused)
		case !record.newest().At.Before(asked):
			return nil
		case failed != "":
			return fmt.Errorf("replication of %s: %s: %w", name, failed, ErrRefused)
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
