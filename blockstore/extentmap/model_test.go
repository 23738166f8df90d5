package extentmap

import (
	"flag"
	"maps"
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

// insertion is the identity of one inserted extent, wherever its page was copied to: no two layers share a birth.
type insertion Extent

// verify reads every image byte by byte, and counts what is reachable against the rows.
func (w *world) verify() {
	insertions := make(map[insertion]bool)
	rows := make(map[string]bool)
	visit := Visitor{
		Page: func(p Page) bool {
			rows[string(PageKey(p.ID()))] = true
			p.Parts(func(id uint64, _ block.Epoch) { rows[string(PageKey(id))] = true; w.parts++ })
			for i := range p.Len() {
				if e := p.Extent(i); e.Kind == KindChunk {
					insertions[insertion(e)] = true
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
	var parts []block.Range
	w.check(w.m.Diff(w.t.Context(), a.root, b.root, block.Range{Len: block.MaxVolumeSize}, func(off, n uint64) bool {
		parts = append(parts, block.Range{Off: off, Len: n})
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
	w.verifyDiffWithin(a.root, b.root, parts)
	for from := uint64(0); ; {
		off, found, err := w.m.NextDifference(w.t.Context(), a.root, b.root, block.Range{Off: from, Len: block.MaxVolumeSize - from})
		w.check(err)
		if found != (len(parts) > 0) || found && off != parts[0].Off {
			w.t.Fatalf("next difference from %d on: %d, %v; want that of %v", from, off, found, parts)
		}
		if !found {
			break
		}
		from, parts = parts[0].End(), parts[1:]
	}
}

// verifyDiffWithin asks for a range that begins and ends near differences, and compares the answer with what is known of the whole.
func (w *world) verifyDiffWithin(a, b Root, parts []block.Range) {
	if len(parts) == 0 {
		return
	}
	first, last := parts[w.rng.IntN(len(parts))], parts[w.rng.IntN(len(parts))]
	if last.Off < first.Off {
		first, last = last, first
	}
	lo, hi := first.Off+w.rng.Uint64N(first.Len), last.Off+1+w.rng.Uint64N(last.Len)
	within := block.Range{Off: min(lo, hi), Len: max(lo, hi) - min(lo, hi)}
	var want, got []block.Range
	for _, p := range parts {
		if lo, hi := max(p.Off, within.Off), min(p.End(), within.End()); lo < hi {
			want = append(want, block.Range{Off: lo, Len: hi - lo})
		}
	}
	w.check(w.m.Diff(w.t.Context(), a, b, within, func(off, n uint64) bool {
		got = append(got, block.Range{Off: off, Len: n})
		return true
	}))
	if !slices.Equal(got, want) {
		w.t.Fatalf("differences within %v: %v, want %v", within, got, want)
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
	if w.parts == 0 {
		t.Error("no page was kept in parts")
	}
}

func TestModel(t *testing.T) {
	seeds := []uint64{1, 2, 3, 4, 5}
	if *seed != 0 {
		seeds = []uint64{*seed}
	}
	for _, s := range seeds {
		runModel(t, s, 200, openMem(t))
	}
}

func TestModelOnDisk(t *testing.T) {
	runModel(t, max(*seed, 77), 60, openDB(t, t.TempDir(), vfs.Default))
}
