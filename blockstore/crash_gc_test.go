package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestPowerLossOfTheCollector cuts the power before each file operation of emptying segments, of audits, of a pause and of deleting files, and opens what is left, now and then
// without its metadata: it serves what it held, collects what is dead, and an audit finds nothing.
func TestPowerLossOfTheCollector(t *testing.T) {
	for _, seed := range crashSeeds(t, 1) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { collectorPowerLoss(t, seed) })
	}
}

func collectorPowerLoss(t *testing.T, seed uint64) {
	mem := newCrashMem(t)
	var problems crashProblems
	options := func(fs vfs.FS) Options {
		opts := crashOptions(fs, "data/store", &problems)
		opts.auditBytes = 4 << 10
		return opts
	}
	data := guestData(rand.New(rand.NewPCG(seed, 3)), 6<<20)
	for part := range 2 { // a segment each
		s := openTest(t, options(mem))
		var d *Device
		if part == 0 {
			d = createTest(t, s, "a", 16<<20)
		} else {
			d = deviceTest(t, s, "a", "")
		}
		writeTest(t, d, uint64(part)*3<<20, data[part*3<<20:(part+1)*3<<20])
		settleTest(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// What is dead when the power is cut is so before: a snapshot holds all of it and goes.
	s := openTest(t, options(mem))
	d := deviceTest(t, s, "a", "")
	_, err := s.CreateSnapshot(context.Background(), "a", "s")
	for _, off := range []uint64{1 << 20, 4 << 20} {
		err = errors.Join(err, d.Trim(context.Background(), block.Range{Off: off, Len: 2 << 20}, false))
		clear(data[off : off+2<<20])
	}
	if err := errors.Join(err, s.Settle(context.Background(), nil), s.Close()); err != nil {
		t.Fatal(err)
	}

	c := newCutter(mem, seed)
	if s, err = Open(context.Background(), options(c.fs())); err != nil {
		t.Fatal(err)
	}
	_, err = cutDuring(t, c, seed, func() error {
		_, pauseErr := s.PauseGC()
		_, resumeErr := s.ResumeGC()
		err := s.DeleteSnapshot(context.Background(), "a", "s")
		return errors.Join(pauseErr, resumeErr, err, s.CollectGarbage(context.Background(), nil))
	}, func(k *cut, lose bool) error { return judgeCollector(k, options(k.mem), data, lose) })
	if n := s.collector.counts.segments.Load(); n < 2 {
		err = errors.Join(err, fmt.Errorf("%d segments were given back", n))
	}
	if err := errors.Join(err, s.Close(), problems.get()); err != nil {
		t.Error(err)
	}
}

func judgeCollector(k *cut, opts Options, data []byte, loseIt bool) error {
	s, err := openCut(k, opts, loseIt)
	if err != nil {
		return err
	}
	read := func() error {
		got := make([]byte, len(data))
		err := crashTarget{s}.ReadAt("a", "", got, 0)
		if err == nil && firstDiff(got, data) >= 0 {
			err = fmt.Errorf("wrong bytes at %d", firstDiff(got, data))
		}
		return err
	}
	ctx := context.Background()
	err = read()
	if _, e := s.ResumeGC(); err == nil {
		err = e
	}
	if err == nil {
		err = errors.Join(s.Settle(ctx, nil), read())
	}
	if r, e := s.Audit(ctx, nil); err == nil && (e != nil || r.Unreachable+r.WrongSegments > 0) {
		err = fmt.Errorf("audit: %+v, %w", r, e)
	}
	return errors.Join(err, s.Close())
}

// TestRaceDeathBeforeProof: the power goes when an audit knows that files may go and nobody has been told: they are audited again by the next start, and go then.
func TestRaceDeathBeforeProof(t *testing.T) {
	r := newRace(t, afterMark)
	d := createTest(t, r.s, "a", 16<<20)
	rng := rand.New(rand.NewPCG(5, 7))
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
	if unproven(s) == 0 {
		t.Error("no file waits after the restart")
	}
	settleTest(t, s)
	if waiting(s) != 0 || s.GC().Audits == 0 {
		t.Errorf("%d files wait, %+v", waiting(s), s.GC())
	}
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	r.release()
	r.finish(settle)
	expect(t, d, 0, data)
}
