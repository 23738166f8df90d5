package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/replica"
)

// How much of a point may have to be sent again after a crash: less than this is not durable yet.
const (
	keepReceivedBytes = 256 << 20
	keepReceivedTime  = 5 * time.Second
)

// maxReplications is how many volumes of a store can have one, so that a sender cannot make any number of them.
const maxReplications = 4096

// ReplicaSender is who says to be the source of a replica.
type ReplicaSender struct {
	Local bool     // root or hvd's own user on this machine, who may do everything
	Names []string // in the certificate of another hvd; the first is what it is called
}

func (s ReplicaSender) name() string {
	if s.Local || len(s.Names) == 0 {
		return ""
	}
	return s.Names[0]
}

// admitSender reports why a sender may not send replicas at all.
func (c *Control) admitSender(s ReplicaSender) error {
	allowed := c.opts.Config.Replication.PeerList()
	if s.Local || len(s.Names) > 0 && len(allowed) == 0 || slices.ContainsFunc(allowed, func(name string) bool { return slices.Contains(s.Names, name) }) {
		return nil
	}
	return fmt.Errorf("a certificate of %q is not among replication.peers: %w", s.Names, ErrRefused)
}

// admitTo reports why a sender may not send this replica.
func (r *replicationRecord) admitTo(s ReplicaSender, pair string) error {
	if r.Pair != pair {
		return fmt.Errorf("volume %q belongs to another replication: %w", r.Volume, ErrRefused)
	}
	if s.Local || r.Peer == "" || slices.Contains(s.Names, r.Peer) {
		return nil
	}
	return fmt.Errorf("volume %q is a replica of %q and not of %q: %w", r.Volume, r.Peer, s.Names, ErrRefused)
}

// ReplicaHello answers the source of a volume, and makes the volume if it may.
func (c *Control) ReplicaHello(ctx context.Context, s ReplicaSender, volume string, h replica.Hello) (replica.State, error) {
	fail := func(err error) (replica.State, error) {
		return replica.State{}, fmt.Errorf("replica %q: %w", volume, err)
	}
	if err := errors.Join(c.admitSender(s), checkVolume(volume), replica.CheckID("pair", h.Pair), replica.CheckEpoch(h.Epoch)); err != nil {
		return fail(err)
	}
	ctx, done, err := c.work(ctx)
	if err != nil {
		return fail(err)
	}
	defer done()
	release, err := c.names.hold(ctx, "replication", volume)
	if err != nil {
		return fail(err)
	}
	defer release()
	r := c.replicationOf(volume)
	if r == nil {
		if r, err = c.newReplica(ctx, s, volume, h); err != nil {
			return fail(err)
		}
	}
	record := c.recordIn(r)
	if err := record.admitTo(s, h.Pair); err != nil {
		return fail(err)
	}
	if h.Epoch > record.Epoch {
		if err := c.heard(r, h.Epoch); err != nil {
			return fail(err)
		}
		record = c.recordIn(r)
	}
	state := replica.State{Pair: record.Pair, Epoch: record.Epoch, Role: replica.RolePrimary, Points: []string{}}
	if record.Role == roleReplica {
		state.Role = replica.RoleReplica
	}
	for _, p := range record.Points {
		state.Points = append(state.Points, p.ID)
	}
	if part := record.Receiving; part != nil && part.ID != "" {
		state.Receiving = &replica.Receiving{Point: part.ID, Base: part.Base, SizeBytes: part.SizeBytes, ReachedBytes: part.ReachedBytes, Complete: part.Complete}
	}
	return state, nil
}

// heard takes the greater epoch of the other side. A replica takes it for its own; a primary or source learns that it is none any more.
func (c *Control) heard(r *replication, epoch uint64) error {
	if c.recordIn(r).Role == roleReplica {
		return c.changeReplication(r, func(record *replicationRecord) { record.Epoch = epoch })
	}
	err := c.fence(r, epoch)
	if errors.Is(err, errFenced) {
		return nil
	}
	return err
}

// newReplica makes the volume of a replica, whose name is held. It gets its name when a crash would find it in replications.json.
func (c *Control) newReplica(ctx context.Context, s ReplicaSender, volume string, h replica.Hello) (*replication, error) {
	if _, err := c.engine.Volume(volume); !errors.Is(err, block.ErrNotFound) {
		return nil, errors.Join(err, fmt.Errorf("there is such a volume, and it is no replica of that pair: %w", block.ErrExists))
	}
	if n := len(c.replicatedVolumes()); n >= maxReplications {
		return nil, fmt.Errorf("%d volumes are replicated already: %w", n, ErrRefused)
	}
	if !h.Create {
		return nil, fmt.Errorf("there is none any more; stop the replication at its source and begin anew: %w", block.ErrNotFound)
	}
	spec, err := VolumeSpec{Name: volume, SizeBytes: h.SizeBytes, Chunking: h.Chunking, Mode: h.Mode}.check()
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx) // it is short, and whoever hung up comes back
	spec.Name = importPrefix + newID()
	info, err := c.engine.CreateVolume(ctx, spec)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*replication, error) {
		return nil, errors.Join(err, c.discard(ctx, spec.Name))
	}
	if _, err := c.takePoint(ctx, spec.Name, replica.Empty); err != nil {
		return fail(err)
	}
	r := &replication{record: replicationRecord{
		Volume: volume, UUID: info.UUID.String(), Pair: h.Pair, Epoch: h.Epoch, Role: roleReplica, Peer: s.name(), Points: []replicaPoint{{ID: replica.Empty, At: c.opts.Now().UTC()}},
	}}
	if err := c.addReplication(r); err != nil {
		return fail(err)
	}
	if err := c.engine.RenameVolume(ctx, spec.Name, volume); err != nil {
		_, failed := fail(err)
		return nil, errors.Join(failed, c.forgetReplications(r))
	}
	if err := c.flushVolume(ctx, volume); err != nil {
		return nil, err
	}
	c.log.Info("a replica of another hvd's volume begins", "volume", volume, "source", h.Source, "peer", s.name(), "sizeBytes", h.SizeBytes)
	return r, nil
}

// ReceiveReplica takes a stream into a replica and returns when its point is complete and durable. cut makes body fail. If it fails, what has come is of no use to anybody but the same source, which can go on with it.
func (c *Control) ReceiveReplica(ctx context.Context, s ReplicaSender, volume string, b replica.Begin, body io.Reader, cut func()) error {
	if err := c.receiveReplica(ctx, s, volume, b, body, cut); err != nil {
		return fmt.Errorf("replica %q: %w", volume, err)
	}
	return nil
}

func (c *Control) receiveReplica(ctx context.Context, s ReplicaSender, volume string, b replica.Begin, body io.Reader, cut func()) (err error) {
	if err := errors.Join(c.admitSender(s), checkVolume(volume)); err != nil {
		return err
	}
	ctx, done, err := c.work(ctx)
	if err != nil {
		return err
	}
	defer done()
	r := c.replicationOf(volume)
	if r == nil {
		return fmt.Errorf("no such replica: %w", block.ErrNotFound)
	}
	before := c.recordIn(r)
	if err := before.admitTo(s, b.Pair); err != nil { // before it can end the session of another
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	session := &replicaSession{cancel: cancel, over: make(chan struct{})}
	if err := c.mayReceive(&before, b); err != nil {
		return err
	}
	if err := c.enterSession(ctx, session, r); err != nil {
		return err
	}
	defer c.leaveSession(session, r)
	defer context.AfterFunc(ctx, cut)()
	record := c.recordIn(r) // it may have been promoted meanwhile
	if err := c.mayReceive(&record, b); err != nil {
		return err
	}
	stream, err := replica.NewReader(body)
	if err != nil {
		return err
	}
	progress := c.beginProgress(r)
	err = c.takeStream(ctx, r, b, stream, progress)
	if ctx.Err() == nil {
		c.noteCycle(err, r)
	}
	return err
}

// mayReceive reports why a point is not taken: the epoch of its source is over, or this is no replica.
func (c *Control) mayReceive(record *replicationRecord, b replica.Begin) error {
	switch {
	case b.Epoch < record.Epoch:
		return fmt.Errorf("epoch %d is over, %d counts: %w", b.Epoch, record.Epoch, ErrRefused)
	case record.Role != roleReplica:
		return fmt.Errorf("it is a %s: demote it first: %w", record.Role, ErrRefused)
	case record.Group != nil && !record.isOf(b.Group):
		return fmt.Errorf("it is one of the group %s, and comes with the others or not at all: %w", record.name(), ErrRefused)
	case record.holds(b.Point):
		return fmt.Errorf("all of point %s is here already: %w", b.Point, ErrRefused)
	case !record.has(b.Base):
		return fmt.Errorf("point %s to begin from is not there: %w", b.Base, block.ErrNotFound)
	}
	return nil
}

// takeStream brings the volume to a point.
func (c *Control) takeStream(ctx context.Context, r *replication, b replica.Begin, stream *replica.Reader, progress *sending) error {
	if err := c.beginPoint(ctx, r, b, stream.Size()); err != nil {
		return err
	}
	record := c.recordIn(r)
	device, err := c.engine.OpenDevice(record.Volume, "")
	if err != nil {
		return err
	}
	err = c.fillReplica(ctx, r, device, stream, progress)
	if err := errors.Join(err, device.Close()); err != nil {
		return err
	}
	return c.finishPoint(ctx, r, b)
}

// beginPoint has the volume hold the point that a stream begins from, unless the stream goes on with what has come. Until the point is complete replications.json says that the content is none.
func (c *Control) beginPoint(ctx context.Context, r *replication, b replica.Begin, sizeBytes uint64) error {
	record := c.recordIn(r)
	part := record.Receiving
	if part != nil && part.ID == b.Point && part.Base == b.Base && part.SizeBytes == sizeBytes && b.FromBytes > 0 && b.FromBytes <= part.ReachedBytes {
		return nil
	}
	if b.FromBytes > 0 {
		return fmt.Errorf("point %s cannot go on at %d: %w", b.Point, b.FromBytes, ErrRefused)
	}
	dirty := part != nil || record.newest().ID != b.Base
	if _, err := c.snapshot(record.Volume, pointName(b.Base)); err != nil {
		return err // an hvd that knew nothing of replications had the store
	}
	err := c.changeReplication(r, func(record *replicationRecord) {
		record.Epoch = b.Epoch
		record.Receiving = &receivingRecord{ID: b.Point, At: b.At.UTC(), Base: b.Base, SizeBytes: sizeBytes}
	})
	if err != nil {
		return err
	}
	if dirty {
		if err := c.engine.Rollback(ctx, record.Volume, pointName(b.Base)); err != nil {
			return err
		}
	}
	info, err := c.engine.Volume(record.Volume)
	if err != nil || info.SizeBytes == sizeBytes {
		return err
	}
	return c.engine.ResizeVolume(ctx, record.Volume, sizeBytes)
}

// fillReplica writes what comes, and remembers from time to time how much of it is durable.
func (c *Control) fillReplica(ctx context.Context, r *replication, device Device, stream *replica.Reader, progress *sending) error {
	fresh, kept := uint64(0), time.Now()
	for {
		p, err := stream.Next()
		if errors.Is(err, io.EOF) {
			return device.Flush(ctx)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if p.Data == nil {
			err = device.Zero(ctx, block.Range{Off: p.Off, Len: p.Length}, false, false)
		} else {
			err = device.Write(ctx, []block.Write{{Off: p.Off, Data: p.Data}}, false)
			progress.done.Add(p.Length)
			fresh += p.Length
		}
		if err != nil {
			return err
		}
		if fresh < c.keepReceived && time.Since(kept) < keepReceivedTime {
			continue
		}
		if err := device.Flush(ctx); err != nil {
			return err
		}
		if err := c.changeReplication(r, func(record *replicationRecord) {
			part := *record.Receiving
			part.ReachedBytes = p.Off + p.Length
			record.Receiving = &part
		}); err != nil {
			return err
		}
		fresh, kept = 0, time.Now()
	}
}

// finishPoint makes a point of what has come, and keeps that one alone; of a member of a group it keeps what has come until the others have too.
func (c *Control) finishPoint(ctx context.Context, r *replication, b replica.Begin) error {
	ctx = context.WithoutCancel(ctx) // it is short
	volume := c.recordIn(r).Volume
	if err := c.engine.DeleteSnapshot(ctx, volume, pointName(b.Point)); err != nil && !errors.Is(err, block.ErrNotFound) {
		return err // of a try that did not end
	}
	if _, err := c.takePoint(ctx, volume, b.Point); err != nil {
		return err
	}
	if err := c.changeReplication(r, func(record *replicationRecord) {
		if b.Group != "" {
			part := *record.Receiving
			part.Complete, part.ReachedBytes = true, part.SizeBytes
			record.Receiving = &part
			return
		}
		record.Points, record.Receiving = []replicaPoint{{ID: b.Point, At: b.At.UTC()}}, nil
	}); err != nil {
		return err
	}
	c.tidyPoints(ctx, volume)
	return nil
}

// differenceBytes is how much data differs between two states of a volume.
func (c *Control) differenceBytes(ctx context.Context, volume, from, to string) (n uint64, err error) {
	err = c.engine.Diff(ctx, blockstore.StateName{Volume: volume, Snapshot: from}, blockstore.StateName{Volume: volume, Snapshot: to}, func(change blockstore.Change) bool {
		n += change.Len
		return true
	})
	return n, err
}
