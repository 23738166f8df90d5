package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestPowerLossDuringCreation cuts the power before every operation of the first Open, and of the Close after it: nothing was acknowledged, so what is left must become a
// working store.
func TestPowerLossDuringCreation(t *testing.T) {
	for _, seed := range crashSeeds(t, 1) {
		rng := rand.New(rand.NewPCG(seed, 79))
		mem := newCrashMem(t)
		var mu sync.Mutex
		var clones []*vfs.MemFS
		var what []string
		fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
			mu.Lock()
			defer mu.Unlock()
			if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && op.Kind != errorfs.OpFileClose {
				percent := []int{0, 50, 100}[len(clones)%3]
				clones = append(clones, mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: rng}))
				what = append(what, fmt.Sprintf("%v %s, %d %%", op.Kind, op.Path, percent))
			}
			return nil
		}))
		if err := createAndClose(fs); err != nil {
			t.Fatal(err)
		}
		for i, clone := range clones {
			setUsage(clone)
			if err := createAndClose(clone); err != nil {
				t.Fatalf("power cut before operation %d, %s: %v\nrepeat: go test ./blockstore -run TestPowerLossDuringCreation -crash.seed=%d", i, what[i], err, seed)
			}
		}
		t.Logf("%d cuts", len(clones))
	}
}

// createAndClose opens a store twice, and does too little to it in between for a background batch to be sure to have come.
func createAndClose(fs vfs.FS) error {
	ctx := context.Background()
	for i := range 2 {
		var problems crashProblems
		s, err := Open(ctx, crashOptions(fs, "data/new/store", &problems))
		if err != nil {
			return err
		}
		_, err = s.CreateVolume(ctx, VolumeSpec{Name: fmt.Sprint("v", len(s.Volumes())), SizeBytes: 1 << 20})
		if n := len(s.Volumes()); n <= i {
			err = errors.Join(err, fmt.Errorf("%d volumes after %d opens", n, i))
		}
		if err := errors.Join(err, s.Close(), problems.get()); err != nil {
			return err
		}
	}
	return nil
}

// TestReopenUntouched: a store that nothing was ever done to opens again, closed in order or not.
func TestReopenUntouched(t *testing.T) {
	ctx := context.Background()
	for _, closed := range []bool{true, false} {
		mem := newCrashMem(t)
		var problems crashProblems
		s, err := Open(ctx, crashOptions(mem, "data/store", &problems))
		if err != nil {
			t.Fatal(err)
		}
		left := mem.CrashClone(vfs.CrashCloneCfg{})
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if closed {
			left = mem
		}
		setUsage(left)
		s, err = Open(ctx, crashOptions(left, "data/store", &problems))
		if err != nil {
			t.Fatalf("closed in order %v: %v", closed, err)
		}
		if err := errors.Join(s.Close(), problems.get()); err != nil {
			t.Fatal(err)
		}
	}
}
