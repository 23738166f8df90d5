package blockstore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/internal/crashtest"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

var crashSeed = flag.Uint64("crash.seed", 0, "seed of the crash tests; 0 runs several")

// crashSeeds returns the seeds of a test that by default runs n of them.
func crashSeeds(t testing.TB, n int) []uint64 {
	if *crashSeed != 0 {
		return []uint64{*crashSeed}
	}
	var all []uint64
	for i := range crashRounds(t, n) {
		all = append(all, uint64(i+1))
	}
	return all
}

// cutter cuts the power: ahead of some of the operations on a file system it takes a clone of what would be left.
type cutter struct {
	mem  *vfs.MemFS
	cuts chan *cut

	mu    sync.Mutex
	rng   *rand.Rand
	every int                   // about how many operations lie between two cuts; 0 cuts nothing
	wait  int                   // operations until the next cut
	ops   int                   // operations so far that change the file system
	mark  func() crashtest.Mark // what the recorder knows
	stop  context.Context       // ends when nobody takes cuts any more
}

// cut is what a power loss left.
type cut struct {
	what          string
	percent       int
	mem           *vfs.MemFS
	before, after crashtest.Mark
}

var cutPercents = []int{0, 0, 25, 50, 75, 100}

func newCutter(mem *vfs.MemFS, seed uint64) *cutter {
	return &cutter{mem: mem, cuts: make(chan *cut, 1), rng: rand.New(rand.NewPCG(seed, 77))}
}

func (c *cutter) fs() vfs.FS { return errorfs.Wrap(c.mem, errorfs.InjectorFunc(c.before)) }

// begin cuts from now on.
func (c *cutter) begin(ctx context.Context, every int, mark func() crashtest.Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.every, c.wait, c.mark, c.stop = every, 1, mark, ctx
}

// before is called ahead of every operation.
func (c *cutter) before(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() == errorfs.OpIsRead || op.Kind == errorfs.OpFileClose || op.Kind == errorfs.OpFilePreallocate || op.Kind == errorfs.OpLock {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops++
	if c.every == 0 || c.stop.Err() != nil {
		return nil
	}
	if c.wait--; c.wait > 0 {
		return nil
	}
	c.wait = 1 + c.rng.IntN(2*c.every)
	k := &cut{percent: cutPercents[c.rng.IntN(len(cutPercents))]}
	k.what = fmt.Sprintf("power cut before file operation %d (%v %s), %d %% of what was unsynced kept", c.ops, op.Kind, op.Path, k.percent)
	k.before = c.mark()
	k.mem = c.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: k.percent, RNG: c.rng})
	k.after = c.mark()
	select {
	case c.cuts <- k:
	case <-c.stop.Done():
	}
	return nil
}

// newCrashMem returns a file system in memory with a directory for a store, durably.
func newCrashMem(t testing.TB) *vfs.MemFS {
	mem := vfs.NewCrashableMem()
	setUsage(mem)
	if err := errors.Join(mem.MkdirAll("data", 0o700), vfs.SyncDir(mem, "/")); err != nil {
		t.Fatal(err)
	}
	return mem
}

// TestPowerLoss cuts the power again and again while clients write, flush, snapshot, clone, roll back and delete, and judges what is left.
func TestPowerLoss(t *testing.T) {
	for _, seed := range crashSeeds(t, 2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			defer func() {
				if t.Failed() {
					t.Logf("repeat: go test ./blockstore -run 'TestPowerLoss$' -crash.seed=%d", seed)
				}
			}()
			powerLoss(t, seed)
		})
	}
}

func powerLoss(t *testing.T, seed uint64) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	mem := newCrashMem(t)
	c := newCutter(mem, seed)
	var problems crashProblems
	opts := crashOptions(c.fs(), "data/store", &problems)
	opts.smallParts = seed%2 == 0
	s, err := Open(ctx, opts)
	if err != nil {
		t.Fatal(err)
	}
	r := crashtest.NewRecorder(crashConfig, seed, emptyStates(), 1, nil)
	j := &judge{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 78)), v: crashtest.NewVerifier(r, emptyStates())}
	c.begin(ctx, 25, r.Mark)
	done := make(chan error, 1)
	go func() {
		err := crashWork(ctx, s, r, crashSteps)
		stop()
		done <- err
	}()
	for failed := false; !failed; {
		select {
		case k := <-c.cuts:
			if err := j.judge(k); err != nil {
				t.Errorf("cut %d, %s: %v", j.cuts, k.what, err)
				failed = true
			}
		case <-ctx.Done():
			failed = true
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	live, err := crashImage(s)
	if err == nil {
		err = j.v.ProcessDeath(live, r.Mark(), r.Mark())
	}
	if err := errors.Join(err, s.Close(), problems.get()); err != nil {
		t.Errorf("the store whose power was never cut: %v", err)
	}
	t.Logf("%d cuts among %d file operations, %d client operations", j.cuts, c.ops, r.Ops())
}

// judge looks at what cuts left.
type judge struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand
	v    *crashtest.Verifier
	cuts int
}

func (j *judge) judge(k *cut) error {
	j.cuts++
	mem := k.mem
	setUsage(mem)
	if j.rng.IntN(4) == 0 {
		again, err := j.cutInOpen(mem)
		if err != nil {
			return fmt.Errorf("open that is cut short: %w", err)
		}
		if again != nil {
			k.what += ", and once more while it was opened"
			mem = again
		}
	}
	if j.rng.IntN(3) == 0 {
		k.what += ", metadata lost"
		if err := loseMeta(mem, "data/store"); err != nil {
			return err
		}
	}
	var problems crashProblems
	s, err := Open(context.Background(), crashOptions(mem, "data/store", &problems))
	if err != nil {
		return err
	}
	img, err := crashImage(s)
	if err == nil && k.percent == 100 {
		err = j.v.ProcessDeath(img, k.before, k.after)
	}
	if err == nil {
		err = j.v.PowerLoss(img, k.before, k.after)
	}
	if err != nil {
		return errors.Join(err, problems.get(), s.Close())
	}
	if j.rng.IntN(3) == 0 {
		err = j.goOn(&s, img, mem, &problems)
	}
	return errors.Join(err, s.Close(), problems.get())
}

// cutInOpen opens the store and cuts the power somewhere on the way. It returns nil when the open was done before.
func (j *judge) cutInOpen(mem *vfs.MemFS) (*vfs.MemFS, error) {
	left := 1 + j.rng.IntN(60)
	var again *vfs.MemFS
	var mu sync.Mutex
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite {
			if left--; left == 0 {
				again = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: cutPercents[j.rng.IntN(len(cutPercents))], RNG: j.rng})
			}
		}
		return nil
	}))
	var problems crashProblems
	s, err := Open(context.Background(), crashOptions(fs, "data/store", &problems))
	if err != nil {
		return nil, err
	}
	err = errors.Join(s.Close(), problems.get())
	mu.Lock()
	defer mu.Unlock()
	if again == nil {
		again = mem.CrashClone(vfs.CrashCloneCfg{})
	}
	setUsage(again)
	return again, err
}

// goOn works on with a recovered store, settles it, recounts it, and reopens it.
func (j *judge) goOn(s **Store, img *crashtest.Image, mem *vfs.MemFS, problems *crashProblems) error {
	ctx := context.Background()
	r := crashtest.NewRecorder(crashConfig, j.rng.Uint64(), img.Clients, 1_000_000, nil)
	v := crashtest.NewVerifier(r, img.Clients)
	for i := range 30 {
		if err := r.Step(ctx, i%crashClients, crashTarget{*s}); err != nil {
			return fmt.Errorf("go on: %w", err)
		}
	}
	if err := crashSettle(*s); err != nil {
		return fmt.Errorf("go on: %w", err)
	}
	(&model{t: j.t, s: *s}).audit()
	if err := (*s).Close(); err != nil {
		return fmt.Errorf("close after going on: %w", err)
	}
	if j.rng.IntN(3) == 0 {
		if err := loseMeta(mem, "data/store"); err != nil {
			return err
		}
	}
	again, err := Open(ctx, crashOptions(mem, "data/store", problems))
	if err != nil {
		return fmt.Errorf("reopen after going on: %w", err)
	}
	*s = again
	after, err := crashImage(again)
	if err == nil {
		err = v.ProcessDeath(after, r.Mark(), r.Mark())
	}
	if err == nil && j.rng.IntN(2) == 0 {
		err = j.deleteAll(again)
	}
	if err != nil {
		return fmt.Errorf("reopened after going on: %w", err)
	}
	return nil
}

// deleteAll sees that nothing is left of a store whose volumes are all gone.
func (j *judge) deleteAll(s *Store) error {
	ctx := context.Background()
	for _, v := range s.Volumes() {
		snaps, err := s.Snapshots(v.Name)
		for _, snap := range snaps {
			err = errors.Join(err, s.ProtectSnapshot(ctx, v.Name, snap.Name, false))
		}
		if err != nil {
			return err
		}
		if err := s.DeleteVolume(ctx, v.Name); err != nil {
			return err
		}
	}
	if err := crashSettle(s); err != nil {
		return err
	}
	(&model{t: j.t, s: s}).audit()
	if st := s.Stats(); st.UniqueBytes != 0 || st.UndestagedBytes != 0 || st.NonZeroBytes != 0 || len(s.nodes) != 0 {
		return fmt.Errorf("after all volumes were deleted %d nodes are left, unique %d, undestaged %d, referred to %d bytes", len(s.nodes), st.UniqueBytes, st.UndestagedBytes, st.NonZeroBytes)
	}
	return nil
}

// setUsage makes a file system in memory say that it is large and empty.
func setUsage(mem *vfs.MemFS) {
	mem.TestingSetDiskUsage(pebblevfs.DiskUsage{TotalBytes: 1 << 40, AvailBytes: 1 << 40})
}
