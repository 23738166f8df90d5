package blockstore

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// checkpointer keeps the metadata a second time, in segments of class metadata: deltas of what changed, and a full checkpoint now and then (package checkpoint). What a
// durable delta shows is *journaled*: from there, with the log after it, all metadata can be made again (rebuild.go). Two things wait for it:
//
//	log files      are kept from the journaled watermark on, not only from the watermark (release.go)
//	segment files  without a row are kept until a delta shows that nothing needs them (unlink.go)
//
// The rows that changed since the last delta are found by markers that each metadata batch writes itself (marker.go), so a restart loses none.
//
// Lock order: writing, then Store.meta.
type checkpointer struct {
	s    *Store
	wake chan struct{}

	// writing is held by whoever appends to the stream: a delta as a whole, each part of a full checkpoint by itself, so that deltas pass a full one that takes long.
	writing sync.Mutex
	out     stream
	lost    bool // what was journaled can not be read any more: a full checkpoint is due

	marks   markerState
	changed atomic.Bool // a marker was written since the last delta began
	// journaled is what the last durable checkpoint shows; nil before the first one.
	journaled atomic.Pointer[journalRow]
	at        atomic.Int64 // ns since the epoch of the last delta
	files     deadFiles
	inFull    func() error // a test's, called between the parts of a full checkpoint
}

const (
	// checkpointEvery is how long a change may wait for a delta.
	checkpointEvery = time.Minute
	// fullAfterBytes and fullAfterTimes say when a full checkpoint is due: when the deltas since the last one are longer than both.
	fullAfterBytes = 64 << 20
	fullAfterTimes = 2
	// heldParts is the part of the log's cap that may be kept for the next delta alone.
	heldParts = 8
)

func newCheckpointer(s *Store) *checkpointer {
	c := &checkpointer{s: s, wake: make(chan struct{}, 1)}
	c.out.s = s
	c.marks.gen.Store(1)
	c.at.Store(s.opts.Now().UnixNano())
	return c
}

// load takes over what an earlier run journaled. Store.c is read.
func (c *checkpointer) load() error {
	j, err := readJournalRow(c.s.db)
	if err != nil {
		return err
	}
	newest, any, err := newestMarker(c.s.db)
	if err != nil {
		return err
	}
	if j != nil {
		c.journaled.Store(j)
		newest = max(newest, j.Gen)
	}
	c.marks.gen.Store(newest + 1)
	c.changed.Store(any)
	// A delta may have become durable that nobody noted: what it shows as new must be marked when it goes.
	c.marks.page, c.marks.chunk = c.s.c.NextPage, c.s.c.NextChunk
	return nil
}

// retain is the position from which the log must be kept; 0 when nothing is journaled and nothing is kept for it. The first checkpoint of a store has watermark 0, which means
// all of the log, and for which the first position that there is stands.
func (c *checkpointer) retain() journal.Pos {
	if j := c.journaled.Load(); j != nil {
		return max(j.Watermark, 1)
	}
	return 0
}

// releasable bounds a position before which log files may go.
func (c *checkpointer) releasable(low journal.Pos) journal.Pos {
	if j := c.journaled.Load(); j != nil {
		return min(low, j.Watermark)
	}
	return low
}

func (c *checkpointer) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (c *checkpointer) run(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		err := errors.Join(c.s.noteSuspicion(), c.step(ctx))
		c.s.report("checkpoint of the metadata", err)
		if err == nil {
			select {
			case <-ctx.Done():
			case <-c.wake:
			case <-tick.C:
			}
			continue
		}
		sleep(ctx, time.Second) // do not spin on a lasting fault, such as a full disk
	}
}

// step writes what is due.
func (c *checkpointer) step(ctx context.Context) error {
	if c.fullDue() {
		return c.full(ctx)
	}
	return c.deltaIfDue()
}

func (c *checkpointer) fullDue() bool {
	j := c.journaled.Load()
	limit := c.s.opts.fullAfterBytes
	if limit == 0 {
		limit = fullAfterBytes
	}
	return j == nil || c.lost || j.DeltaBytes > max(uint64(limit), fullAfterTimes*j.FullBytes)
}

func (c *checkpointer) deltaIfDue() error {
	if !c.deltaDue() {
		return nil
	}
	return c.delta()
}

// deltaDue says whether a delta is worth it: the log or dead files wait for it, or it is time.
func (c *checkpointer) deltaDue() bool {
	if !c.dirty() {
		return false
	}
	s, j := c.s, c.journaled.Load()
	held := int64(s.watermark().File()-j.Watermark.File()) * s.opts.LogFileBytes
	switch {
	case held >= s.opts.LogCapBytes/heldParts, held > 0 && s.space.fill.Load() >= fillSoft:
		return true
	case c.files.any() && SpaceState(s.space.state.Load()) != SpaceOK:
		return true
	}
	return s.opts.Now().UnixNano()-c.at.Load() >= int64(checkpointEvery)
}

// dirty reports whether a delta would change anything. Without a base there are no deltas.
func (c *checkpointer) dirty() bool {
	j := c.journaled.Load()
	if j == nil {
		return false
	}
	n := c.s.counted.Load()
	return c.changed.Load() || c.files.any() || n.Watermark != j.Watermark || n.AppliedSeq != j.AppliedSeq || n.NextPage != j.NextPage || n.NextChunk != j.NextChunk
}

// delta writes what changed since the last one, if anything did, makes it durable, and lets go what waited for it.
func (c *checkpointer) delta() (err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	if !c.dirty() {
		return nil
	}
	j := *c.journaled.Load()
	p := &partWriter{out: &c.out, h: checkpoint.Header{Kind: checkpoint.Delta, Base: j.Number, Number: c.out.take()}, life: c.out.life}
	b, err := c.boundary(true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.snap.Close()) }()
	if err = b.changes(p, &j); err == nil {
		err = p.finish()
	}
	if err != nil {
		c.out.forget()
		c.changed.Store(true)
		return c.makeRoom(err)
	}
	c.s.at(afterDelta)
	j.moveTo(b, p)
	j.DeltaBytes += p.bytes
	return c.note(&j, b.gen)
}

// letGo removes the files of dead segments for which an audit was all that they waited for.
func (c *checkpointer) letGo() error {
	c.writing.Lock()
	defer c.writing.Unlock()
	if j := c.journaled.Load(); j != nil && c.files.any() {
		return c.files.remove(c.s.tiers, j.Gen)
	}
	return nil
}

// makeRoom passes on why a delta failed. On a full disk the files that wait for it go all the same, as nothing else would make room: until the next delta the metadata
// cannot be rebuilt, but the database is whole.
func (c *checkpointer) makeRoom(err error) error {
	if errors.Is(err, block.ErrNoSpace) && c.files.any() {
		return errors.Join(err, c.files.remove(c.s.tiers, c.marks.gen.Load()))
	}
	return err
}

// full writes a full checkpoint. It holds nobody up, and between its parts deltas are written when they are due.
func (c *checkpointer) full(ctx context.Context) (err error) {
	first := c.journaled.Load() == nil
	older := uint64(0) // bytes of deltas that it makes superfluous; one that comes until it begins may count on: then the next full one is due earlier
	if !first {
		older = c.journaled.Load().DeltaBytes
	}
	p, b, err := c.beginFull(first)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.snap.Close()) }()
	c.s.at(afterFullBegan)
	p.between = func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if c.inFull != nil {
			return c.inFull()
		}
		if first {
			return nil
		}
		return c.deltaIfDue()
	}
	if err = b.everything(p); err == nil {
		err = p.finish()
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	if err != nil {
		c.out.forget()
		return err
	}
	j := journalRow{}
	if first {
		j.moveTo(b, p)
	} else {
		j = *c.journaled.Load()
	}
	j.Full, j.FullBytes, j.DeltaBytes = p.first(), p.bytes, j.DeltaBytes-older
	if err := c.note(&j, b.gen); err != nil {
		return err
	}
	c.lost = false
	return c.dropOld(j.Full.Segment)
}

// beginFull takes number and moment of a full checkpoint together: one of a higher number is of a later moment. The first part is written with them, so that what has a higher
// number lies behind it in the stream: all before it may go when the checkpoint is complete (dropOld).
func (c *checkpointer) beginFull(first bool) (*partWriter, *boundary, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	p := &partWriter{out: &c.out, h: checkpoint.Header{Kind: checkpoint.Full, Number: c.out.take()}, life: c.out.life}
	b, err := c.boundary(first)
	if err != nil {
		return nil, nil, err
	}
	if err := b.begin(p); err != nil {
		c.out.forget()
		return nil, nil, errors.Join(err, b.snap.Close())
	}
	p.lock = &c.writing
	return p, b, nil
}

// note makes the record of a durable checkpoint durable and forgets the markers that it covers. Then the log and the files may go that were kept for it. writing is held.
func (c *checkpointer) note(j *journalRow, gen uint32) error {
	s := c.s
	m := s.beginMeta()
	if err := c.out.count(m); err != nil {
		m.abort()
		return err
	}
	_ = m.b.Set(journalKey, j.encode(), nil)
	_ = m.b.DeleteRange([]byte{keyMarker}, markerKey(gen+1, nil), nil)
	if err := m.commit(); err != nil {
		return err
	}
	// Now the metadata may never be older than this: a database that went back in time, as Pebble's does when the end of its log is damaged, is told by the superblock,
	// before anything is let go that the older one would need.
	err := s.updateSuper(func(super *superblock) { super.Checkpoints = [2]checkpointPointer{j.Full, j.Last} })
	c.journaled.Store(j)
	c.at.Store(s.opts.Now().UnixNano())
	if err != nil {
		return err
	}
	s.at(afterJournal)
	err = c.files.remove(s.tiers, gen)
	if s.log != nil {
		err = errors.Join(err, s.letLogGo(s.watermark()))
		s.space.released()
	}
	return err
}

// dropOld removes the metadata segments before the one that the newest full checkpoint begins in. writing is held.
func (c *checkpointer) dropOld(first block.SegmentID) (err error) {
	for _, r := range c.s.segments.all() {
		if isMetadata(&r) && r.ID < first {
			err = errors.Join(err, c.s.dropSegment(r.ID))
		}
	}
	return err
}

// close writes the last delta, so that a store that was closed in order needs no log to be rebuilt, and lets the stream go.
func (c *checkpointer) close() error {
	err := c.delta()
	c.writing.Lock()
	defer c.writing.Unlock()
	c.out.forget()
	return err
}

// isJournalOwn reports whether a key is one that checkpoints keep for themselves, or derive: nothing of it is marked.
func isJournalOwn(key []byte) bool {
	return bytes.IndexByte([]byte{keyHint, keySegment, keyMeta, keyMarker}, key[0]) >= 0
}
