package extentmap

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// world is a small engine: it applies the birth rule to what updates report, with real rows.
type world struct {
	t       testing.TB
	rng     *rand.Rand
	db      *pebble.DB
	m       *Map
	ids     counter
	seq     block.Epoch
	chunks  block.ChunkID
	live    map[block.ChunkID]bool
	volumes []*volume

	parts int // that were met

	batch *pebble.Batch
	refs  Refs
	dead  *Deadlist
	vol   *volume // of the running update
}

func newWorld(t testing.TB, seed uint64, db *pebble.DB) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), db: db, live: make(map[block.ChunkID]bool)}
	w.m = NewMap(db, NewCache(w.rng.Int64N(64<<10)))
	w.dead = NewDeadlist(w.ids.next)
	w.seq = 1
	w.volumes = []*volume{{id: 1, birth: 1, head: image{bytes: make(model, len(windows))}}}
	return w
}

func (w *world) check(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (v *volume) newest() block.Epoch {
	if len(v.snaps) > 0 {
		return v.snaps[len(v.snaps)-1].epoch
	}
	return v.origin
}

// fate applies the birth rule: free at once, put on the newest snapshot's deadlist, or forget.
func (w *world) fate(v *volume, birth block.Epoch, d Dead) {
	switch {
	case birth > v.newest() && d.Kind == DeadSubtree:
		s := Subtree{ID: d.ID, Level: d.Level, Region: d.Region, Birth: birth}
		w.check(w.batch.Set(JobKey(v.id, w.ids.next()), EncodeJob(Job{Kind: JobSubtree, Subtree: s, Snapshot: v.newest(), Previous: v.origin}), nil))
	case birth > v.newest():
		w.free(d)
	case birth > v.origin:
		w.dead.Add(v.id, v.newest(), birth, d)
	}
}

func (w *world) free(d Dead) {
	switch d.Kind {
	case DeadPage:
		w.check(w.batch.Delete(PageKey(d.ID), nil))
	case DeadNode:
		w.check(w.batch.Delete(NodeKey(d.ID), nil))
	case DeadChunk:
		w.refs.Add(block.ChunkID(d.ID), -1)
	}
}

func (w *world) Born(c block.ChunkID) { w.refs.Add(c, 1) }
func (w *world) Killed(e Extent)      { w.fate(w.vol, e.Birth, Dead{Kind: DeadChunk, ID: uint64(e.Chunk)}) }
func (w *world) KilledPage(id uint64, birth block.Epoch) {
	w.fate(w.vol, birth, Dead{Kind: DeadPage, ID: id})
}
func (w *world) KilledNode(id uint64, birth block.Epoch) {
	w.fate(w.vol, birth, Dead{Kind: DeadNode, ID: id})
}
func (w *world) Subtree(s Subtree) {
	w.fate(w.vol, s.Birth, Dead{Kind: DeadSubtree, ID: s.ID, Level: s.Level, Region: s.Region})
}

// begin and commit frame one batch.
func (w *world) begin(v *volume) { w.batch, w.vol = w.db.NewIndexedBatch(), v }

func (w *world) commit() {
	w.check(w.refs.Resolve(w.db, w.batch, func(c block.ChunkID, _, after uint64) error {
		if after != 0 {
			return nil
		}
		if !w.live[c] {
			return fmt.Errorf("chunk %d fell to 0 twice", c)
		}
		delete(w.live, c)
		return nil
	}))
	w.check(w.dead.Flush(w.batch))
	w.check(w.batch.Commit(pebble.NoSync))
}

// change runs one to four edits of a head in one batch, at times as two updates, of which the second reads what the first has not yet committed.
func (w *world) change(v *volume) {
	w.begin(v)
	for range 1 + w.rng.IntN(2) {
		u := NewUpdate(NewMap(w.batch, w.m.cache), w.batch, v.head.root, v.birth, w.ids.next, w)
		if w.rng.IntN(8) > 0 { // else all small pages become one row again
			u.SmallParts()
			u.shape.share += w.rng.IntN(3)
		}
		for range 1 + w.rng.IntN(4) {
			if w.rng.IntN(4) == 0 {
				w.detach(u, v.head.bytes)
			} else {
				w.replace(u, v.head.bytes)
			}
		}
		var err error
		v.head.root, err = u.Finish()
		w.check(err)
	}
	w.commit()
}

func (w *world) replace(u *Update, bytes model) {
	base := windows[w.rng.IntN(len(windows))]
	off := base + w.rng.Uint64N(windowBytes)
	end := min(off+1+w.rng.Uint64N(40), base+windowBytes)
	end = min(end, (regionOf(off)+1)<<regionBits)
	bytes.set(off, end, func(uint64) cell { return cell{} })
	var with []Extent
	for at := off; at < end; {
		n := min(1+w.rng.Uint64N(16), end-at)
		if e, ok := w.extent(at, uint32(n)); ok {
			with = append(with, e)
			bytes.set(at, at+n, func(p uint64) cell { return cellOf(e, p) })
		}
		at += n
	}
	w.check(u.Replace(off, end-off, with))
}

// extent makes an extent of a random kind, or a hole. Chunks are new ones or hits.
func (w *world) extent(off uint64, n uint32) (Extent, bool) {
	e := Extent{Off: off, Len: n, Birth: 99}
	switch k := w.rng.IntN(12); {
	case k == 0:
		return e, false
	case k == 1:
		e.Kind = KindZero
	case k == 2:
		e.Kind = KindDamaged
	case k == 3:
		e = External(off, n, 1+w.rng.Uint64N(3), w.rng.Uint64N(1000))
	case k < 8 && len(w.live) > 0:
		hits := slices.Sorted(maps.Keys(w.live))
		e = chunkAt(off, n, hits[w.rng.IntN(len(hits))])
	default:
		w.chunks++
		w.live[w.chunks] = true
		w.refs.New(w.chunks)
		e = chunkAt(off, n, w.chunks)
		e.ChunkOff = uint32(w.rng.IntN(9))
	}
	return e, true
}

func cellOf(e Extent, at uint64) cell {
	c := cell{kind: e.Kind}
	switch e.Kind {
	case KindChunk:
		c.chunk, c.off = e.Chunk, uint64(e.ChunkOff)+at-e.Off
	case KindExternal:
		source, from := e.Source()
		c.chunk, c.off = block.ChunkID(source), from+at-e.Off
	}
	return c
}

// detach cuts a range between two bytes of windows, or to the end of the volume.
func (w *world) detach(u *Update, bytes model) {
	at := func() uint64 { return windows[w.rng.IntN(len(windows))] + w.rng.Uint64N(windowBytes+1) }
	lo, hi := at(), at()
	if w.rng.IntN(8) == 0 {
		hi = block.MaxVolumeSize
	}
	if w.rng.IntN(8) == 0 {
		lo, hi = lo&^(block.RegionSize-1), hi&^(block.RegionSize-1)
	}
	lo, hi = min(lo, hi), max(lo, hi)
	bytes.set(lo, hi, func(uint64) cell { return cell{} })
	w.check(u.Detach(lo, hi-lo))
}

func (w *world) snapshot(v *volume) {
	w.seq++
	v.snaps = append(v.snaps, image{root: v.head.root, epoch: w.seq, bytes: v.head.bytes.clone()})
	w.seq++
	v.birth = w.seq
}

// clone starts a volume from a snapshot, which is kept for good.
func (w *world) clone(v *volume) {
	from := &v.snaps[w.rng.IntN(len(v.snaps))]
	from.keep = true
	w.seq++
	c := &volume{id: block.VolumeID(len(w.volumes) + 1), origin: from.epoch, birth: w.seq}
	c.head = image{root: from.root, bytes: from.bytes.clone()}
	w.volumes = append(w.volumes, c)
}

// deleteSnapshot frees D[s] above the previous snapshot, and hands the rest down.
func (w *world) deleteSnapshot(v *volume, i int) {
	w.runJobs(v, 1<<30)
	s, previous := v.snaps[i].epoch, v.origin
	if i > 0 {
		previous = v.snaps[i-1].epoch
	}
	w.begin(v)
	v.snaps = slices.Delete(v.snaps, i, i+1)
	w.check(ScanDead(w.db, v.id, s, previous, s, func(k DeadKey, dead []Dead) (bool, error) {
		for _, d := range dead {
			if d.Kind == DeadSubtree {
				w.freeSubtree(v, Subtree{ID: d.ID, Level: d.Level, Region: d.Region, Birth: k.Birth}, previous, previous, 0, 1<<30)
			} else {
				w.free(d)
			}
		}
		return true, w.batch.Delete(k.Bytes(), nil)
	}))
	for {
		moved, err := MoveDead(w.batch, w.batch, v.id, s, previous, previous, 3)
		w.check(err)
		if moved < 3 {
			break
		}
	}
	w.commit()
}

// freeSubtree frees what is in a subtree and was born after keep, hands what was born in (origin, keep] to the deadlist of keep, and takes at most steps steps.
func (w *world) freeSubtree(v *volume, s Subtree, keep, origin block.Epoch, from Cursor, steps int) (next Cursor, done bool) {
	fate := func(birth block.Epoch, d Dead) {
		if birth > keep {
			w.free(d)
		} else if birth > v.origin {
			w.dead.Add(v.id, keep, birth, d)
		}
	}
	next, done, err := w.m.Walk(w.t.Context(), s, keep, from, Visitor{
		Page: func(p Page) bool {
			for i := range p.Len() {
				if e := p.Extent(i); e.Kind == KindChunk {
					fate(e.Birth, Dead{Kind: DeadChunk, ID: uint64(e.Chunk)})
				}
			}
			p.Parts(func(id uint64, birth block.Epoch) { fate(birth, Dead{Kind: DeadPage, ID: id}) })
			w.free(Dead{Kind: DeadPage, ID: p.ID()})
			steps--
			return steps > 0
		},
		Node: func(s Subtree) bool {
			w.free(Dead{Kind: DeadNode, ID: s.ID})
			steps--
			return steps > 0
		},
		Older: func(s Subtree) bool {
			fate(s.Birth, Dead{Kind: DeadSubtree, ID: s.ID, Level: s.Level, Region: s.Region})
			steps--
			return steps > 0
		},
	})
	w.check(err)
	return next, done
}

// runJobs takes at most steps steps of each job of a volume.
func (w *world) runJobs(v *volume, steps int) {
	w.begin(v)
	w.check(ScanJobs(w.db, v.id, func(id block.VolumeID, n uint64, j Job) (bool, error) {
		next, done := w.freeSubtree(v, j.Subtree, j.Snapshot, j.Previous, j.Cursor, steps)
		if done {
			return true, w.batch.Delete(JobKey(id, n), nil)
		}
		j.Cursor = next
		return true, w.batch.Set(JobKey(id, n), EncodeJob(j), nil)
	}))
	w.commit()
}

func (w *world) step() {
	v := w.volumes[w.rng.IntN(len(w.volumes))]
	switch k := w.rng.IntN(20); {
	case k < 12:
		w.change(v)
	case k < 15 && len(v.snaps) < 5:
		w.snapshot(v)
	case k < 17 && len(v.snaps) > 0:
		if i := w.rng.IntN(len(v.snaps)); !v.snaps[i].keep {
			w.deleteSnapshot(v, i)
		}
	case k == 17 && len(v.snaps) > 0 && len(w.volumes) < 4:
		w.clone(v)
	default:
		w.runJobs(v, 1+w.rng.IntN(3))
	}
}
