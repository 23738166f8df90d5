package overlay

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// modelRegions is the size of the modelled volume: three groups, so that range tombstones of several sizes overlap.
	modelRegions = 3 * GroupRegions
	modelBlocks  = modelRegions * block.BlocksPerRegion
)

// op is one published record.
type op struct {
	b, n, pos uint64
	sums      []uint32 // nil: zero
}

// model is the truth as a plain array: the newest record of each block that was not destaged since.
type model struct {
	t     *testing.T
	rng   *rand.Rand
	layer *Layer
	top   []slot
	pos   uint64   // next position of the log; all below are published
	hot   []uint64 // regions that get most of the traffic
}

func newModel(t *testing.T, seed uint64) *model {
	m := &model{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), layer: NewLayer(NewBudget(1 << 30)),
		top: make([]slot, modelBlocks), pos: 1<<32 | 4096,
	}
	for range 6 {
		m.hot = append(m.hot, m.rng.Uint64N(modelRegions))
	}
	return m
}

// next draws a record at the end of the log.
func (m *model) next() op {
	region := m.hot[m.rng.IntN(len(m.hot))]
	if m.rng.IntN(10) == 0 {
		region = m.rng.Uint64N(modelRegions)
	}
	o := op{b: region*block.BlocksPerRegion + m.rng.Uint64N(512), pos: m.pos}
	write := false
	switch kind := m.rng.IntN(100); {
	case kind < 70:
		write = true
		o.n = 1 + m.rng.Uint64N(1<<m.rng.IntN(9))
	case kind < 85:
		o.n = 1 + m.rng.Uint64N(300)
	case kind < 96:
		o.n = 1 + m.rng.Uint64N(3*block.BlocksPerRegion)
	default:
		first := m.rng.Uint64N(3) * GroupRegions * block.BlocksPerRegion
		o.b = first - min(first, m.rng.Uint64N(300))
		o.n = GroupRegions*block.BlocksPerRegion*(1+m.rng.Uint64N(2)) + m.rng.Uint64N(300)
	}
	o.n = min(o.n, modelBlocks-o.b)
	if write {
		o.sums = make([]uint32, o.n)
		for i := range o.sums {
			o.sums[i] = m.rng.Uint32()
		}
		m.pos += o.n * block.Size
	}
	m.pos += block.Size
	if m.rng.IntN(50) == 0 {
		m.pos = (m.pos>>32 + 1) << 32
	}
	return o
}

// batch publishes up to limit records in another order than the log's.
func (m *model) batch(limit int) {
	ops := make([]op, 1+m.rng.IntN(limit))
	for i := range ops {
		ops[i] = m.next()
	}
	m.rng.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	for _, o := range ops {
		m.publish(o)
	}
}

func (m *model) publish(o op) {
	if o.sums != nil {
		m.layer.PublishWrite(o.b, o.pos, o.sums)
	} else {
		m.layer.PublishZero(o.b, o.n, o.pos)
	}
	for i := range o.n {
		s := slot{pos: o.pos, kind: Zero}
		if o.sums != nil {
			s = slot{pos: o.pos + i*block.Size, sum: o.sums[i], kind: Data}
		}
		if m.top[o.b+i].pos < s.pos {
			m.top[o.b+i] = s
		}
	}
}

// check compares n blocks from b on, and that runs are gapless and maximal.
func (m *model) check(b, n uint64) {
	m.t.Helper()
	at, last := b, Run{}
	m.layer.Lookup(b, n, func(r Run) {
		if r.Block != at || r.N == 0 {
			m.t.Fatalf("run %+v where block %d was next", r, at)
		}
		if at != b && r.Kind == last.Kind && (r.Kind != Data || last.Pos+last.N*block.Size == r.Pos) {
			m.t.Fatalf("runs %+v and %+v are one", last, r)
		}
		if r.Kind == Data && uint64(len(r.Sums)) != r.N {
			m.t.Fatalf("run of %d blocks has %d sums", r.N, len(r.Sums))
		}
		for i := range r.N {
			want := m.top[r.Block+i]
			got := slot{pos: want.pos, kind: r.Kind} // only data tells its position
			if r.Kind == Data {
				got.pos, got.sum = r.Pos+i*block.Size, r.Sums[i]
			}
			if got != want {
				m.t.Fatalf("block %d of region %d: got %+v, want %+v", (r.Block+i)%block.BlocksPerRegion, (r.Block+i)/block.BlocksPerRegion, got, want)
			}
		}
		at, last = at+r.N, r
	})
	if at != b+n {
		m.t.Fatalf("lookup ended at block %d, not %d", at, b+n)
	}
}

// checkHot compares the busy regions.
func (m *model) checkHot() {
	m.t.Helper()
	for _, region := range m.hot {
		first := region * block.BlocksPerRegion
		m.check(first, 1100)
		m.check(first+m.rng.Uint64N(block.BlocksPerRegion), 1+m.rng.Uint64N(min(9000, modelBlocks-first-block.BlocksPerRegion+1)))
	}
}

// checkAll compares every block, the count and the oldest position, which must never exceed the truth.
func (m *model) checkAll() {
	m.t.Helper()
	want, blocks := NoPos, int64(0)
	for _, s := range m.top {
		if s.kind != Absent {
			want = min(want, s.pos)
		}
		if s.kind == Data {
			blocks++
		}
	}
	if got := m.layer.OldestPos(); got > want {
		m.t.Fatalf("oldest position %d, but %d is live", got, want)
	}
	if got := m.layer.Blocks(); got != blocks {
		m.t.Fatalf("%d blocks, want %d", got, blocks)
	}
	m.check(0, modelBlocks)
	audit(m.t, m.layer)
	touched := make([]bool, modelRegions)
	for _, r := range m.layer.Touched(nil) {
		for region := r.Off / block.RegionSize; region < r.End()/block.RegionSize; region++ {
			touched[region] = true
		}
	}
	for b, s := range m.top {
		if s.kind != Absent && !touched[b/block.BlocksPerRegion] {
			m.t.Fatalf("region %d is not touched and has block %d", b/block.BlocksPerRegion, b)
		}
	}
}

// TestModelPublish publishes in shuffled order and compares every look.
func TestModelPublish(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed)
			for i := range 60 {
				m.batch(12)
				m.checkHot()
				audit(t, m.layer)
				if i%20 == 19 {
					m.checkAll()
				}
			}
			m.layer.Release()
			clear(m.top)
			m.publish(op{b: 7, n: 1, pos: m.pos, sums: []uint32{1}}) // too late: must be ignored
			clear(m.top)
			m.checkAll()
			if used := m.layer.account.budget.Used(); used != 0 || m.layer.Bytes() != 0 {
				t.Fatalf("%d bytes booked after release", used)
			}
		})
	}
}

// TestModelDestage publishes between snapshot and drop, under every position to destage up to. A drop that took what is there instead of
// what the snapshot holds would lose the newer records here.
func TestModelDestage(t *testing.T) {
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			m := newModel(t, seed+100)
			for i := range 60 {
				maxPos := m.pos // everything below is published
				m.batch(6)
				if m.rng.IntN(3) == 0 {
					maxPos = m.pos
				}
				m.destage(maxPos, true)
				m.checkHot()
				audit(t, m.layer)
				if i%20 == 19 {
					m.checkAll()
				}
			}
			for i := 0; !m.layer.Empty(); i++ {
				if i > 4*modelRegions {
					t.Fatal("the layer does not get empty")
				}
				m.destage(m.pos, false)
			}
			m.checkAll()
			if got := m.layer.OldestPos(); got != NoPos {
				t.Fatalf("empty layer has oldest position %d", got)
			}
		})
	}
}

// destage applies range tombstones up to maxPos, then destages a few regions, as the engine does. If busy, records come in at each gap.
func (m *model) destage(maxPos uint64, busy bool) {
	m.t.Helper()
	gap := func() {
		if busy && m.rng.IntN(2) == 0 {
			m.batch(3)
		}
	}
	for _, tomb := range m.layer.Tombstones(nil) {
		if tomb.Pos > maxPos || busy && m.rng.IntN(4) == 0 {
			continue // so that a region's drop meets a tombstone that is still there
		}
		gap()
		m.layer.DropTombstone(tomb)
		for b := tomb.First * block.BlocksPerRegion; b < tomb.end()*block.BlocksPerRegion; b++ {
			if m.top[b].pos == tomb.Pos {
				m.top[b] = slot{}
			}
		}
	}
	var snap RegionSnapshot
	for _, info := range m.layer.OldestRegions(1+m.rng.IntN(6), nil) {
		m.layer.SnapshotRegion(info.Region, maxPos, &snap)
		m.checkSnapshot(&snap, maxPos)
		was := append([]slot(nil), m.region(info.Region)...)
		gap()
		if !m.layer.DropRegion(&snap) {
			if !busy {
				m.t.Fatalf("drop of region %d refused", info.Region)
			}
			continue
		}
		for i, s := range m.region(info.Region) {
			if s == was[i] && s.pos <= maxPos && s.pos != snap.CoveredBy {
				m.region(info.Region)[i] = slot{}
			}
		}
		m.check(info.Region*block.BlocksPerRegion, block.BlocksPerRegion)
	}
}

// region returns the blocks of one region.
func (m *model) region(region uint64) []slot {
	return m.top[region*block.BlocksPerRegion:][:block.BlocksPerRegion]
}

// checkSnapshot compares a snapshot with the truth at or below maxPos.
func (m *model) checkSnapshot(snap *RegionSnapshot, maxPos uint64) {
	m.t.Helper()
	slots, data := snap.Slots, 0
	for i, want := range m.region(snap.Region) {
		var got slot
		if len(slots) > 0 && int(slots[0].Block) == i {
			got = slot{pos: slots[0].Pos, sum: slots[0].Sum, kind: slots[0].Kind}
			slots = slots[1:]
		} else if snap.Void() {
			got = slot{pos: max(snap.CoveredBy, snap.Zeroed), kind: Zero}
		}
		if got.kind == Data {
			data++
		}
		if want.pos > maxPos {
			// A tombstone shows through below a slot that is too new to be copied; a slot must not.
			if got.kind == Data || got.pos > maxPos {
				m.t.Fatalf("block %d of region %d: %+v copied, but %+v is newer", i, snap.Region, got, want)
			}
			continue
		}
		if got != want {
			m.t.Fatalf("block %d of region %d: %+v copied, want %+v", i, snap.Region, got, want)
		}
	}
	if len(slots) != 0 || data != snap.Data {
		m.t.Fatalf("%d slots left over, %d data blocks counted, %d seen", len(slots), snap.Data, data)
	}
}
