package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// holeTest is a store whose volume "a" has history, on a file system whose writes to some files can be made to fail.
type holeTest struct {
	t      *testing.T
	mem    *vfs.MemFS
	opts   Options
	s      *Store
	d      *Device
	rng    *rand.Rand
	at     uint64
	broken atomic.Pointer[func(errorfs.Op) error]
	gaps   atomic.Int64
}

func newHoleTest(t *testing.T) *holeTest {
	t.Helper()
	x := &holeTest{t: t, mem: historyMem(), rng: rand.New(rand.NewPCG(5, 5))}
	x.opts = testOptions(t, x.fs(x.mem), "store")
	x.opts.LogFileBytes = 256 << 10
	x.opts.Events.HistoryGap = func(string, error) { x.gaps.Add(1) }
	x.opts.Events.Corruption = nil
	x.opts.Events.BackgroundError = func(task string, err error) {
		if x.broken.Load() == nil {
			t.Errorf("background %s: %v", task, err)
		}
	}
	x.s = openTest(t, x.opts)
	x.d = createTest(t, x.s, "a", 8<<20)
	if err := x.s.SetHistory(context.Background(), "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	return x
}

func (x *holeTest) fs(mem vfs.FS) vfs.FS {
	return errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if f := x.broken.Load(); f != nil {
			return (*f)(op)
		}
		return nil
	}))
}

// breaks makes what f says fail from now on; nil: nothing.
func (x *holeTest) breaks(f func(errorfs.Op) error) {
	if f == nil {
		x.broken.Store(nil)
		return
	}
	x.broken.Store(&f)
}

// noState is a disk on which the state of history cannot be replaced.
func noState(op errorfs.Op) error {
	if strings.HasSuffix(op.Path, "history/state.tmp") && op.Kind == errorfs.OpCreate {
		return syscall.ENOSPC
	}
	return nil
}

// write writes n times 64 KiB, each elsewhere, and returns the last record and what the volume is then.
func (x *holeTest) write(n int) (seq uint64, all []byte) {
	x.t.Helper()
	for range n {
		writeTest(x.t, x.d, x.at%(8<<20), guestData(x.rng, 64<<10))
		x.at += 64 << 10
	}
	seq, _ = x.s.log.Last()
	all = make([]byte, 8<<20)
	if _, err := x.d.ReadAt(context.Background(), all, 0, nil); err != nil {
		x.t.Fatal(err)
	}
	return seq, all
}

// never fails if a moment can be had and is another one.
func (x *holeTest) never(s *Store, seq uint64, want []byte) error {
	x.t.Helper()
	p, err := s.OpenPoint(context.Background(), "a", Moment{Seq: seq})
	if err != nil {
		return err
	}
	defer p.Close()
	got := make([]byte, len(want))
	if _, err := p.ReadAt(context.Background(), got, 0, nil); err != nil {
		x.t.Errorf("record %d: %v", seq, err)
	}
	if !bytes.Equal(got, want) {
		x.t.Errorf("record %d is another from byte %d on", seq, firstDiff(got, want))
	}
	return nil
}

// reopened opens what a death of the process leaves, after change.
func (x *holeTest) reopened(left *vfs.MemFS) *Store {
	x.t.Helper()
	setUsage(left)
	opts := x.opts
	opts.FS = x.fs(left)
	return openTest(x.t, opts)
}

// A file of the log that only history waited for is damaged: what comes after the hole must not be had over what lies before it.
func TestHistoryLogDamaged(t *testing.T) {
	x := newHoleTest(t)
	x.write(2)
	h := x.s.historian
	h.work.Lock() // history is behind
	next := h.mu.nextFile
	seq, want := x.write(40)
	settleTest(t, x.s)
	if low := x.s.watermark().File(); low <= next {
		t.Fatalf("the log is needed from file %d on, of which history has not copied from %d on", low, next)
	}
	left := x.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: x.rng})
	h.work.Unlock()

	f, err := vfs.OpenUpdate(left, fmt.Sprintf("store/log/%08x.log", next+1))
	if err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(vfs.WriteVec(f, [][]byte{make([]byte, block.Size)}, info.Size()-block.Size), f.Close()); err != nil {
		t.Fatal(err)
	}
	s := x.reopened(left)
	if err := x.never(s, seq, want); !errors.Is(err, block.ErrNotFound) || x.gaps.Load() != 1 {
		t.Errorf("a moment behind a hole in the log, with %d gaps told: %v", x.gaps.Load(), err)
	}
}

// While what history knows of itself cannot be written down, the log keeps what the next open would need.
func TestHistoryStateNotSaved(t *testing.T) {
	x := newHoleTest(t)
	before, was := x.write(2)
	ctx := context.Background()
	p, err := x.s.OpenPoint(ctx, "a", Moment{Seq: before}) // its root and files do not go
	if err != nil {
		t.Fatal(err)
	}
	h := x.s.historian
	next := h.mu.nextFile // as in the state that is on disk
	vh, err := x.s.historyOf("a")
	if err != nil {
		t.Fatal(err)
	}
	x.breaks(noState)
	h.work.Lock()
	h.gap(vh, errors.New("a test says so"))
	h.work.Unlock()
	seq, want := x.write(40)
	for range 2 {
		settleTest(t, x.s)
		if err := h.step(ctx); err == nil {
			t.Error("a step that cannot be noted is no error")
		}
	}
	left := x.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: x.rng})
	kept := x.s.log.LiveFiles()[0].ID
	if kept > next {
		t.Errorf("the log was released up to file %d, and the next open goes on with %d", kept, next)
	}
	x.breaks(nil)
	s := x.reopened(left)
	_ = x.never(s, before, was)
	if err := x.never(s, seq, want); err != nil && !errors.Is(err, block.ErrNotFound) {
		t.Error(err)
	}
	x.s.historian.kick()
	waitFor(t, "the log to go", func() bool { return x.s.log.LiveFiles()[0].ID > kept })
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// An end of history that cannot be written down is none: it goes on.
func TestHistoryEndNotSaved(t *testing.T) {
	x := newHoleTest(t)
	x.write(2)
	x.breaks(noState)
	if err := x.s.SetHistory(context.Background(), "a", HistoryPolicy{}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("end a history that cannot be forgotten: %v", err)
	}
	x.breaks(nil)
	seq, want := x.write(10)
	if err := x.never(x.s, seq, want); err != nil {
		t.Error(err)
	}
	if err := x.s.SetHistory(context.Background(), "a", HistoryPolicy{}); err != nil {
		t.Error(err)
	}
}

// A file that this process may not or cannot open is not a damaged one: the store says so, and nothing of the history goes.
func TestHistoryNotOpened(t *testing.T) {
	x := newHoleTest(t)
	seq, want := x.write(10)
	if err := x.never(x.s, seq, want); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(x.d.Close(), x.s.Close()); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{".hist", "history/state"} {
		for _, cause := range []error{syscall.EMFILE, syscall.EACCES} {
			x.breaks(func(op errorfs.Op) error {
				if strings.HasSuffix(op.Path, what) && op.Kind == errorfs.OpOpen {
					return cause
				}
				return nil
			})
			if s, err := Open(context.Background(), x.opts); !errors.Is(err, cause) {
				t.Errorf("opened without %s: %v", what, err)
				if err == nil {
					_ = s.Close()
				}
			}
		}
	}
	x.breaks(nil)
	s := openTest(t, x.opts)
	if err := x.never(s, seq, want); err != nil || x.gaps.Load() > 0 {
		t.Errorf("%d gaps, %v", x.gaps.Load(), err)
	}
}

// After a death on a full disk the file that was being filled cannot be sealed, and is read all the same.
func TestHistoryNotSealed(t *testing.T) {
	x := newHoleTest(t)
	seq, want := x.write(10)
	if err := x.never(x.s, seq, want); err != nil {
		t.Fatal(err)
	}
	left := x.mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: x.rng})
	x.breaks(func(op errorfs.Op) error {
		if strings.HasSuffix(op.Path, ".hist") && op.Kind == errorfs.OpFileWriteAt {
			return syscall.ENOSPC
		}
		return nil
	})
	s := x.reopened(left)
	x.breaks(nil)
	if err := x.never(s, seq, want); err != nil || x.gaps.Load() > 0 {
		t.Errorf("%d gaps, %v", x.gaps.Load(), err)
	}
	d := deviceTest(t, s, "a", "")
	x.s, x.d = s, d
	seq2, want2 := x.write(4)
	if err := errors.Join(x.never(s, seq, want), x.never(s, seq2, want2), d.Close(), s.Close()); err != nil {
		t.Error(err)
	}
	opts := x.opts
	opts.FS = left
	s = openTest(t, opts)
	if err := errors.Join(x.never(s, seq, want), x.never(s, seq2, want2)); err != nil || x.gaps.Load() > 0 {
		t.Errorf("when it was opened again: %d gaps, %v", x.gaps.Load(), err)
	}
}

// What is let go is noted before it goes, also when that had failed before.
func TestHistoryLetGoNotSaved(t *testing.T) {
	x := newHoleTest(t)
	x.write(10)
	seq, want := x.write(1)
	if err := x.never(x.s, seq, want); err != nil {
		t.Fatal(err)
	}
	h := x.s.historian
	vh, err := x.s.historyOf("a")
	if err != nil {
		t.Fatal(err)
	}
	h.work.Lock()
	defer h.work.Unlock()
	if err := h.root(vh); err != nil {
		t.Fatal(err)
	}
	if err := vh.stream.Roll(); err != nil {
		t.Fatal(err)
	}
	roots, bytes := h.rootsOf(vh.v), vh.stream.Bytes()
	newest := roots[len(roots)-1].closed
	x.breaks(noState)
	for range 2 {
		if err := h.letGo(vh, newest); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("let go what the state on disk promises: %v", err)
		}
	}
	if left := h.rootsOf(vh.v); len(left) != len(roots) || vh.stream.Bytes() != bytes {
		t.Errorf("%d roots and %d B are left, want %d and %d", len(left), vh.stream.Bytes(), len(roots), bytes)
	}
	x.breaks(nil)
	if err := h.letGo(vh, newest); err != nil {
		t.Fatal(err)
	}
	if left := h.rootsOf(vh.v); len(left) != 1 || vh.stream.Bytes() != 0 {
		t.Errorf("%d roots and %d B are left", len(left), vh.stream.Bytes())
	}
}
