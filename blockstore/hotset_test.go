package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// smallLog are the options of a store whose log of 64 MiB fills within a test, and that destages nothing for its age.
func smallLog(t *testing.T) Options {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes, opts.LogFileBytes, opts.MemoryBytes = 64<<20, 2<<20, 64<<20
	opts.DestageAfter = time.Hour
	return opts
}

// What the set takes for the heat of a region is what it is: random writes at known rates, seen for the first time and later.
func TestHeatIsMeasured(t *testing.T) {
	s := openTest(t, smallLog(t))
	round := s.opts.LogCapBytes
	for _, x := range []float64{0.1, 0.5, 1, 3, 10} {
		k := newHotSet(s)
		rng := rand.New(rand.NewPCG(1, uint64(x*10)))
		there := make(map[int]bool)
		writes := 0
		write := func(part float64) candidate { // what comes in that part of a round
			for range int(x * part * block.BlocksPerRegion) {
				there[rng.IntN(block.BlocksPerRegion)] = true
				writes++
			}
			return candidate{&node{id: 7}, overlay.RegionInfo{Region: 1, Blocks: len(there), Writes: uint32(writes), OldestPos: 4096}}
		}
		at := func(part float64) journal.Pos {
			bytes := int64(part*float64(round)) + 4096
			return journal.Pos(bytes/s.opts.LogFileBytes)<<32 | journal.Pos(bytes%s.opts.LogFileBytes)
		}
		// A region comes to the old end when the log has gone round once.
		c := write(1)
		first := k.look(c, at(1), time.Now()).x
		for part := 1.1; part < 2; part += 0.1 {
			c = write(0.1)
			k.look(c, at(part), time.Now())
		}
		later := k.look(c, at(1.95), time.Now()).x
		t.Logf("x %g: first %.2f, later %.2f", x, first, later)
		if first < x*0.6 || first > x*1.6 {
			t.Errorf("rewritten %g times a round, but taken for %g at first sight", x, first)
		}
		if later < x*0.8 || later > x*1.25 {
			t.Errorf("rewritten %g times a round, but taken for %g later", x, later)
		}
	}
}

// A region that was trimmed and written anew counts its writes from 0. It is as cold as any that was written once.
func TestTrimmedRegionIsNotHot(t *testing.T) {
	s := openTest(t, smallLog(t))
	k := newHotSet(s)
	look := func(writes uint32, end journal.Pos) float64 {
		return k.look(candidate{&node{id: 7}, overlay.RegionInfo{Region: 1, Blocks: 1000, Writes: writes, OldestPos: 4096}}, end, time.Now()).x
	}
	look(5000, 8<<32)
	before := look(5000, 16<<32)
	if x := look(1000, 24<<32); x > before {
		t.Errorf("rewritten %g times a round before the trim and %g after it, without another write", before, x)
	}
}

// Kept regions that never come to the log's old end again, since they were trimmed or their volume is gone, give their room to others.
func TestKeptRegionsThatGoGiveTheirRoom(t *testing.T) {
	s := openTest(t, smallLog(t))
	r := newRelogger(s)
	k := &r.keep
	at := func(rounds int64) journal.Pos {
		return journal.Pos(rounds*s.opts.LogCapBytes/s.opts.LogFileBytes) << 32
	}
	for region := range uint64(4) {
		h := k.look(candidate{&node{id: 7}, overlay.RegionInfo{Region: region, Blocks: 100, Writes: 1000}}, at(1), time.Now())
		if !k.admit(h, 100) {
			t.Fatalf("region %d is not kept", region)
		}
	}
	k.goRound(at(2))
	if k.kept != 400 {
		t.Errorf("%d blocks are kept after a round, want 400", k.kept)
	}
	k.goRound(at(4))
	if k.kept != 0 || len(k.known) != 0 {
		t.Errorf("%d blocks of %d regions that nobody has are kept", k.kept, len(k.known))
	}
}

// Random writes over more than the log may keep: a part stays, the same one all the time, and the rest goes down once a round. When nobody writes any more, all of it goes down.
func TestKeptRegionsCoolDown(t *testing.T) {
	opts := smallLog(t)
	opts.quietAfter = 300 * time.Millisecond
	s := openTest(t, opts)
	const size = 64 << 20
	d := createTest(t, s, "v", size)
	rng := rand.New(rand.NewPCG(5, 6))
	want := make([]byte, size)
	ctx := context.Background()
	const writes = 60_000
	for n := range writes {
		at := rng.IntN(size/block.Size) * block.Size
		for i := range 16 {
			want[at+rng.IntN(block.Size)] = byte(n + i)
		}
		if err := d.Write(ctx, []block.Write{{Off: uint64(at), Data: want[at : at+block.Size]}}, false); err != nil {
			t.Fatal(err)
		}
	}
	moved := s.destager.relog.moved.Load()
	t.Logf("%d blocks moved of %d written, %d KiB in the log alone", moved, writes, s.undestaged()>>10)
	if moved == 0 {
		t.Error("nothing was moved: the test does not meet what it is for")
	}
	if moved > 3*writes {
		t.Error("more was moved than destage would have cost")
	}
	deadline := time.Now().Add(4 * time.Minute)
	for s.log.Usage().Live*1000/s.opts.LogCapBytes >= fillDestage {
		if time.Now().After(deadline) {
			t.Fatalf("nobody writes any more, and %d KiB stay in the log", s.undestaged()>>10)
		}
		time.Sleep(10 * time.Millisecond)
	}
	got := make([]byte, size)
	if _, err := d.ReadAt(ctx, got, 0, nil); err != nil || string(got) != string(want) {
		t.Fatalf("the volume does not hold what was written: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
