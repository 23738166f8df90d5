package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// These tests name the causes of what the random crash tests have found.

// quiet ends the background work of a store, so that a test can do its steps one by one.
func (r *race) quiet() {
	r.s.cancel()
	r.s.running.Wait()
}

// newQuiet returns a store whose background work is ended.
func newQuiet(t *testing.T) *race {
	r := newRace(t, 0)
	r.quiet()
	return r
}

// check fails the test on an error.
func (r *race) check(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestWatermarkInsideRecord: the oldest slot that the log is needed for is the second sector of a record. Replay, which knows records by their first one, left it out.
func TestWatermarkInsideRecord(t *testing.T) {
	r := newQuiet(t)
	d := createTest(t, r.s, "a", 8<<20)
	writeTest(t, d, 0, filled(1, 8192))
	writeTest(t, d, 0, filled(2, 4096))
	r.check(r.s.releaseLog(context.Background()))
	expect(t, deviceTest(t, r.died(), "a", ""), 0, append(filled(2, 4096), filled(1, 4096)...))
}

// TestRowsNotAheadOfLog: a commit for another reason carried a snapshot whose barrier was not synced. After a power loss the snapshot was there, the writes before it were not.
func TestRowsNotAheadOfLog(t *testing.T) {
	ctx := context.Background()
	mem := newCrashMem(t)
	var problems crashProblems
	opts := crashOptions(mem, "data/store", &problems)
	opts.SyncEvery = time.Hour
	s := openTest(t, opts)
	s.cancel()
	s.running.Wait()
	d := createTest(t, s, "a", 8<<20)
	r := &race{t: t, s: s}
	r.check(d.Flush(ctx))
	writeTest(t, d, 0, filled(1, 4096))
	_, err := s.CreateSnapshot(ctx, "a", "s")
	r.check(err)
	r.check(s.beginMeta().commit())
	left := mem.CrashClone(vfs.CrashCloneCfg{})
	setUsage(left)
	s = openTest(t, crashOptions(left, "data/store", &problems))
	snaps, err := s.Snapshots("a")
	r.check(err)
	for range snaps {
		expect(t, deviceTest(t, s, "a", "s"), 0, filled(1, 4096))
	}
	r.check(problems.get())
}

// TestJobOutlivesRestart: a subtree that was being freed when the process died was forgotten, as nobody counted the jobs of an earlier run.
func TestJobOutlivesRestart(t *testing.T) {
	ctx := context.Background()
	r := newRace(t, 0)
	d := createTest(t, r.s, "a", 8<<20)
	writeTest(t, d, 0, guestData(rand.New(rand.NewPCG(1, 1)), 1<<20))
	r.check(d.Close())
	r.check(r.settle())
	r.quiet()
	r.check(r.s.DeleteVolume(ctx, "a"))
	_, err := r.s.stepPurge(ctx)
	r.check(err)
	s := r.died()
	r.check((&judge{t: t}).deleteAll(s))
}

// TestPurgedNodeStaysGone: the destager marked a node resolved that had been purged since it was listed, which brought its row back without its parent.
func TestPurgedNodeStaysGone(t *testing.T) {
	ctx := context.Background()
	r := newQuiet(t)
	r.check(createTest(t, r.s, "a", 8<<20).Close())
	for _, name := range []string{"s1", "s2"} {
		_, err := r.s.CreateSnapshot(ctx, "a", name)
		r.check(err)
	}
	listed := r.s.readyNodes()
	r.check(r.s.DeleteVolume(ctx, "a"))
	for more := true; more; {
		var err error
		more, err = r.s.stepPurge(ctx)
		r.check(err)
	}
	if len(listed) == 0 || len(r.s.nodes) != 0 {
		t.Fatalf("%d nodes listed, %d left", len(listed), len(r.s.nodes))
	}
	_, err := r.s.resolveNodes(listed)
	r.check(err)
	if n := len(r.died().nodes); n != 0 {
		t.Fatalf("%d nodes are back", n)
	}
}

// TestLogOfDeletedVolume: what a deleted volume has in the log for its clone could not be cut after a restart, as the volume's row was gone.
func TestLogOfDeletedVolume(t *testing.T) {
	ctx := context.Background()
	r := newQuiet(t)
	d := createTest(t, r.s, "a", 8<<20)
	writeTest(t, d, 0, filled(1, 64<<10))
	r.check(d.Close())
	_, err := r.s.CreateSnapshot(ctx, "a", "s")
	r.check(err)
	_, err = r.s.Clone(ctx, "a", "s", "b")
	r.check(err)
	r.check(r.s.DeleteVolume(ctx, "a"))
	r.check(r.s.flushTree())
	s := r.died()
	r.check(crashSettle(s))
	expect(t, deviceTest(t, s, "b", ""), 0, filled(1, 64<<10))
}

// TestMarkerFollowsManifest: of the two names that Pebble makes durable with one sync, a power loss may keep only the marker's.
func TestMarkerFollowsManifest(t *testing.T) {
	mem := newCrashMem(t)
	fs := metaFS{FS: mem, cleaner: newMetaCleaner()}
	for _, name := range []string{"data/MANIFEST-000001", "data/marker.manifest.000001.MANIFEST-000001"} {
		f, err := fs.Create(name, "")
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := mem.CrashClone(vfs.CrashCloneCfg{}).Stat("data/MANIFEST-000001"); err != nil {
		t.Fatal(err)
	}
}

// TestTornBatchOfOneRequest: a write of several records that a power loss cuts is there as whole records.
func TestTornBatchOfOneRequest(t *testing.T) {
	r := newQuiet(t)
	d := createTest(t, r.s, "a", 8<<20)
	r.check(d.Flush(context.Background()))
	r.check(d.Write(context.Background(), []block.Write{{Off: 0, Data: filled(1, 256<<10)}}, false))
	record := int(r.s.opts.LogFileBytes / 4)
	for seed := range uint64(8) {
		left := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 90, RNG: rand.New(rand.NewPCG(seed, 1))})
		setUsage(left)
		got := make([]byte, 256<<10)
		_, err := deviceTest(t, openTest(t, r.options(left)), "a", "").ReadAt(context.Background(), got, 0, nil)
		r.check(err)
		for i := 0; i < len(got); i += record {
			if b := got[i : i+record]; firstDiff(b, filled(b[0], record)) >= 0 {
				t.Fatalf("seed %d: the record at %d is torn", seed, i)
			}
		}
	}
}
