package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const recutTestBytes = 5 << 20

// inPiecesTest makes a volume "a" whose only region lies in pieces: chunks of 64 KiB on average, of which every third block was written over. A snapshot "s" holds the first part of it, and "b" what "a" held in between.
func inPiecesTest(t *testing.T, s *Store, seed uint64) []wholeState {
	t.Helper()
	ctx, rng := context.Background(), rand.New(rand.NewPCG(seed, 3))
	for _, name := range []string{"a", "b"} {
		if _, err := s.CreateVolume(ctx, VolumeSpec{Name: name, SizeBytes: block.RegionSize, Chunking: Chunking{AverageBytes: 64 << 10}}); err != nil {
			t.Fatal(err)
		}
	}
	d, b := deviceTest(t, s, "a", ""), deviceTest(t, s, "b", "")
	defer d.Close()
	defer b.Close()
	data := guestData(rng, recutTestBytes)
	const early = 256 << 10
	writeTest(t, d, 0, data[:early])
	destageTest(t, s)
	if _, err := s.CreateSnapshot(ctx, "a", "s"); err != nil {
		t.Fatal(err)
	}
	states := []wholeState{{"a", "s", append(data[:early:early], make([]byte, recutTestBytes-early)...)}}
	writeTest(t, d, early, data[early:])
	destageTest(t, s)
	writeTest(t, b, 0, data)
	destageTest(t, s)
	states = append(states, wholeState{"b", "", append([]byte(nil), data...)})
	for at := 0; at < recutTestBytes; at += 3 * block.Size {
		copy(data[at:at+block.Size], guestData(rng, block.Size))
		writeTest(t, d, uint64(at), data[at:at+block.Size])
	}
	destageTest(t, s)
	if n := extentsOf(t, s, d); n <= piecesMost(d.v.cut) {
		t.Fatalf("%d extents are no pieces", n)
	}
	return append(states, wholeState{"a", "", data})
}

// TestPowerLossOfRecut cuts the power before each file operation while a region in pieces is found by an audit and cut anew, and what it held is given back.
func TestPowerLossOfRecut(t *testing.T) {
	for _, seed := range crashSeeds(t, 1) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { recutPowerLoss(t, seed) })
	}
}

func recutPowerLoss(t *testing.T, seed uint64) {
	mem := newCrashMem(t)
	c := newCutter(mem, seed)
	var problems crashProblems
	options := func(fs vfs.FS) Options {
		opts := crashOptions(fs, "data/store", &problems)
		opts.fullAfterBytes = 1 << 20
		return opts
	}
	opts, recuts := options(c.fs()), atomic.Int32{}
	opts.atMoment = func(m moment) {
		if m == afterRecut {
			recuts.Add(1)
		}
	}
	s := openTest(t, opts)
	states := inPiecesTest(t, s, seed)
	_, err := cutDuring(t, c, seed, func() error {
		_, err := s.Audit(context.Background(), nil)
		return errors.Join(err, s.Settle(context.Background(), nil))
	}, func(k *cut, lose bool) error {
		s, err := openCut(k, options(k.mem), lose)
		if err != nil {
			return err
		}
		return errors.Join(judgeCounts(t, s, states), recutJudged(s), s.Close())
	})
	if err := errors.Join(err, judgeCounts(t, s, states), problems.get()); err != nil {
		t.Error(err)
	}
	if recuts.Load() != 1 {
		t.Errorf("%d regions were cut anew", recuts.Load())
	}
}

// recutJudged sees that what was left undone is done by a store that has audited and settled.
func recutJudged(s *Store) error {
	if err := s.Settle(context.Background(), nil); err != nil {
		return err
	}
	d, err := s.OpenDevice("a", "")
	if err != nil {
		return err
	}
	defer d.Close()
	p, err := s.maps.Region(d.v.head.Load().effectiveRoot(), 0)
	if err == nil && p.Len() > piecesMost(d.v.cut) {
		err = fmt.Errorf("%d extents are left in pieces", p.Len())
	}
	return err
}

// TestRaceDeathAfterRecut: the process, or the power, goes when a region was cut anew, what it had is dead, and nothing of that is given back. Meanwhile the guest has written to the region. Naive: bytes that were read before a write
// replace it.
func TestRaceDeathAfterRecut(t *testing.T) {
	r := newRace(t, afterRecut)
	states := inPiecesTest(t, r.s, 1)
	if _, err := r.s.Audit(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	r.arm()
	settle := start(r.settle)
	r.wait()
	d := deviceTest(t, r.s, "a", "")
	head := states[len(states)-1].data
	for at := block.Size; at < len(head); at += 64 * block.Size {
		copy(head[at:at+block.Size], filled(9, block.Size))
		writeTest(t, d, uint64(at), filled(9, block.Size))
	}
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.diedAt(states)
	r.release()
	r.finish(settle)
	if err := judgeCounts(t, r.s, states); err != nil {
		t.Error(err)
	}
}
