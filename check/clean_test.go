package check

import (
	"fmt"
	"os"
	"testing"
)

// TestCleanStages checks a store after each of the things that a user does, settled and not.
func TestCleanStages(t *testing.T) {
	l := newLab(t, 1)
	stage := func(name string, f func()) {
		t.Helper()
		f()
		l.close()
		mustBeClean(t, l.dir, name+", closed")
		l.open()
		l.settle()
		l.close()
		mustBeClean(t, l.dir, name+", settled")
		l.open()
	}
	stage("empty", func() {})
	stage("created", func() { l.create("a", 100<<20) })
	stage("written", func() {
		for i := range uint64(12) {
			l.write("a", i*7<<20, l.pool[i%3])
		}
	})
	stage("overwritten", func() { l.write("a", 100_000, l.data(150_000)) })
	stage("snapshot", func() { l.snapshot("a", "s1"); l.write("a", 0, l.pool[4]); l.write("a", 50<<20, l.pool[5]) })
	stage("clone", func() { l.clone("a", "s1", "c"); l.write("c", 8<<20, l.pool[5]); l.trim("c", 0, 60<<20) })
	stage("second snapshot", func() { l.snapshot("a", "s2"); l.trim("a", 20<<20, 50<<20); l.write("a", 30<<20, l.data(99_999)) })
	stage("delete snapshot", func() { l.must(l.s.DeleteSnapshot(t.Context(), "a", "s1")) })
	stage("rollback", func() { l.must(l.s.Rollback(t.Context(), "a", "s2")); l.write("a", 1<<20, l.pool[1]) })
	stage("resize", func() { l.must(l.s.ResizeVolume(t.Context(), "a", 33<<20)) })
	stage("grow", func() { l.must(l.s.ResizeVolume(t.Context(), "a", 40<<30)); l.write("a", 39<<30, l.pool[1]) })
	stage("delete volume", func() { l.must(l.s.DeleteVolume(t.Context(), "a")) })
	stage("delete clone", func() { l.must(l.s.DeleteVolume(t.Context(), "c")) })
}

// TestCleanRandom does seeded operations and checks the store closed, settled, and as an unclean stop leaves it.
func TestCleanRandom(t *testing.T) {
	for _, seed := range seeds(t, 2) {
		t.Run(fmt.Sprint("seed", seed), func(t *testing.T) { randomRun(t, seed, 120) })
	}
}

// seeds returns the first n, or the one of the environment: HV_CHECK_SEED=112 go test -run TestCleanRandom ./check. HV_CHECK_SEED=200-260 is a range.
func seeds(t *testing.T, n uint64) (all []uint64) {
	first, last := uint64(100), 99+n
	if s := os.Getenv("HV_CHECK_SEED"); s != "" {
		if k, err := fmt.Sscanf(s, "%d-%d", &first, &last); k == 1 {
			last = first
		} else if err != nil {
			t.Fatal(err)
		}
	}
	for ; first <= last; first++ {
		all = append(all, first)
	}
	return all
}

func randomRun(t *testing.T, seed uint64, steps int) {
	l := newLab(t, seed)
	var did []string
	defer func() {
		if t.Failed() {
			for i, d := range did {
				t.Logf("%d: %s", i, d)
			}
		}
	}()
	for i := range steps {
		did = append(did, l.random(i))
		switch l.rng.IntN(12) {
		case 0:
			l.close()
			mustBeClean(t, l.dir, fmt.Sprint("closed after step ", i))
			l.open()
		case 1:
			if vols := l.s.Volumes(); len(vols) > 0 {
				l.flush(vols[0].Name)
			}
			checkCrashed(t, l.dir, fmt.Sprint("copied after step ", i))
		}
	}
	l.settle()
	l.close()
	rep := mustBeClean(t, l.dir, "settled")
	if rep.Totals.Jobs != 0 {
		t.Errorf("%d jobs are left after a settle", rep.Totals.Jobs)
	}
	l.open()
}
