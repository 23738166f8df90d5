package extentmap

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var seed = flag.Uint64("seed", 0, "seed of the model test; 0 runs a fixed set")

// The model keeps bytes in a few short windows, some at the borders of regions and of nodes, so that a plain slice can hold a volume of every height.
const windowBytes = 96

var windows = []uint64{
	0,
	1<<regionBits - windowBytes/2,
	255<<regionBits + 77,
	256<<regionBits - windowBytes/2,
	65536<<regionBits - windowBytes/2,
	65537<<regionBits + 1000,
	(1<<32)<<regionBits - windowBytes/2,
}

// cell is what one byte of a volume holds; the zero cell is a hole.
type cell struct {
	kind  Kind
	chunk block.ChunkID
	off   uint64
}

type model [][windowBytes]cell

func (m model) clone() model { return slices.Clone(m) }

// set changes the part of [off, end) that lies in windows.
func (m model) set(off, end uint64, c func(at uint64) cell) {
	for w, base := range windows {
		for i := range m[w] {
			if at := base + uint64(i); at >= off && at < end {
				m[w][i] = c(at)
			}
		}
	}
}

// image is a root and what it must read as.
type image struct {
	root  Root
	epoch block.Epoch
	bytes model
	keep  bool // a clone began here
}

// volume is a head over snapshots, oldest first.
type volume struct {
	id     block.VolumeID
	origin block.Epoch
	head   image
	birth  block.Epoch // of the head's layer
	snaps  []image
}

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

// insertion is the identity of one inserted extent, wherever its page was copied to.
type insertion struct {
	Extent
}

// verify reads every image byte by byte, and counts what is reachable against the rows.
func (w *world) verify() {
	insertions := make(map[insertion]bool)
	rows := make(map[string]bool)
	visit := Visitor{
		Page: func(p Page) bool {
			rows[string(PageKey(p.ID()))] = true
			for i := range p.Len() {
				if e := p.Extent(i); e.Kind == KindChunk {
					insertions[insertion{e}] = true
				}
			}
			return true
		},
		Node: func(s Subtree) bool { rows[string(NodeKey(s.ID))] = true; return true },
	}
	walk := func(s Subtree, min block.Epoch, from Cursor) {
		_, done, err := w.m.Walk(w.t.Context(), s, min, from, visit)
		w.check(err)
		if !done {
			w.t.Fatal("walk stopped")
		}
	}
	for _, v := range w.volumes {
		for _, img := range append(v.snaps[:len(v.snaps):len(v.snaps)], v.head) {
			w.verifyImage(img)
			walk(img.root.Subtree(), 0, 0)
		}
	}
	w.check(ScanJobs(w.db, 0, func(_ block.VolumeID, _ uint64, j Job) (bool, error) {
		walk(j.Subtree, j.Snapshot, j.Cursor)
		return true, nil
	}))
	w.verifyRefs(insertions)
	w.verifyRows(rows)
}

func (w *world) verifyImage(img image) {
	w.t.Helper()
	for i, base := range windows {
		var got [windowBytes]cell
		next := base
		err := w.m.Lookup(img.root, base, windowBytes, func(e Extent) bool {
			if e.Off < next || e.End() > base+windowBytes || e.Len == 0 {
				w.t.Fatalf("extent %+v after %d", e, next)
			}
			for at := e.Off; at < e.End(); at++ {
				got[at-base] = cellOf(e, at)
			}
			next = e.End()
			return true
		})
		w.check(err)
		if got != img.bytes[i] {
			w.t.Fatalf("root %+v epoch %d at %d reads %v, want %v", img.root, img.epoch, base, got, img.bytes[i])
		}
	}
}

func (w *world) verifyRefs(insertions map[insertion]bool) {
	w.t.Helper()
	want := make(map[block.ChunkID]uint64)
	for i := range insertions {
		want[i.Chunk]++
	}
	got := make(map[block.ChunkID]uint64)
	for c := range w.live {
		n, err := ReadRef(w.db, c)
		w.check(err)
		got[c] = n
	}
	if !reflect.DeepEqual(got, want) {
		w.t.Fatalf("reference counts %v, want %v", got, want)
	}
}

// verifyRows compares the pages and nodes that exist with those that are reachable: nothing leaks, nothing is missing.
func (w *world) verifyRows(want map[string]bool) {
	w.t.Helper()
	got := make(map[string]bool)
	for _, prefix := range []byte{prefixPage, prefixNode} {
		w.check(scan(w.db, []byte{prefix}, []byte{prefix + 1}, func(key, _ []byte) (bool, error) {
			got[string(key)] = true
			return true, nil
		}))
	}
	if !maps.Equal(got, want) {
		w.t.Fatalf("rows %q, want %q", slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
	}
}

// verifyDiff compares Diff with the models of two random images.
func (w *world) verifyDiff() {
	var all []image
	for _, v := range w.volumes {
		all = append(append(all, v.snaps...), v.head)
	}
	a, b := all[w.rng.IntN(len(all))], all[w.rng.IntN(len(all))]
	got, end := make(model, len(windows)), uint64(0)
	w.check(w.m.Diff(w.t.Context(), a.root, b.root, func(off, n uint64) bool {
		if off <= end && end > 0 || n == 0 {
			w.t.Fatalf("range %d+%d after %d", off, n, end)
		}
		end = off + n
		got.set(off, end, func(uint64) cell { return cell{kind: 1} })
		return true
	}))
	for i := range windows {
		for k := range windowBytes {
			if differ := a.bytes[i][k] != b.bytes[i][k]; differ != (got[i][k].kind == 1) {
				w.t.Fatalf("byte %d of window %d: differs %v, but Diff says otherwise", k, i, differ)
			}
		}
	}
}

func runModel(t *testing.T, seed uint64, steps int, db *pebble.DB) {
	defer func() {
		if t.Failed() {
			t.Logf("repeat with: go test ./blockstore/extentmap -run %s -seed %d", t.Name(), seed)
		}
	}()
	w := newWorld(t, seed, db)
	for range steps {
		w.step()
		w.verify()
		w.verifyDiff()
	}
	for _, v := range w.volumes {
		w.runJobs(v, 1<<30)
		for i := len(v.snaps) - 1; i >= 0; i-- {
			if !v.snaps[i].keep {
				w.deleteSnapshot(v, i)
			}
		}
	}
	w.verify()
}

func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5, 6, 7, 8}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		runModel(t, s, 250, openMem(t))
	}
}

func TestModelOnDisk(t *testing.T) {
	runModel(t, max(*seed, 77), 60, openDB(t, t.TempDir(), vfs.Default))
}
