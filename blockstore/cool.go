package blockstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup/similar"
)

const (
	// coolBatch is how many raw bytes go cold at once at most, where there is memory for it: what is read, compressed and made durable by one batch of metadata, and among which
	// similar chunks are sought.
	coolBatch = 32 << 20
	// coolRetries is how many passes a settle makes at most, and how often a pass looks again at a map that changed under it. What it then still misses is left to the next one.
	coolRetries = 3
	// coolSample is one in how many frames is compressed a second time, to estimate what it saves that similar chunks lie together.
	coolSample = 16
)

// cooling is one pass over the maps that rewrites chunks into cold segments, in an order that makes them small and cheap to read: see coolorder.go.
//
// It reads and compresses without a lock. Then, under Store.meta, it looks again which of its chunks still are where it read them: only those get their new place. A chunk
// that died or moved meanwhile is just dead bytes of the new segment.
type cooling struct {
	s     *Store
	ctx   context.Context
	from  map[block.SegmentID]bool               // the segments whose chunks go; nil: all that are not cold
	pace  func(ctx context.Context, n int) error // waits until n bytes may be moved; nil: at once
	moved func(raw int64)                        // is told of raw bytes that went; may be nil

	order coolOrder
	want  []wanted    // of the batch
	where []coolPlace // of want
	ids   map[block.ChunkID]bool
	buf   []byte
	rows  rowIter

	frames                  []*packFrame
	used                    int    // of frames
	similar                 uint64 // raw bytes of chunks that were packed behind one that they are like
	saved, spent, sketching atomic.Int64
	missed                  int // chunks that got another place while their frame was made: the next pass finds them there
}

// run makes the pass. The store's cold packer is used by one pass at a time.
func (c *cooling) run() (err error) {
	c.s.coolMu.Lock()
	defer c.s.coolMu.Unlock()
	c.s.cooling.Store(&c.from)
	defer c.s.cooling.Store(nil)
	c.missed, c.ids, c.buf = 0, map[block.ChunkID]bool{}, make([]byte, 0, min(coolBatch, c.s.plan.batch))
	defer func() { err = errors.Join(err, c.rows.close()) }()
	states, regions := c.s.newestFirst()
	for region := range regions {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		found, err := c.candidates(states, region)
		if err == nil {
			err = c.take(found)
		}
		if err != nil {
			return err
		}
	}
	return c.flush()
}

// sound reports whether nothing is known of damage to a chunk.
func (c *cooling) sound(id block.ChunkID, row *chunkRow) bool {
	return !row.lost() && row.Flags&chunkDamaged == 0 && !c.s.damaged.has(id)
}

// goes reports whether a chunk is to be moved. What is damaged stays where parity may reach it one day.
func (c *cooling) goes(id block.ChunkID, row *chunkRow) bool {
	if !c.sound(id, row) {
		return false
	}
	if c.from != nil {
		return c.from[row.Segment]
	}
	seg, ok := c.s.segments.get(row.Segment)
	return ok && seg.Class != segment.Cold
}

// flush moves the chunks that were gathered.
func (c *cooling) flush() error {
	if len(c.want) == 0 {
		return c.rows.close()
	}
	defer c.clear()
	if c.pace != nil {
		if err := c.pace(c.ctx, 2*len(c.buf)); err != nil {
			return err
		}
	}
	if err := c.move(); err != nil {
		return err
	}
	c.account()
	// The iterator shows rows as they were: from here on others count.
	return errors.Join(c.rows.close(), c.ctx.Err())
}

// move reads, arranges, compresses and places the batch.
func (c *cooling) move() error {
	if err := c.read(); err != nil {
		return err
	}
	c.sketch()
	c.pack()
	if err := c.encode(); err != nil {
		return err
	}
	c.s.at(beforeCold)
	if err := c.place(); err != nil {
		return fmt.Errorf("put chunks into cold segments: %w", err)
	}
	return nil
}

// clear forgets the batch, and keeps its memory.
func (c *cooling) clear() {
	clear(c.ids)
	c.want, c.where, c.buf = c.want[:0], c.where[:0], c.buf[:0]
}

// account adds what a batch was to the figures of the store.
func (c *cooling) account() {
	raw := len(c.buf)
	c.s.cooler.change(func(st *CoolStatus) {
		st.MovedBytes += uint64(raw)
		st.SimilarBytes += c.similar
		st.SavedBytes += uint64(c.saved.Swap(0))
		st.Spent += time.Duration(c.spent.Swap(0))
		st.Sketching += time.Duration(c.sketching.Swap(0))
	})
	c.similar = 0
	if c.moved != nil {
		c.moved(int64(raw))
	}
}

// read fills the chunks. Where one cannot be read, all are tried one by one, and those that fail stay where they are.
func (c *cooling) read() error {
	err := c.s.chunks.fetch(c.ctx, slices.Clone(c.want), false) // it puts them into an order of its own
	if err == nil || c.ctx.Err() != nil {
		return err
	}
	kept, where := c.want[:0], c.where[:0]
	for i := range c.want {
		err := c.s.chunks.fetch(c.ctx, c.want[i:i+1], false)
		switch {
		case err == nil:
			kept, where = append(kept, c.want[i]), append(where, c.where[i])
		case !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrNotFound):
			return err
		}
	}
	c.want, c.where = kept, where
	return nil
}

// pack divides the chunks into frames.
func (c *cooling) pack() {
	c.used = 0
	var f *packFrame
	raw := 0
	for _, i := range c.order.arrange(c.where, !c.s.opts.SimilarOff) {
		w := &c.want[i]
		if f == nil || !segment.FrameTakes(c.s.cold.form.raw, raw, len(w.p)) || len(f.chunks) == segment.MaxFrameChunks {
			f, raw = c.frame(), 0
		}
		alike := c.order.alike(i)
		f.chunks = append(f.chunks, packChunk{Chunk: segment.Chunk{ID: w.id, Hash: c.where[i].hash, Raw: w.p}, moved: true, read: i, alike: alike})
		if alike {
			c.similar += uint64(len(w.p))
		}
		raw += len(w.p)
	}
}

func (c *cooling) frame() *packFrame {
	if c.used == len(c.frames) {
		c.frames = append(c.frames, &packFrame{})
	}
	f := c.frames[c.used]
	f.chunks = f.chunks[:0]
	c.used++
	return f
}

// parallel calls f with the numbers below n, in the given number of goroutines.
func (c *cooling) parallel(n int, f func(t *frameTools, enc *segment.Encoder, i int)) {
	var wg sync.WaitGroup
	workers := min(c.s.opts.Workers, n)
	for k := range workers {
		wg.Go(func() {
			t := c.s.chunks.tools.Get().(*frameTools)
			defer c.s.chunks.tools.Put(t)
			enc := &segment.Encoder{Effort: c.s.opts.ColdEffort}
			for i := k; i < n; i += workers {
				f(t, enc, i)
			}
		})
	}
	wg.Wait()
}

// sketch hashes the chunks, and notes what tells which are alike.
func (c *cooling) sketch() {
	c.parallel(len(c.want), func(t *frameTools, _ *segment.Encoder, i int) {
		began := time.Now()
		c.where[i].hash = t.hash.Sum(c.want[i].p)
		hashed := time.Now()
		if !c.s.opts.SimilarOff {
			c.where[i].sketch = similar.Of(c.want[i].p)
			c.sketching.Add(int64(time.Since(hashed)))
		}
		c.spent.Add(int64(time.Since(began)))
	})
}

// encode compresses the frames. Each worker has one encoder: that of zstd takes some MiB.
func (c *cooling) encode() error {
	c.parallel(c.used, func(_ *frameTools, enc *segment.Encoder, i int) {
		f := c.frames[i]
		f.enc = enc
		began := time.Now()
		f.encode(c.codec())
		c.spent.Add(int64(time.Since(began)))
		if f.err == nil && i%coolSample == 0 {
			c.saved.Add(coolSample * int64(f.saved(c.codec())))
		}
		f.enc = nil
	})
	for _, f := range c.frames[:c.used] {
		if f.err != nil {
			return f.err
		}
	}
	return nil
}

// saved is how many bytes it saves that chunks share the frame with those that they are like: what both would take apart, less what they take together.
func (f *packFrame) saved(codec segment.Codec) int {
	var parts [2][]segment.Chunk
	for i := range f.chunks {
		k := 0
		if f.chunks[i].alike {
			k = 1
		}
		parts[k] = append(parts[k], f.chunks[i].Chunk)
	}
	if len(parts[0]) == 0 || len(parts[1]) == 0 {
		return 0
	}
	apart := 0
	for _, p := range parts {
		b, err := segment.EncodeFrame(nil, p, codec, f.enc)
		if err != nil {
			return 0
		}
		apart += len(b)
	}
	return max(0, apart-len(f.out))
}

func (c *cooling) codec() segment.Codec {
	if c.s.opts.ReduceOff {
		return segment.None
	}
	return coldForm.codec
}

// place appends the frames to the cold segment and gives the chunks their new rows.
func (c *cooling) place() error {
	s := c.s
	m := s.beginMeta()
	err := c.placeFrames(m)
	if err == nil {
		err = s.cold.sync(m)
	}
	if err != nil {
		s.cold.forget()
		m.abort()
		return err
	}
	return m.commit()
}

func (c *cooling) placeFrames(m *metaBatch) error {
	for _, f := range c.frames[:c.used] {
		here := 0
		for j := range f.chunks {
			row, err := m.chunkRow(f.chunks[j].ID)
			if err != nil && !errors.Is(err, block.ErrNotFound) {
				return err
			}
			f.chunks[j].gone = err != nil || row != c.want[f.chunks[j].read].row
			switch {
			case !f.chunks[j].gone:
				here++
			case err == nil:
				c.missed++
			}
		}
		if here == 0 {
			continue
		}
		if err := c.s.cold.append(m, f); err != nil {
			return err
		}
	}
	return nil
}

// sealWarm ends the open warm segments out of which all went elsewhere, so that they can be given back.
func (s *Store) sealWarm() error {
	m := s.beginMeta()
	for _, p := range []*packer{&s.packer, &s.mover} {
		if p.w == nil {
			continue
		}
		row, err := m.segment(p.id)
		if err == nil && row.LiveChunks == 0 {
			err = p.seal(m)
		}
		if err != nil {
			s.forgetPacked()
			m.abort()
			return err
		}
	}
	return m.commit()
}
