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
	once    sync.Once     // closes goOn

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

// release lets the engine go on. It may be called again.
func (g *gate) release() { g.once.Do(func() { close(g.goOn) }) }

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
	also     *gate // a second moment, if not nil
	mem      *vfs.MemFS
	s        *Store
	problems crashProblems
}

func newRace(t *testing.T, m moment) *race {
	r := &race{gate: newGate(m), t: t, mem: newCrashMem(t)}
	t.Cleanup(func() {
		if err := r.problems.get(); err != nil {
			t.Error(err)
		}
	})
	r.open()
	return r
}

// open opens the store, for the first time or again.
func (r *race) open() {
	r.t.Helper()
	opts := r.options(r.mem)
	opts.atMoment = func(m moment) {
		r.pass(m)
		if r.also != nil {
			r.also.pass(m)
		}
	}
	r.s = openTest(r.t, opts)
	r.t.Cleanup(func() { // before the store closes, which waits for what stands at the gate
		r.release()
		if r.also != nil {
			r.also.release()
		}
	})
}

// options are those of a store where only Settle destages.
func (r *race) options(mem *vfs.MemFS) Options {
	opts := crashOptions(mem, "data/store", &r.problems)
	opts.DestageAfter = time.Hour
	return opts
}

// wait returns when the engine has stopped.
func (r *race) wait() {
	r.t.Helper()
	select {
	case <-r.reached:
	case <-time.After(2 * time.Minute):
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
	case <-time.After(2 * time.Minute):
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
	return openTest(r.t, r.options(left))
}

// waitWatermark returns when the watermark has moved after f, or could have.
func (r *race) waitWatermark(f func()) {
	before := r.s.watermark()
	f()
	for end := time.Now().Add(grace); time.Now().Before(end) && r.s.watermark() == before; {
		time.Sleep(time.Millisecond) // a wrong engine needs a moment for it; nothing tells when a right one will not do it
	}
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

// TestRaceReleaseOfUnpublishedWrite: a write that is in the log and not yet in the overlay must not have its log file released, when the destager has chosen its work
// before. Naive: take the oldest position of the overlays without waiting for writers.
func TestRaceReleaseOfUnpublishedWrite(t *testing.T) {
	r := newRace(t, afterPublishRoots)
	appended := newGate(afterAppend)
	r.also = appended
	d, other := createTest(t, r.s, "a", 8<<20), createTest(t, r.s, "b", 8<<20)
	r.fillLog(other, 1)
	r.arm()
	settle := start(r.settle)
	r.wait()
	appended.arm()
	write := start(func() error {
		return d.Write(context.Background(), []block.Write{{Off: 4096, Data: filled(7, 4096)}}, false)
	})
	<-appended.reached
	r.fillLog(other, 2)
	r.fillLog(other, 3) // all that is left of these lies in later files than the write
	r.waitWatermark(func() { r.release() })
	appended.release()
	r.finish(write)
	expect(t, d, 4096, filled(7, 4096))
	expect(t, deviceTest(t, r.died(), "a", ""), 4096, filled(7, 4096))
	r.finish(settle)
	expect(t, d, 4096, filled(7, 4096))
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
	r.release()
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
	var settle chan error
	r.waitWatermark(func() { settle = start(r.settle) })
	r.s.meta.Lock() // the rows must not save what the log has lost
	r.release()
	r.finish(create)
	died := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
	r.s.meta.Unlock()
	r.finish(settle)
	setUsage(died)
	s := openTest(t, r.options(died))
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
			r.release()
			r.finish(settle)
			expect(t, d, 0, want)
			expect(t, deviceTest(t, died, "a", ""), 0, want)
			settleTest(t, died)
			expect(t, deviceTest(t, died, "a", ""), 0, want)
		})
	}
}

// TestRaceDeathBeforeRelease: a process that dies when the watermark is durable and the log files before it are still there finds all. Naive: release the files first.
func TestRaceDeathBeforeRelease(t *testing.T) {
	r := newRace(t, beforeRelease)
	d, other := createTest(t, r.s, "a", 8<<20), createTest(t, r.s, "b", 8<<20)
	r.fillLog(d, 3)
	r.arm()
	settle := start(r.settle)
	r.wait()
	for b := range byte(6) {
		r.fillLog(other, b+1) // takes more files than the log keeps spare
	}
	died := r.died()
	expect(t, deviceTest(t, died, "a", ""), 0, filled(3, 1<<20))
	expect(t, deviceTest(t, died, "b", ""), 0, filled(6, 1<<20))
	r.release()
	r.finish(settle)
}

// TestRaceReadDuringRelease: a log file that a reader has pinned is not overwritten. Naive: recycle at once.
func TestRaceReadDuringRelease(t *testing.T) {
	r := newRace(t, beforeRelease)
	d := createTest(t, r.s, "a", 8<<20)
	r.fillLog(d, 3)
	pin := r.s.log.Pin()
	runs, sums := d.node().layer.LookupInto(nil, nil, 0, 1)
	if len(runs) != 1 || len(sums) != 1 {
		t.Fatalf("%d runs, %d sums of one block", len(runs), len(sums))
	}
	r.finish(start(r.settle))
	for b := range byte(6) {
		r.fillLog(d, b+4)
	}
	got := make([]byte, block.Size)
	if err := r.s.log.ReadAt(got, journal.Pos(runs[0].Pos), sums); err != nil || !bytes.Equal(got, filled(3, block.Size)) {
		t.Fatalf("a pinned slot reads %x…, %v", got[:4], err)
	}
	pin.Release()
	expect(t, d, 0, filled(9, 1<<20))
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
		r.open()
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
		r.release()
		r.finish(read)
		if !bytes.Equal(got, keep) {
			t.Fatal("other bytes")
		}
	}
}

// TestRaceDeathBeforeUnlink: a segment whose row is gone and whose file is not is removed by the next start, and nothing is missed. Naive: a start that trusts
// the directory.
func TestRaceDeathBeforeUnlink(t *testing.T) {
	r := newRace(t, beforeUnlink)
	d := createTest(t, r.s, "a", 16<<20)
	rng := rand.New(rand.NewPCG(5, 6))
	writeTest(t, d, 0, guestData(rng, 4<<20))
	settleTest(t, r.s)
	if err := r.s.Close(); err != nil {
		t.Fatal(err)
	}
	r.open()
	d = deviceTest(t, r.s, "a", "")
	data := guestData(rng, 4<<20)
	r.arm()
	writeTest(t, d, 0, data)
	settle := start(r.settle)
	r.wait()
	expect(t, d, 0, data)
	s := r.died()
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	// The file goes when an audit and a delta show that nothing needs it.
	if err := s.collector.prove(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := s.checkpoints.delta(); err != nil {
		t.Fatal(err)
	}
	rows, files := len(s.segments.all()), 0
	backend, err := s.tiers.Backend(defaultTier)
	if err == nil {
		err = backend.List(func(string, int64) error { files++; return nil })
	}
	if err != nil || rows != files {
		t.Fatalf("%d rows of segments, %d files, %v", rows, files, err)
	}
	r.release()
	r.finish(settle)
	expect(t, d, 0, data)
}
