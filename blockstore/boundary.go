package blockstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
)

// Tables of package extentmap.
const (
	keyPage  = 'P'
	keyRadix = 'N'
	keyRef   = 'R'
	keyDead  = 'D'
	keyJob   = 'J'
)

// wholeTables are the tables that a full checkpoint holds row by row. Of chunk rows it holds which there are; hints and segment rows follow from the segments.
var wholeTables = []byte{keyDead, keyJob, keyRadix, keyPage, keyRef, keySnapshot, keyTouched, keyVolume}

// boundary is a moment between two metadata batches.
type boundary struct {
	snap *pebble.Snapshot
	gen  uint32 // of the newest markers that were written up to it; 0 when markers go on as they are
	c    counters
	row  []byte // the counters as they are stored
}

// boundary takes a snapshot. With next, which makes it the end of a delta, the markers of batches from here on get a new generation.
func (c *checkpointer) boundary(next bool) (*boundary, error) {
	s := c.s
	s.meta.Lock()
	b := &boundary{snap: s.db.NewSnapshot()}
	if next {
		b.gen = c.marks.gen.Load()
		c.marks.gen.Store(b.gen + 1)
		c.changed.Store(false)
	}
	c.marks.page, c.marks.chunk = s.c.NextPage, s.c.NextChunk
	s.meta.Unlock()
	v, closer, err := b.snap.Get(countersKey)
	if err == nil {
		b.row = bytes.Clone(v)
		b.c, err = decodeCounters(v)
		err = errors.Join(err, closer.Close())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read counters: %w", err), b.snap.Close())
	}
	return b, nil
}

// begin writes the counters, which are the first part of a full checkpoint.
func (b *boundary) begin(p *partWriter) error {
	if err := p.set(countersKey, b.row); err != nil {
		return err
	}
	return p.cut()
}

// everything writes all rows but what begin wrote.
func (b *boundary) everything(p *partWriter) error {
	if err := b.live(p, 0); err != nil {
		return err
	}
	for _, table := range wholeTables {
		if err := b.table(p, []byte{table}); err != nil {
			return err
		}
	}
	return nil
}

// changes writes what is not as checkpoint j shows it.
func (b *boundary) changes(p *partWriter, j *journalRow) error {
	if err := p.set(countersKey, b.row); err != nil {
		return err
	}
	if err := b.live(p, j.NextChunk+1); err != nil {
		return err
	}
	for _, table := range []byte{keyRadix, keyPage} {
		if err := b.table(p, key64(table, j.NextPage+1)); err != nil {
			return err
		}
	}
	return b.marked(p)
}

// scan calls f with each row from lower to the end of its table. Key and value are lent.
func (b *boundary) scan(lower []byte, f func(it *pebble.Iterator) error) error {
	it, err := b.snap.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: []byte{lower[0] + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		err = f(it)
	}
	return errors.Join(err, it.Close())
}

func (b *boundary) table(p *partWriter, lower []byte) error {
	return b.scan(lower, func(it *pebble.Iterator) error {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		return p.set(it.Key(), v)
	})
}

// live writes which chunks there are, in rows of bits, from the row of an id on.
func (b *boundary) live(p *partWriter, from uint64) error {
	var row checkpoint.LiveRow
	from -= from % checkpoint.LivePerRow
	flush := func() error {
		if key, value, ok := row.Take(); ok {
			return p.set(key, value)
		}
		return nil
	}
	err := b.scan(key64(keyChunk, from), func(it *pebble.Iterator) error {
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		if row.Add(id) {
			return nil
		}
		if err := flush(); err != nil {
			return err
		}
		row.Add(id)
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// liveRow writes one row of bits as it is now.
func (b *boundary) liveRow(p *partWriter, chunks *pebble.Iterator, key []byte) error {
	var row checkpoint.LiveRow
	first := row.Begin(key)
	end := key64(keyChunk, uint64(first)+checkpoint.LivePerRow)
	for ok := chunks.SeekGE(key64(keyChunk, uint64(first))); ok && bytes.Compare(chunks.Key(), end) < 0; ok = chunks.Next() {
		row.Add(block.ChunkID(binary.BigEndian.Uint64(chunks.Key()[1:])))
	}
	if err := chunks.Error(); err != nil {
		return err
	}
	key, value, _ := row.Take()
	return p.set(key, value)
}

// marked writes the rows that markers name, as they are now. A page or radix node with a marker is gone, as nothing else is marked of those.
func (b *boundary) marked(p *partWriter) (err error) {
	rows, err := b.snap.NewIter(nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	it, err := b.snap.NewIter(&pebble.IterOptions{LowerBound: []byte{keyMarker}, UpperBound: markerKey(b.gen+1, nil)})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		key := it.Key()
		if len(key) < 6 {
			return &block.CorruptError{Source: "marker row", Want: "a key of at least 6 B", Got: fmt.Sprint(len(key))}
		}
		key = key[5:]
		if t := key[0]; t == checkpoint.LiveTable {
			err = b.liveRow(p, rows, key)
		} else if t == keyPage || t == keyRadix || !rows.SeekGE(key) || !bytes.Equal(rows.Key(), key) {
			err = errors.Join(rows.Error(), p.delete(key))
		} else if v, verr := rows.ValueAndErr(); verr != nil {
			err = verr
		} else {
			err = p.set(key, v)
		}
		if err != nil {
			return err
		}
	}
	return it.Error()
}
