package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// cutDuring cuts the power before many file operations while a store works, and has judged what each cut left, with its metadata and now and then without. A cut may keep all that was not synced, which
// is what the death of the process leaves. It returns how many cuts there were, and what work ended with.
func cutDuring(t *testing.T, c *cutter, seed uint64, work func() error, judge func(k *cut, lose bool) error) (cuts int, err error) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	every, least := 1, 20
	if raceEnabled { // each store that is judged takes many times as long
		every, least = 12, 2
	}
	c.begin(ctx, every, func() crashtest.Mark { return crashtest.Mark{} })
	done := make(chan error, 1)
	go func() {
		defer stop()
		done <- work()
	}()
	rng := rand.New(rand.NewPCG(seed, 4))
	for ended := false; !ended; {
		select {
		case k := <-c.cuts:
			cuts++
			lose := rng.IntN(4) == 0
			if err := judge(k, lose); err != nil {
				t.Errorf("cut %d, %s, metadata lost %v: %v\nrepeat: go test ./blockstore -run '%s' -crash.seed=%d", cuts, k.what, lose, err, t.Name(), seed)
				stop()
			}
		case <-ctx.Done():
			ended = true
		}
	}
	err = <-done
	t.Logf("%d cuts among %d file operations", cuts, c.ops)
	if cuts < least {
		err = errors.Join(err, fmt.Errorf("only %d cuts", cuts))
	}
	return cuts, err
}

// openCut opens what a cut left.
func openCut(k *cut, opts Options, lose bool) (*Store, error) {
	setUsage(k.mem)
	if lose {
		if err := loseMeta(k.mem, opts.Dir); err != nil {
			return nil, err
		}
	}
	return Open(context.Background(), opts)
}

// wholeState is what a state of a volume must hold.
type wholeState struct {
	volume, snapshot string
	data             []byte
}

// readsAs compares states with what they must hold.
func readsAs(s *Store, states []wholeState) error {
	for _, w := range states {
		got := make([]byte, len(w.data))
		if err := (crashTarget{s}).ReadAt(w.volume, w.snapshot, got, 0); err != nil {
			return fmt.Errorf("%s@%s: %w", w.volume, w.snapshot, err)
		}
		if at := firstDiff(got, w.data); at >= 0 {
			return fmt.Errorf("%s@%s: wrong bytes at %d", w.volume, w.snapshot, at)
		}
	}
	return nil
}

// judgeCounts sees that a store holds what it must, before and after it settles, that an audit finds nothing, and that every counter is what the maps have.
func judgeCounts(t *testing.T, s *Store, states []wholeState) error {
	t.Helper()
	ctx := context.Background()
	if err := readsAs(s, states); err != nil {
		return fmt.Errorf("as it was opened: %w", err)
	}
	for range 2 { // the first may free what a double, or a state, is waiting for
		if err := s.Settle(ctx, nil); err != nil {
			return err
		}
	}
	if err := readsAs(s, states); err != nil {
		return fmt.Errorf("settled: %w", err)
	}
	r, err := s.Audit(ctx, nil)
	if err == nil && (!r.Passed() || r.Unreachable+r.WrongSegments > 0) {
		err = fmt.Errorf("audit: %+v", r)
	}
	if err == nil {
		(&model{t: t, s: s}).audit()
	}
	return err
}

// diedAt opens what the death of the process, or a power loss that keeps nothing unsynced, leaves of a store that stands at a gate, and judges it.
func (r *race) diedAt(states []wholeState) {
	r.t.Helper()
	for _, percent := range []int{100, 0} {
		left := r.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rand.New(rand.NewPCG(1, 1))})
		setUsage(left)
		s := openTest(r.t, r.options(left))
		if err := judgeCounts(r.t, s, states); err != nil {
			r.t.Errorf("%d %% of what was unsynced kept: %v", percent, err)
		}
	}
}
