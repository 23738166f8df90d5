package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// indexer completes the index in the background: it goes through the rows of chunks that were stored while the index was lost, did not have them yet, or was not asked for
// lack of memory and time; and it joins those that turn out to be there twice (joiner). It is one goroutine.
type indexer struct {
	s       *Store
	wake    chan struct{}
	fault   fault
	joining atomic.Bool
	again   atomic.Bool   // states that held doubles may be gone
	begun   atomic.Uint64 // rounds of the joiner
	ended   atomic.Uint64 // of them, those that were whole; they end in the order in which they begin

	blind, hold atomic.Bool // set by tests: nothing is looked for; nothing is completed
}

const (
	indexTick = time.Second
	// indexPiece is how many chunk ids are gone through while Store.meta is held: some milliseconds.
	indexPiece = 2048
)

func newIndexer(s *Store) *indexer {
	x := &indexer{s: s, wake: make(chan struct{}, 1)}
	x.again.Store(true) // an earlier run may have left some
	return x
}

func (x *indexer) kick() {
	select {
	case x.wake <- struct{}{}:
	default:
	}
}

// joinedSince returns a function that reports whether each pair that could be joined when it was made is: nothing is due, or, as others may go on freeing states, a round went over all volumes that began after it.
func (x *indexer) joinedSince() func() bool {
	want := x.begun.Load() + 1
	return func() bool {
		return x.s.Index().Doubles == 0 || !x.again.Load() && !x.joining.Load() || x.ended.Load() >= want
	}
}

// noteFreed says that a state is gone for good.
func (x *indexer) noteFreed() {
	x.again.Store(true)
	x.kick()
}

// hurried reports whether guests wait, or soon will, for what is written to go down: no time to look for each chunk in tables that memory has no filter for.
func (x *indexer) hurried() bool { return x.s.space.fill.Load() >= fillDestage }

// leaveUnmatched notes that nobody looked whether a chunk is there already. It gets no hint, as that could hide the one it equals: it is looked for later.
func (m *metaBatch) leaveUnmatched(hash [16]byte) {
	if m.unmatched == nil {
		m.unmatched = make(map[[16]byte]bool)
	}
	m.unmatched[hash] = true
}

// RebuildIndex throws the index away and begins to make a new one, which goes on in the background; until it is whole, some of what is written is stored a second time, and
// joined with the first later. Settle waits for it, Index says how far it is.
func (s *Store) RebuildIndex() error {
	if s.closed.Load() {
		return block.ErrClosed
	}
	s.meta.Lock()
	defer s.meta.Unlock()
	s.index.reset()
	if s.index.db == nil {
		return fmt.Errorf("make an index in %s: what stood in the way was reported: %w", s.path(indexDir), block.ErrInvalid)
	}
	s.indexer.kick()
	return nil
}

// run works until ctx ends.
func (x *indexer) run(ctx context.Context) {
	tick := time.NewTicker(indexTick)
	defer tick.Stop()
	for ctx.Err() == nil {
		began := time.Now()
		more, err := x.round(ctx)
		x.s.report("complete the index", err)
		x.fault.note(err)
		if more && err == nil {
			if x.s.thorough.Load() == 0 {
				sleep(ctx, time.Since(began)) // half of the time is for those that write
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-x.wake:
		case <-tick.C:
		}
	}
}

// round does a bounded piece of what is due and reports whether more is.
func (x *indexer) round(ctx context.Context) (more bool, err error) {
	if x.hold.Load() || x.hurried() && x.s.thorough.Load() == 0 {
		return false, nil
	}
	more, whole, err := x.match()
	if err != nil || !whole || more {
		return more, err
	}
	if x.s.index.shown.Load().Doubles == 0 || !x.again.Load() {
		return false, nil
	}
	x.joining.Store(true)
	defer x.joining.Store(false)
	x.again.Store(false)
	n := x.begun.Add(1)
	j := joiner{s: x.s}
	if err := j.run(ctx); err != nil {
		x.again.Store(true)
		return false, fmt.Errorf("join chunks that are there twice: %w", err)
	}
	x.ended.Store(n)
	return false, nil
}

// match goes through the next chunk rows that the index does not have. It reports whether it did, and whether the index has all now.
func (x *indexer) match() (did, whole bool, err error) {
	s := x.s
	s.meta.Lock()
	defer s.meta.Unlock()
	i := &s.index
	if i.db == nil || i.broken.Load() {
		if i.reset(); i.db == nil {
			return false, false, nil
		}
	}
	if i.whole() {
		return false, true, nil
	}
	st := i.state
	last := min(st.Through+indexPiece, s.c.NextChunk)
	b := i.db.NewBatch()
	defer b.Close()
	added, err := x.rows(b, &st, st.Through+1, last)
	if err != nil {
		return false, false, err
	}
	if st.Through = last; last == s.c.NextChunk {
		st.Unmatched = 0
	}
	if !i.write(b, st) {
		return false, false, nil
	}
	for k := range added {
		s.hints.added(&added[k])
	}
	return true, i.whole(), nil
}

// rows looks for each chunk of a range of ids and puts what it finds into a batch for the index. It returns the hashes that it added. Ids that are free are skipped.
func (x *indexer) rows(b *pebble.Batch, st *indexState, first, last uint64) (added [][16]byte, err error) {
	s := x.s
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: key64(keyChunk, first), UpperBound: key64(keyChunk, last+1)})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	now := make(map[[16]byte]block.ChunkID, indexPiece) // that this batch adds
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		row, err := decodeChunkRow(id, v)
		if err != nil {
			return nil, err
		}
		if row.Flags&chunkDamaged != 0 || s.damaged.has(id) {
			continue
		}
		older, err := x.other(id, &row, now)
		if err != nil {
			return nil, err
		}
		switch {
		case older == id:
			continue
		case older == 0 || older > id: // a newer one is found to be a double when its row comes
			now[row.Hash] = id
			added = append(added, row.Hash)
			_ = b.Set(hintKey(&row.Hash), binary.LittleEndian.AppendUint64(nil, uint64(id)), nil)
		default:
			st.Doubles++
			_ = b.Set(key64(keyDouble, uint64(id)), encodeDouble(older, row.RawLen), nil)
			x.again.Store(true)
		}
	}
	return added, nil
}

// other returns the chunk that is known under the hash of a row and holds the same bytes: it may be id itself, and 0 is none.
func (x *indexer) other(id block.ChunkID, row *chunkRow, now map[[16]byte]block.ChunkID) (block.ChunkID, error) {
	s := x.s
	found, known := now[row.Hash]
	if !known {
		if !s.hints.perhaps(&row.Hash) {
			return 0, nil
		}
		var err error
		if found, err = s.index.hint(&row.Hash); errors.Is(err, block.ErrNotFound) {
			return 0, nil
		} else if err != nil {
			return 0, err
		}
	}
	if found == id {
		return id, nil
	}
	r, err := s.chunks.row(found)
	if errors.Is(err, block.ErrNotFound) {
		return 0, nil
	}
	if err != nil || r.Hash != row.Hash || r.RawLen != row.RawLen || r.Flags&chunkDamaged != 0 || s.damaged.has(found) {
		return 0, err
	}
	return found, nil
}
