package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// grace is how long these tests let the engine do the wrong thing. An engine that is right waits and loses the time; one that is wrong needs far less.
const grace = 150 * time.Millisecond

// gate stops the engine at one moment.
type gate struct {
	m       moment
	reached chan struct{} // gets a value when the engine is there
	goOn    chan struct{} // closed to let it, and all that come later, pass

	mu    sync.Mutex
	armed bool
}

func newGate(m moment) *gate {
	return &gate{m: m, reached: make(chan struct{}, 1), goOn: make(chan struct{})}
}

// arm makes the next one who passes the moment stop.
func (g *gate) arm() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.armed = true
}

func (g *gate) pass(m moment) {
	g.mu.Lock()
	stop := g.armed && m == g.m
	if stop {
		g.armed = false
	}
	g.mu.Unlock()
	if stop {
		g.reached <- struct{}{}
		<-g.goOn
	}
}

// race is a store in memory that stops at one moment.
type race struct {
	*gate
	t        *testing.T
	mem      *vfs.MemFS
	s        *Store
	problems crashProblems
}

func newRace(t *testing.T, m moment) *race {
	r := &race{gate: newGate(m), t: t, mem: newCrashMem(t)}
	opts := crashOptions(r.mem, "data/store", &r.problems)
	opts.DestageAfter = time.Hour // only Settle destages
	opts.atMoment = r.pass
	r.s = openTest(t, opts)
	t.Cleanup(func() {
		if err := r.problems.get(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// wait returns when the engine has stopped.
func (r *race) wait() {
	r.t.Helper()
	select {
	case <-r.reached:
	case <-time.After(20 * time.Second):
		r.t.Fatal("the engine did not come to the moment")
	}
}

// start runs f beside the test and returns what tells its end.
func start(f func() error) chan error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	return done
}

// finish waits for what start began.
func (r *race) finish(done chan error) {
	r.t.Helper()
	select {
	case err := <-done:
		if err != nil {
			r.t.Fatal(err)
		}
	case <-time.After(20 * time.Second):
		r.t.Fatal("the engine hangs")
	}
}

// during lets f run for a while: it may end or wait.
func during(f func() error) chan error {
	done := start(f)
	again := make(chan error, 1)
	select {
	case err := <-done:
		again <- err
		return again
	case <-time.After(grace):
		return done
	}
}

// died opens what the death of the process at this moment would leave.
func (r *race) died() *Store {
	r.t.Helper()
	left := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	setUsage(left)
	return openTest(r.t, crashOptions(left, "data/store", &r.problems))
}

func filled(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

func (r *race) settle() error { return r.s.Settle(context.Background(), nil) }

// fillLog writes to a volume until the log has begun some files.
func (r *race) fillLog(d *Device, b byte) {
	r.t.Helper()
	for i := range 16 {
		writeTest(r.t, d, uint64(i)*(64<<10), filled(b, 64<<10))
	}
}

// TestRaceReleaseOfUnpublishedWrite: a write that is in the log and not yet in the overlay must not have its log file released. Naive: take the oldest position of the
// overlays without waiting for writers.
func TestRaceReleaseOfUnpublishedWrite(t *testing.T) {
	r := newRace(t, afterAppend)
	d, other := createTest(t, r.s, "a", 8<<20), createTest(t, r.s, "b", 8<<20)
	r.arm()
	write := start(func() error {
		return d.Write(context.Background(), []block.Write{{Off: 4096, Data: filled(7, 4096)}}, false)
	})
	r.wait()
	r.fillLog(other, 1)
	settle := during(r.settle)
	r.fillLog(other, 2)
	close(r.goOn)
	r.finish(write)
	r.finish(settle)
	expect(t, d, 4096, filled(7, 4096))
	expect(t, deviceTest(t, r.died(), "a", ""), 4096, filled(7, 4096))
}

// TestRaceWriteIntoSnapshot: a write that comes between a snapshot's record and the change of the head belongs to the head, in memory as in replay. Naive: snapshot without
// the volume's lock.
func TestRaceWriteIntoSnapshot(t *testing.T) {
	r := newRace(t, afterControl)
	d := createTest(t, r.s, "a", 8<<20)
	writeTest(t, d, 0, filled(1, 8192))
	r.arm()
	snap := start(func() error { _, err := r.s.CreateSnapshot(context.Background(), "a", "s"); return err })
	r.wait()
	write := during(func() error {
		return d.Write(context.Background(), []block.Write{{Off: 0, Data: filled(2, 4096)}}, false)
	})
	trim := during(func() error { return d.Trim(context.Background(), block.Range{Off: 4096, Len: 4096}, false) })
	close(r.goOn)
	r.finish(snap)
	r.finish(write)
	r.finish(trim)
	for _, s := range []*Store{r.s, r.died()} {
		expect(t, deviceTest(t, s, "a", "s"), 0, filled(1, 8192))
		expect(t, deviceTest(t, s, "a", ""), 0, append(filled(2, 4096), filled(0, 4096)...))
	}
}

// TestRaceReleaseOfUnappliedControl: a control record that is in the log and not yet in the tree must not fall before the watermark. Naive: release without waiting for
// control operations.
func TestRaceReleaseOfUnappliedControl(t *testing.T) {
	r := newRace(t, afterControl)
	d := createTest(t, r.s, "a", 8<<20)
	r.arm()
	create := start(func() error {
		_, err := r.s.CreateVolume(context.Background(), VolumeSpec{Name: "b", SizeBytes: 1 << 20})
		return err
	})
	r.wait()
	r.fillLog(d, 1)
	before := r.s.watermark()
	settle := during(r.settle)
	for end := time.Now().Add(grace); time.Now().Before(end) && r.s.watermark() == before; {
		time.Sleep(time.Millisecond) // a wrong engine needs a moment for it; nothing tells when a right one will not
	}
	r.s.meta.Lock() // the rows must not save what the log has lost
	close(r.goOn)
	r.finish(create)
	died := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	r.s.meta.Unlock()
	r.finish(settle)
	setUsage(died)
	s := openTest(t, crashOptions(died, "data/store", &r.problems))
	if _, err := s.Volume("b"); err != nil {
		t.Fatal(err)
	}
}

// TestRaceOverwriteBeforeDrop: a block that is written again between the commit of a destage and the drop of its slot keeps its new slot. Naive: drop whatever slot is there.
func TestRaceOverwriteBeforeDrop(t *testing.T) {
	for _, what := range []string{"write", "trim", "trim all"} {
		t.Run(what, func(t *testing.T) {
			r := newRace(t, afterPublishRoots)
			d := createTest(t, r.s, "a", 40<<20)
			writeTest(t, d, 0, filled(1, 64<<10))
			r.arm()
			settle := start(r.settle)
			r.wait()
			expect(t, d, 0, filled(1, 64<<10))
			want := filled(1, 64<<10)
			switch what {
			case "write":
				writeTest(t, d, 8192, filled(2, 4096))
				copy(want[8192:], filled(2, 4096))
			case "trim":
				if err := d.Trim(context.Background(), block.Range{Off: 4096, Len: 8192}, false); err != nil {
					t.Fatal(err)
				}
				clear(want[4096:12288])
			case "trim all":
				if err := d.Trim(context.Background(), block.Range{Len: 40 << 20}, false); err != nil {
					t.Fatal(err)
				}
				clear(want)
			}
			died := r.died()
			close(r.goOn)
			r.finish(settle)
			expect(t, d, 0, want)
			expect(t, deviceTest(t, died, "a", ""), 0, want)
			settleTest(t, died)
			expect(t, deviceTest(t, died, "a", ""), 0, want)
		})
	}
}

// TestRaceReadDuringRelease: files before a durable watermark go only when no reader is in them, and a process that dies in between finds all. Naive: release without pins,
// or before the watermark is durable.
func TestRaceReadDuringRelease(t *testing.T) {
	r := newRace(t, beforeRelease)
	d := createTest(t, r.s, "a", 8<<20)
	r.fillLog(d, 3)
	pin := r.s.log.Pin()
	runs, sums := d.node().layer.LookupInto(nil, nil, 0, 1)
	if len(runs) != 1 || len(sums) != 1 {
		t.Fatalf("%d runs, %d sums of one block", len(runs), len(sums))
	}
	r.arm()
	settle := start(r.settle)
	r.wait()
	died := r.died()
	expect(t, deviceTest(t, died, "a", ""), 0, filled(3, 1<<20))
	close(r.goOn)
	r.finish(settle)
	r.fillLog(d, 4) // takes recycled files, if there are any
	got := make([]byte, block.Size)
	if err := r.s.log.ReadAt(got, journal.Pos(runs[0].Pos), sums); err != nil || !bytes.Equal(got, filled(3, block.Size)) {
		t.Fatalf("a pinned slot reads %x…, %v", got[:4], err)
	}
	pin.Release()
	expect(t, d, 0, filled(4, 1<<20))
}

// TestRaceMoveUnderReader: a reader that knows where a chunk lies finds it still when the chunk moves to another segment and the old one is removed. Naive: report the
// missing segment.
func TestRaceMoveUnderReader(t *testing.T) {
	for _, try := range []bool{false, true} {
		r := newRace(t, afterChunkRow)
		d := createTest(t, r.s, "a", 16<<20)
		bulk := createTest(t, r.s, "bulk", 16<<20)
		rng := rand.New(rand.NewPCG(3, 4))
		keep := guestData(rng, 64<<10)
		writeTest(t, bulk, 0, guestData(rng, 8<<20))
		writeTest(t, d, 0, keep)
		settleTest(t, r.s)
		if err := r.s.Close(); err != nil { // the open segment is sealed by the next open
			t.Fatal(err)
		}
		opts := crashOptions(r.mem, "data/store", &r.problems)
		opts.atMoment = r.pass
		r.s = openTest(t, opts)
		d = deviceTest(t, r.s, "a", "")
		settleTest(t, r.s) // of what the log still had
		old := slices.MaxFunc(r.s.segments.all(), func(a, b segmentRow) int { return cmp.Compare(a.TotalRaw, b.TotalRaw) })
		r.arm()
		got := make([]byte, len(keep))
		read := start(func() error {
			var err error
			if try {
				_, err = d.TryReadAt(got, 0, nil)
			}
			if !try || errors.Is(err, block.ErrWouldBlock) {
				_, err = d.ReadAt(context.Background(), got, 0, nil)
			}
			return err
		})
		r.wait()
		if err := r.s.DeleteVolume(context.Background(), "bulk"); err != nil {
			t.Fatal(err)
		}
		r.finish(start(r.settle))
		if _, still := r.s.segments.get(old.ID); still {
			t.Fatal("the chunk did not change its place")
		}
		close(r.goOn)
		r.finish(read)
		if !bytes.Equal(got, keep) {
			t.Fatal("other bytes")
		}
	}
}

// TestRaceDeathBeforeUnlink: a segment whose row is gone and whose file is not is removed by the next start, and nothing is missed. Naive: unlink before the row goes.
func TestRaceDeathBeforeUnlink(t *testing.T) {
	r := newRace(t, beforeUnlink)
	d := createTest(t, r.s, "a", 16<<20)
	rng := rand.New(rand.NewPCG(5, 6))
	writeTest(t, d, 0, guestData(rng, 4<<20))
	settleTest(t, r.s)
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	opts := crashOptions(r.mem, "data/store", &r.problems)
	opts.atMoment = r.pass
	r.s = openTest(t, opts)
	d = deviceTest(t, r.s, "a", "")
	data := guestData(rng, 4<<20)
	r.arm()
	writeTest(t, d, 0, data)
	settle := start(r.settle)
	r.wait()
	expect(t, d, 0, data)
	s := r.died()
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	rows, files := len(s.segments.all()), 0
	backend, err := s.tiers.Backend(defaultTier)
	if err == nil {
		err = backend.List(func(string, int64) error { files++; return nil })
	}
	if err != nil || rows != files {
		t.Fatalf("%d rows of segments, %d files, %v", rows, files, err)
	}
	close(r.goOn)
	r.finish(settle)
	expect(t, d, 0, data)
}
