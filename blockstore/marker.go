package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// keyMarker begins the rows that say what changed since the last delta: K, generation u32, key of the row. They have no value. A delta raises the generation when it begins;
// when it is durable, the markers of the generations before go.
const keyMarker = 'K'

func markerKey(gen uint32, key []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{keyMarker}, gen), key...)
}

// markerState is what a batch needs to know to mark what it changes. page and chunk are guarded by Store.meta.
type markerState struct {
	gen atomic.Uint32 // of the markers that batches write now
	// Pages, radix nodes and chunks are found by their ids, which only rise, and never change: nothing needs a marker but the end of those that a checkpoint may show already,
	// which are those up to these ids.
	page, chunk uint64
	key, live   []byte // scratch
}

// mark adds the markers of all that a batch changes. Store.meta is held.
func (m *metaBatch) mark() error {
	c := m.s.checkpoints
	st := &c.marks
	st.key = markerKey(st.gen.Load(), nil)
	prefix, lastLive := len(st.key), uint64(0)
	for r := m.b.Reader(); ; {
		kind, key, _, ok, err := r.Next()
		if !ok || err != nil {
			return err
		}
		if isJournalOwn(key) {
			continue
		}
		switch key[0] {
		case keyChunk:
			id := binary.BigEndian.Uint64(key[1:])
			if kind != pebble.InternalKeyKindDelete || id > st.chunk || id/checkpoint.LivePerRow+1 == lastLive {
				continue
			}
			// Chunks that die together mostly were made together: one marker for all that a row of bits is about.
			lastLive = id/checkpoint.LivePerRow + 1
			key = checkpoint.LiveKey(st.live[:0], block.ChunkID(id))
		case keyPage, keyRadix:
			if kind != pebble.InternalKeyKindDelete || binary.BigEndian.Uint64(key[1:]) > st.page {
				continue
			}
		}
		st.key = append(st.key[:prefix], key...)
		if err := m.b.Set(st.key, nil, nil); err != nil {
			return err
		}
		c.changed.Store(true)
	}
}

// newestMarker returns the highest generation of which there are markers.
func newestMarker(db *pebble.DB) (gen uint32, any bool, err error) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyMarker}, UpperBound: []byte{keyMarker + 1}})
	if err != nil {
		return 0, false, err
	}
	if it.Last() {
		if len(it.Key()) < 6 {
			return 0, false, errors.Join(&block.CorruptError{Source: "marker row", Want: "a key of at least 6 B", Got: fmt.Sprint(len(it.Key()))}, it.Close())
		}
		gen, any = binary.BigEndian.Uint32(it.Key()[1:]), true
	}
	return gen, any, it.Close()
}

// journalRow says what the last durable checkpoint shows.
type journalRow struct {
	Gen        uint32 // markers up to this generation are in it
	Number     uint64 // of the delta, or of the first full checkpoint; base of the next delta
	Watermark  journal.Pos
	AppliedSeq uint64
	NextPage   uint64
	NextChunk  uint64
	Full       checkpointPointer // first part of the newest full checkpoint
	Last       checkpointPointer // first part of checkpoint Number
	FullBytes  uint64            // stored
	DeltaBytes uint64            // of deltas since the newest full checkpoint
}

var journalKey = []byte{keyMeta, 'j'}

func (j *journalRow) encode() []byte {
	e := &enc{}
	e.u8(rowVersion)
	e.zero(3)
	e.u32(j.Gen)
	for _, v := range []uint64{j.Number, uint64(j.Watermark), j.AppliedSeq, j.NextPage, j.NextChunk, uint64(j.Full.Segment), j.Full.Offset, j.Full.Seq,
		uint64(j.Last.Segment), j.Last.Offset, j.Last.Seq, j.FullBytes, j.DeltaBytes} {
		e.u64(v)
	}
	e.zero(16)
	return e.b
}

func decodeJournalRow(b []byte) (*journalRow, error) {
	d := &dec{b: b}
	if v := d.u8(); v != rowVersion {
		return nil, fmt.Errorf("checkpoint row version %d: %w", v, block.ErrVersion)
	}
	d.zero(3)
	j := &journalRow{Gen: d.u32()}
	var watermark, full, last uint64
	for _, p := range []*uint64{&j.Number, &watermark, &j.AppliedSeq, &j.NextPage, &j.NextChunk, &full, &j.Full.Offset, &j.Full.Seq, &last, &j.Last.Offset, &j.Last.Seq, &j.FullBytes, &j.DeltaBytes} {
		*p = d.u64()
	}
	j.Watermark, j.Full.Segment, j.Last.Segment = journal.Pos(watermark), block.SegmentID(full), block.SegmentID(last)
	d.zero(16)
	return j, d.end("checkpoint row")
}

// readJournalRow returns nil when nothing was journaled yet.
func readJournalRow(db *pebble.DB) (*journalRow, error) {
	v, closer, err := db.Get(journalKey)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read checkpoint row: %w", err)
	}
	defer closer.Close()
	return decodeJournalRow(v)
}

// moveTo makes j name the checkpoint that p wrote of the moment b.
func (j *journalRow) moveTo(b *boundary, p *partWriter) {
	j.Gen, j.Number, j.Last = b.gen, p.h.Number, p.first()
	j.Watermark, j.AppliedSeq, j.NextPage, j.NextChunk = b.c.Watermark, b.c.AppliedSeq, b.c.NextPage, b.c.NextChunk
}
