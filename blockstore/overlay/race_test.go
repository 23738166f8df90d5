package overlay

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	raceWriters = 4
	raceBlocks  = 512 // in use, spread over two groups of regions
)

// racer plays an engine around one layer: writers, readers and a destager at once, with the map as a plain array of positions.
type racer struct {
	layer  *Layer
	volume sync.RWMutex // writers hold it shared across append and publish, as the engine does
	pos    atomic.Uint64
	last   [raceBlocks]atomic.Uint64 // newest record of a block whose publish has returned
	zero   [raceBlocks]atomic.Uint64 // newest record that zeroed a block, set before its publish
	base   [raceBlocks]atomic.Uint64 // the map: newest record that was destaged
}

// blockAt spreads the blocks over leaves, regions and groups.
func blockAt(i int) uint64 {
	return uint64(i%16)*(GroupRegions/8)*block.BlocksPerRegion + uint64(i/16)*17
}

// write publishes one record to one of the writer's own blocks, or, rarely, trims a group.
func (c *racer) write(rng *rand.Rand, w int) {
	c.volume.RLock()
	defer c.volume.RUnlock()
	pos := c.pos.Add(block.Size)
	i := rng.IntN(raceBlocks/raceWriters)*raceWriters + w
	switch k := rng.IntN(200); {
	case k == 0:
		group := uint64(rng.IntN(2)) * GroupRegions * block.BlocksPerRegion
		for j := range raceBlocks {
			if b := blockAt(j); b >= group && b < group+GroupRegions*block.BlocksPerRegion {
				raise(&c.zero[j], pos)
			}
		}
		c.layer.PublishZero(group, GroupRegions*block.BlocksPerRegion, pos)
		return
	case k < 20:
		raise(&c.zero[i], pos)
		c.layer.PublishZero(blockAt(i), 1, pos)
	default:
		c.layer.PublishWrite(blockAt(i), pos, []uint32{sumOf(i, pos)})
	}
	raise(&c.last[i], pos)
}

func raise(v *atomic.Uint64, pos uint64) {
	for old := v.Load(); old < pos && !v.CompareAndSwap(old, pos); old = v.Load() {
	}
}

func sumOf(i int, pos uint64) uint32 { return uint32(i)*7919 + uint32(pos>>12) }

// read looks one block up, overlay before map, and compares it with what was published before.
func (c *racer) read(rng *rand.Rand, runs []Run, sums []uint32) error {
	i := rng.IntN(raceBlocks)
	last := c.last[i].Load()
	runs, _ = c.layer.LookupInto(runs[:0], sums[:0], blockAt(i), 1)
	got := uint64(0)
	switch r := runs[0]; r.Kind {
	case Data:
		got = r.Pos
		if r.Sums[0] != sumOf(i, r.Pos) {
			return fmt.Errorf("block %d at %d has the checksum of another", i, r.Pos)
		}
	case Zero:
		got = c.zero[i].Load()
	case Absent:
		got = c.base[i].Load()
	}
	if got < last {
		return fmt.Errorf("block %d reads as of %d, kind %d, but %d was published", i, got, runs[0].Kind, last)
	}
	return nil
}

// destage does one round in the engine's order.
func (c *racer) destage(snap *RegionSnapshot) error {
	maxPos := c.pos.Load()
	c.volume.Lock()
	c.volume.Unlock() //lint:ignore SA2001 who gets the lock knows that every publish up to maxPos has returned
	for _, t := range c.layer.Tombstones(nil) {
		if t.Pos > maxPos {
			continue
		}
		for i := range raceBlocks {
			if r := blockAt(i) / block.BlocksPerRegion; r >= t.First && r < t.end() {
				raise(&c.base[i], t.Pos)
			}
		}
		c.layer.DropTombstone(t)
	}
	for _, info := range c.layer.OldestRegions(4, nil) {
		c.layer.SnapshotRegion(info.Region, maxPos, snap)
		for i := range raceBlocks {
			if blockAt(i)/block.BlocksPerRegion == info.Region {
				c.apply(snap, i)
			}
		}
		c.layer.DropRegion(snap)
	}
	if oldest := c.layer.OldestPos(); oldest <= 0 {
		return fmt.Errorf("oldest position %d", oldest)
	}
	return nil
}

// apply brings one block of a snapshot into the map.
func (c *racer) apply(snap *RegionSnapshot, i int) {
	raise(&c.base[i], max(snap.CoveredBy, snap.Zeroed))
	for _, s := range snap.Slots {
		if uint64(s.Block) == blockAt(i)%block.BlocksPerRegion {
			raise(&c.base[i], s.Pos)
		}
	}
}

// TestConcurrent runs it all at once; meant for the race detector too.
func TestConcurrent(t *testing.T) {
	c := &racer{layer: NewLayer(NewBudget(1 << 20))}
	c.pos.Store(1 << 32)
	var writers, others sync.WaitGroup
	var done atomic.Bool
	for w := range raceWriters {
		writers.Go(func() {
			for rng := rand.New(rand.NewPCG(uint64(w), 1)); c.pos.Load() < 1<<32+60_000*block.Size; {
				c.write(rng, w)
			}
		})
	}
	for r := range 2 {
		others.Go(func() {
			rng, runs, sums := rand.New(rand.NewPCG(uint64(r), 2)), make([]Run, 0, 1), make([]uint32, 0, 1)
			for !done.Load() {
				if err := c.read(rng, runs, sums); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	others.Go(func() {
		var snap RegionSnapshot
		for !done.Load() {
			if err := c.destage(&snap); err != nil {
				t.Error(err)
				return
			}
		}
	})
	writers.Wait()
	done.Store(true)
	others.Wait()
	var snap RegionSnapshot
	for range 200 {
		if err := c.destage(&snap); err != nil {
			t.Fatal(err)
		}
	}
	if !c.layer.Empty() {
		t.Fatalf("not empty: %v", c.layer.OldestRegions(10, nil))
	}
	for i := range raceBlocks {
		if got, want := c.base[i].Load(), c.last[i].Load(); got < want {
			t.Errorf("block %d was destaged as of %d, but %d was published", i, got, want)
		}
	}
	audit(t, c.layer)
}
