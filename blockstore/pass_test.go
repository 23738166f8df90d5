package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestLoadMeetsAMovedMap reads a region to be cut anew while another group of the same map is committed, which deletes the nodes of the old map: the region is read below the new one. Naive: a pass reads
// all of its regions below one root, as a batch did that was committed at its end only.
func TestLoadMeetsAMovedMap(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.DestageAfter = time.Hour
	s := openTest(t, opts)
	d := createTest(t, s, "v", 2*block.RegionSize)
	rng := rand.New(rand.NewPCG(8, 9))
	want := guestData(rng, 2*block.RegionSize)
	writeTest(t, d, 0, want)
	settleTest(t, s)
	n := s.volumes[1].head.Load()
	old := n.effectiveRoot()
	var batch []block.Write
	for at := 0; at < len(want); at += 2 * block.Size {
		want[at]++
		batch = append(batch, block.Write{Off: uint64(at), Data: want[at : at+block.Size]})
	}
	if err := d.Write(context.Background(), batch, false); err != nil {
		t.Fatal(err)
	}
	pin := s.log.Pin()
	defer pin.Release()
	w := &regionWork{n: n, buf: make([]byte, block.RegionSize), hashers: []*dedup.Hasher{dedup.NewHasher(s.domain)}}
	n.layer.SnapshotRegion(1, ^uint64(0), &w.snap)
	settleTest(t, s)
	now := n.effectiveRoot()
	s.maps = extentmap.NewMap(s.db, extentmap.NewCache(1<<20)) // which has not seen the old map
	if err := w.loadFrom(s, old); !errors.Is(err, block.ErrNotFound) {
		t.Fatalf("read below the old root: %v", err)
	}

	s.publishing.Lock()
	n.root.Store(&old)
	load := start(func() error { return w.load(s) })
	select {
	case err := <-load:
		t.Fatalf("it did not wait for the new root: %v", err)
	case <-time.After(50 * time.Millisecond): // the longer, the surer that it has met the old one
	}
	n.root.Store(&now)
	s.publishing.Unlock()
	if err := <-load; err != nil {
		t.Fatal(err)
	}
	if len(w.pieces) != 1 || w.pieces[0].n != block.RegionSize || !bytes.Equal(w.buf, want[block.RegionSize:]) {
		t.Fatalf("%d pieces, and not what the region holds", len(w.pieces))
	}
}

// TestStreamedRegionGoesDownEarly: a region of which every block was written once is not kept waiting for rewrites; one that is being rewritten is.
func TestStreamedRegionGoesDownEarly(t *testing.T) {
	s := openTest(t, smallLog(t))
	s.space.fill.Store(fillDestage)
	k := newHotSet(s)
	info := overlay.RegionInfo{Region: 1, Blocks: block.BlocksPerRegion, Writes: block.BlocksPerRegion, OldestPos: 5 << 32, NewestPos: 5<<32 + 4096}
	s.destager.times = append(s.destager.times, timeMark{time.Now(), 1})
	judge := func(info overlay.RegionInfo) verdict {
		return k.judge(candidate{&node{id: 7}, info}, journal.Pos(2)<<32, journal.Pos(9)<<32, time.Now())
	}
	if v := judge(info); v != goDown {
		t.Errorf("streamed: verdict %d", v)
	}
	info.Region, info.Writes = 2, info.Writes+1
	if v := judge(info); v != wait {
		t.Errorf("rewritten: verdict %d", v)
	}
	info.Region, info.Blocks, info.Writes = 3, info.Blocks-1, uint32(info.Blocks)-1
	if v := judge(info); v != wait {
		t.Errorf("not yet whole: verdict %d", v)
	}
	s.space.fill.Store(fillDestage - 1)
	info.Region, info.Blocks, info.Writes = 4, block.BlocksPerRegion, block.BlocksPerRegion
	if v := judge(info); v == goDown && k.s.opts.DestageAfter > time.Minute {
		t.Errorf("streamed, with the log all but empty: verdict %d", v)
	}
}
