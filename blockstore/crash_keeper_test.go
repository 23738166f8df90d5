package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// TestPowerLossOfTheKeeper cuts the power before each file operation of making sidecars, of a scrub and of a repair, and opens what is left: the store serves what it held, and
// mends again what is damaged.
func TestPowerLossOfTheKeeper(t *testing.T) {
	for _, seed := range crashSeeds(t, 2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { keeperPowerLoss(t, seed) })
	}
}

func keeperPowerLoss(t *testing.T, seed uint64) {
	mem := newCrashMem(t)
	var problems crashProblems
	options := func(fs vfs.FS, shape erasure.Shape) Options {
		opts := crashOptions(fs, "data/store", &problems)
		opts.Parity, opts.KeepBytesPerSecond = shape, 1<<40
		return opts
	}
	open := func(fs vfs.FS, shape erasure.Shape) *Store {
		t.Helper()
		s, err := Open(context.Background(), options(fs, shape))
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open(mem, erasure.Shape{})
	d := createTest(t, s, "a", 8<<20)
	data := guestData(rand.New(rand.NewPCG(seed, 3)), 3<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	c := newCutter(mem, seed)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	s = open(c.fs(), erasure.Default)
	c.begin(ctx, 1, func() crashtest.Mark { return crashtest.Mark{} })
	done := make(chan error, 1)
	go func() {
		defer stop()
		done <- func() error {
			if !keeperReaches(s, func() bool { st := s.Stats(); return st.GuardedBytes > 0 && st.UnguardedBytes == 0 }) {
				return errors.New("no sidecars")
			}
			if err := spoilSealed(mem, s, seed); err != nil {
				return err
			}
			if _, err := s.StartScrub(false); err != nil {
				return err
			}
			if !keeperReaches(s, func() bool { return s.Scrub().State == ScrubDone }) {
				return errors.New("the scrub does not end")
			}
			if got := s.Scrub(); got.Damaged == 0 || got.Damaged != got.Mended {
				return fmt.Errorf("scrub: %+v", got)
			}
			return nil
		}()
	}()
	cuts := 0
	for ended := false; !ended; {
		select {
		case k := <-c.cuts:
			cuts++
			if err := judgeKeeper(k, options(k.mem, erasure.Default), data); err != nil {
				t.Errorf("cut %d, %s: %v", cuts, k.what, err)
				stop()
			}
		case <-ctx.Done():
			ended = true
		}
	}
	if err := errors.Join(<-done, s.Close(), problems.get()); err != nil {
		t.Error(err)
	}
	t.Logf("%d cuts among %d file operations", cuts, c.ops)
	if cuts < 20 {
		t.Errorf("only %d cuts", cuts)
	}
}

// keeperReaches waits without a deadline of the clock: each round of the keeper gets it on.
func keeperReaches(s *Store, ok func() bool) bool {
	for range 3000 {
		if ok() {
			return true
		}
		s.keeper.kick()
		sleep(context.Background(), settlePoll)
	}
	return false
}

// spoilSealed damages a column of each sealed data segment, durably.
func spoilSealed(mem *vfs.MemFS, s *Store, seed uint64) error {
	for _, r := range s.segments.all() {
		if r.State != segmentSealed || isMetadata(&r) {
			continue
		}
		f, err := mem.OpenReadWrite(fmt.Sprintf("data/store/segments/%02x/%s", uint8(r.ID), r.Placement[0].Key), "")
		if err != nil {
			return err
		}
		b := make([]byte, 4096)
		for i := range b {
			b[i] = byte(seed) + byte(i)
		}
		_, err = f.WriteAt(b, int64(r.Size/2)&^4095)
		if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func judgeKeeper(k *cut, opts Options, data []byte) error {
	setUsage(k.mem)
	s, err := Open(context.Background(), opts)
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
	err = read()
	if err == nil && !keeperReaches(s, func() bool { st := s.Stats(); return st.UnguardedBytes == 0 }) {
		err = errors.New("no sidecars")
	}
	if err == nil {
		err = read()
	}
	if st := s.Stats(); err == nil && st.DamageLost > 0 {
		err = fmt.Errorf("%d columns lost", st.DamageLost)
	}
	return errors.Join(err, s.Close())
}

// TestFullDiskOfTheKeeper lets every write of a sidecar fail for want of room: guests' writes go on, no error is reported, and the sidecars come when there is room.
func TestFullDiskOfTheKeeper(t *testing.T) {
	mem := newCrashMem(t)
	var mu sync.Mutex
	full, failed := true, 0
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if full && op.Kind.ReadOrWrite() == errorfs.OpIsWrite && len(op.Path) > 8 && op.Path[len(op.Path)-8:] == ".par.tmp" {
			failed++
			return syscall.ENOSPC
		}
		return nil
	}))
	opts, _ := keptOptions(t, fs, "data/store")
	s := openTest(t, opts)
	d := createTest(t, s, "a", 32<<20)
	data := guestData(rand.New(rand.NewPCG(1, 3)), 6<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	d = deviceTest(t, s, "a", "")
	waitFor(t, "an attempt", func() bool { mu.Lock(); defer mu.Unlock(); s.keeper.kick(); return failed > 0 })
	writeTest(t, d, 8<<20, data)
	settleTest(t, s)
	expect(t, d, 8<<20, data)
	if s.Stats().GuardedBytes != 0 {
		t.Error("a sidecar that could not be written counts")
	}
	mu.Lock()
	full = false
	mu.Unlock()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	guardedTest(t, s)
	expect(t, deviceTest(t, s, "a", ""), 0, data)
}
