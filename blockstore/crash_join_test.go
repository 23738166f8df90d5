package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const doublesTestBytes = 3 << 20

// doublesTest makes volumes "a", "b" and "c" that hold the same bytes, and stores those of b and c without a look whether they are there: chunk rows of their own. A snapshot "s" of c holds some of c's. The index stays as it
// is until its hold is given up.
func doublesTest(t *testing.T, s *Store, seed uint64) []wholeState {
	t.Helper()
	data := guestData(rand.New(rand.NewPCG(seed, 3)), doublesTestBytes)
	write := func(name string, from, to int) {
		d, err := s.OpenDevice(name, "")
		if err != nil {
			d = createTest(t, s, name, block.RegionSize)
		}
		defer d.Close()
		writeTest(t, d, uint64(from), data[from:to])
		destageTest(t, s)
	}
	write("a", 0, doublesTestBytes)
	waitFor(t, "the index", func() bool { return s.Index().Whole() })
	s.indexer.hold.Store(true)
	s.indexer.blind.Store(true)
	write("b", 0, doublesTestBytes)
	write("c", 0, doublesTestBytes/3)
	if _, err := s.CreateSnapshot(context.Background(), "c", "s"); err != nil {
		t.Fatal(err)
	}
	write("c", doublesTestBytes/3, doublesTestBytes)
	s.indexer.blind.Store(false)
	if i, u := s.Index(), s.Stats().UniqueBytes; i.Unmatched == 0 || u < 3*doublesTestBytes*9/10 {
		t.Fatalf("%d B unique, index %+v: the bytes are not there three times", u, i)
	}
	snap := slices.Clone(data)
	clear(snap[doublesTestBytes/3:])
	return []wholeState{{"a", "", data}, {"b", "", data}, {"c", "", data}, {"c", "s", snap}}
}

// joinedJudged sees that each chunk is there once, but for those that the snapshot holds.
func joinedJudged(s *Store) error {
	const most = doublesTestBytes + doublesTestBytes/3 + 512<<10 // where destage began anew, cuts differ
	if u, i := s.Stats().UniqueBytes, s.Index(); u > most || i.Indexed < i.Chunks {
		return fmt.Errorf("%d B unique, at most %d wanted; the index is %+v", u, most, i)
	}
	return nil
}

// TestPowerLossOfJoin cuts the power before each file operation while chunks that are there twice are found and joined, and the doubles given back.
func TestPowerLossOfJoin(t *testing.T) {
	for _, seed := range crashSeeds(t, 1) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { joinPowerLoss(t, seed) })
	}
}

func joinPowerLoss(t *testing.T, seed uint64) {
	mem := newCrashMem(t)
	c := newCutter(mem, seed)
	var problems crashProblems
	options := func(fs vfs.FS) Options {
		opts := crashOptions(fs, "data/store", &problems)
		opts.fullAfterBytes = 1 << 20
		return opts
	}
	s := openTest(t, options(c.fs()))
	states := doublesTest(t, s, seed)
	_, err := cutDuring(t, c, seed, func() error {
		s.indexer.hold.Store(false)
		return s.Settle(context.Background(), nil)
	}, func(k *cut, lose bool) error {
		s, err := openCut(k, options(k.mem), lose)
		if err != nil {
			return err
		}
		return errors.Join(judgeCounts(t, s, states), joinedJudged(s), s.Close())
	})
	if err := errors.Join(err, judgeCounts(t, s, states), joinedJudged(s), problems.get()); err != nil {
		t.Error(err)
	}
	if i := s.Index(); i.JoinedRaw < doublesTestBytes {
		t.Errorf("joined: %+v", i)
	}
}

// TestRaceDeathAfterJoin: the process, or the power, goes when extents name other chunks than before, and the doubles' rows are still in the index, which has no log. Meanwhile a guest has written over what is joined.
// Naive: a row of a double that is gone, or whose equal is gone, is believed.
func TestRaceDeathAfterJoin(t *testing.T) {
	r := newRace(t, afterJoin)
	states := doublesTest(t, r.s, 1)
	r.arm()
	r.s.indexer.hold.Store(false)
	settle := start(r.settle)
	r.wait()
	data := slices.Clone(states[0].data)
	copy(data[1<<20:], filled(9, 1<<20))
	states[0].data, states[1].data = data, data
	for _, name := range []string{"a", "b"} {
		d := deviceTest(t, r.s, name, "")
		writeTest(t, d, 1<<20, filled(9, 1<<20))
		if err := errors.Join(d.Flush(context.Background()), d.Close()); err != nil {
			t.Fatal(err)
		}
	}
	r.diedAt(states)
	r.release()
	r.finish(settle)
	if err := judgeCounts(t, r.s, states); err != nil {
		t.Error(err)
	}
}
