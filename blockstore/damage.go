package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// Damage is what is known of a damaged segment, or of a damaged file of history.
type Damage struct {
	Segment block.SegmentID // 0: it is a file of history
	File    string          // key of the segment in its tier; of a file of history its path in the data directory
	FoundAt time.Time
	Columns int  // damaged columns of 4 KiB, as far as a sidecar could tell
	Mended  bool // all of it; nothing below is set then
	// Lost are the columns that parity does not reach, and Chunks the chunks that cannot be read for it.
	Lost   int
	Chunks int
	Places []DamagedPlace // what of volumes that is, at most maxPlaces
	More   uint64         // places that are not listed
	Reason string         // why it is not mended

	History *HistoryDamage // of a file of history
}

// DamagedPlace is a range of a volume or snapshot that answers EIO.
type DamagedPlace struct {
	Volume   string
	Snapshot string // empty: the volume as it is
	Offset   uint64 // bytes
	Length   uint64 // bytes
}

// maxPlaces bounds the places of one segment that are listed.
const maxPlaces = 256

// Damages returns what was found damaged since the start, mended or not.
func (s *Store) Damages() []Damage {
	k := s.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	all := make([]Damage, 0, len(k.mu.damaged)+len(k.mu.histories))
	for _, d := range k.mu.damaged {
		all = append(all, *d)
	}
	for _, d := range k.mu.histories {
		all = append(all, *d)
	}
	return all
}

// record keeps what was found of a segment and tells whoever listens.
func (k *keeper) record(d *Damage) {
	k.mu.Lock()
	k.mu.damaged[d.Segment] = d
	k.mu.Unlock()
	if f := k.s.opts.Events.Damage; f != nil {
		f(*d)
	}
}

// affected finds the chunks and places that need what is bad in a segment, and makes new data not refer to them.
func (k *keeper) affected(ctx context.Context, row *segmentRow, in *inspection, d *Damage) error {
	lost, err := k.lostChunks(ctx, row, in)
	if err != nil || len(lost) == 0 {
		return err
	}
	d.Chunks = len(lost)
	if err := k.markChunks(row, lost); err != nil {
		return err
	}
	return k.places(ctx, lost, d)
}

// lostChunks returns the chunks whose frames are bad and that their rows still place there.
func (k *keeper) lostChunks(ctx context.Context, row *segmentRow, in *inspection) (map[block.ChunkID]bool, error) {
	s, lost := k.s, map[block.ChunkID]bool{}
	if isMetadata(row) {
		return lost, nil
	}
	if !in.blind {
		for i := range in.bad {
			for _, c := range in.bad[i].Chunks {
				if r, err := s.chunks.row(c.ID); err == nil && r.Segment == row.ID && r.FrameOff == in.bad[i].Off {
					lost[c.ID] = true
				} else if err != nil && !errors.Is(err, block.ErrNotFound) {
					return nil, err
				}
			}
		}
		return lost, nil
	}
	// Without its directory only the rows say what a segment holds, and only all of them.
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyChunk}, UpperBound: []byte{keyChunk + 1}})
	if err != nil {
		return nil, err
	}
	frames := map[uint32]bool{}
	for ok := it.First(); ok && ctx.Err() == nil; ok = it.Next() {
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		r, err := decodeChunkRow(id, it.Value())
		if err != nil || r.Segment != row.ID {
			continue
		}
		bad, seen := frames[r.FrameOff]
		if !seen {
			bad = in.badFrame(r.FrameOff, r.FrameLen)
			frames[r.FrameOff] = bad
		}
		if bad {
			lost[id] = true
		}
	}
	return lost, errors.Join(it.Error(), it.Close(), ctx.Err())
}

// markChunks flags rows of chunks that cannot be read, so that new data of the same content is stored anew.
func (k *keeper) markChunks(row *segmentRow, lost map[block.ChunkID]bool) error {
	m := k.s.beginMeta()
	for id := range lost {
		r, err := m.chunkRow(id)
		if errors.Is(err, block.ErrNotFound) || err == nil && (r.Segment != row.ID || r.Flags&chunkDamaged != 0) {
			continue
		}
		if err == nil {
			r.Flags |= chunkDamaged
			m.fresh[id] = r
			err = m.b.Set(key64(keyChunk, uint64(id)), r.encode(nil), nil)
		}
		if err != nil {
			m.abort()
			return err
		}
	}
	return m.commit()
}

// visibleState is what a user can see: a volume, with the snapshot's name empty, or a snapshot.
type visibleState struct {
	volume, snapshot string
	n                *node
}

// visibleStates lists all of them, by name.
func (s *Store) visibleStates() []visibleState {
	var states []visibleState
	s.tree.RLock()
	for _, v := range s.volumes {
		states = append(states, visibleState{v.name, "", v.head.Load()})
	}
	for _, n := range s.nodes {
		if n.visibleLocked() {
			states = append(states, visibleState{n.volume.name, n.name, n})
		}
	}
	s.tree.RUnlock()
	slices.SortFunc(states, func(a, b visibleState) int {
		return cmp.Or(cmp.Compare(a.volume, b.volume), cmp.Compare(a.snapshot, b.snapshot))
	})
	return states
}

// places lists the ranges of volumes and snapshots whose maps lead to lost chunks. It reads all maps: nothing leads from a chunk to what needs it.
func (k *keeper) places(ctx context.Context, lost map[block.ChunkID]bool, d *Damage) error {
	s := k.s
	for _, st := range s.visibleStates() {
		found, more := d.Places, d.More
		err := block.ErrNotFound
		for try := 0; errors.Is(err, block.ErrNotFound) && try < maxReadRetries; try++ { // the map moved
			d.Places, d.More = found, more
			err = s.maps.Lookup(st.n.effectiveRoot(), 0, block.MaxVolumeSize, func(e extentmap.Extent) bool {
				if e.Kind == extentmap.KindChunk && lost[e.Chunk] {
					d.add(DamagedPlace{st.volume, st.snapshot, e.Off, uint64(e.Len)})
				}
				return ctx.Err() == nil
			})
		}
		if err = errors.Join(err, ctx.Err()); err != nil && !errors.Is(err, block.ErrNotFound) {
			return err
		}
	}
	return nil
}

// add lists a place, or lets the last one grow.
func (d *Damage) add(p DamagedPlace) {
	if n := len(d.Places); n > 0 {
		if l := &d.Places[n-1]; l.Volume == p.Volume && l.Snapshot == p.Snapshot && l.Offset+l.Length == p.Offset {
			l.Length += p.Length
			return
		}
		if n == maxPlaces {
			d.More++
			return
		}
	}
	d.Places = append(d.Places, p)
}

// String says in one line what happened, for logs.
func (d *Damage) String() string {
	if d.History != nil {
		return d.History.text(d)
	}
	if d.Mended {
		return fmt.Sprintf("segment %s: %d damaged columns, all mended", d.File, d.Columns)
	}
	text := fmt.Sprintf("segment %s: %d damaged columns, %d of them beyond parity, %d chunks lost: %s", d.File, d.Columns, d.Lost, d.Chunks, d.Reason)
	for i, p := range d.Places {
		name := p.Volume
		if p.Snapshot != "" {
			name += "@" + p.Snapshot
		}
		if i == 8 {
			return text + fmt.Sprintf("; and %d places more", uint64(len(d.Places)-i)+d.More)
		}
		text += fmt.Sprintf("; affects %s at %d+%d", name, p.Offset, p.Length)
	}
	return text
}
