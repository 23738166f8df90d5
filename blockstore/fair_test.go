package blockstore

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// load is a number of writers of one volume, each with one request in flight, and what they got done.
type load struct {
	writers int
	bytes   atomic.Int64
}

// run writes incompressible data at random places until ctx ends.
func (l *load) run(ctx context.Context, t *testing.T, running *sync.WaitGroup, d *Device, size int) {
	for i := range l.writers {
		running.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), uint64(l.writers)))
			p := make([]byte, size)
			for at := 0; at < len(p); at += 8 {
				binary.LittleEndian.PutUint64(p[at:], rng.Uint64())
			}
			for ctx.Err() == nil {
				for at := 0; at < len(p); at += block.Size {
					binary.LittleEndian.PutUint64(p[at:], rng.Uint64()) // no block was there before
				}
				off := rng.Uint64N((d.Size()-uint64(size))/block.Size) * block.Size
				if err := d.Write(ctx, []block.Write{{Off: off, Data: p}}, false); err != nil {
					if ctx.Err() == nil {
						t.Error(err)
					}
					return
				}
				l.bytes.Add(int64(size))
			}
		})
	}
}

// When the log is short, a volume with one request in flight gets its share beside one with many.
func TestVolumesShareTheLogFairly(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	noisy, single := &load{writers: 32}, &load{writers: 1}
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	noisy.run(ctx, t, &running, createTest(t, s, "noisy", 256<<20), 64<<10)
	for s.space.fill.Load() < fillSoft {
		time.Sleep(time.Millisecond)
		s.space.measure()
	}
	single.run(ctx, t, &running, createTest(t, s, "single", 256<<20), 64<<10)
	before, beforeSingle := noisy.bytes.Load(), single.bytes.Load()
	span := 4 * time.Second
	if testing.Short() {
		span = 2 * time.Second
	}
	time.Sleep(span) // the length of the measurement
	many, one := noisy.bytes.Load()-before, single.bytes.Load()-beforeSingle
	stop()
	running.Wait()
	equal := (many + one) / 2
	t.Logf("in %v 32 writers got %d MiB, one writer %d MiB: %.0f %% of an equal share", span, many>>20, one>>20, 100*float64(one)/float64(equal))
	if one < equal/3 {
		t.Errorf("one writer got %d B beside %d B of 32 writers: less than a third of an equal share", one, many)
	}
}

// The queue serves a volume with one waiting write after at most one write of each other volume, whatever these have waiting.
func TestQueueOrder(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	q := &s.space.queue
	q.mu.Lock()
	q.next = time.Now().Add(time.Hour) // nobody is served for now
	noisy := share{next: q.next}       // it had its part
	q.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	single := share{next: noisy.next}
	var waiting sync.WaitGroup
	enqueue := func(sh *share, n int64, want int) {
		waiting.Go(func() {
			if err := q.wait(ctx, sh, n); err != context.Canceled {
				t.Errorf("wait: %v", err)
			}
		})
		for queued := 0; queued < want; {
			time.Sleep(100 * time.Microsecond)
			q.mu.Lock()
			queued = len(q.waiting)
			q.mu.Unlock()
		}
	}
	for i := range 64 {
		enqueue(&noisy, 64<<10, i+1)
	}
	enqueue(&single, 64<<10, 65)
	q.mu.Lock()
	before := 0
	for _, w := range q.waiting {
		if w.tag < single.tag {
			before++
		}
	}
	q.mu.Unlock()
	if before > 1 {
		t.Errorf("%d writes of the other volume go first", before)
	}
	cancel()
	waiting.Wait()
	if len(q.waiting) != 0 {
		t.Errorf("%d writes wait although their callers left", len(q.waiting))
	}
}

// A volume that flushes holds up no writes of another one: appends do not wait for syncs, however long these take.
func TestFlushesDoNotStopOthers(t *testing.T) {
	var slow atomic.Bool
	syncing, goOn := make(chan struct{}, 1), make(chan struct{})
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && strings.HasSuffix(op.Path, ".log") && strings.Contains(op.Path, "/log/") && slow.CompareAndSwap(true, false) {
			syncing <- struct{}{}
			<-goOn
		}
		return nil
	}))
	opts := testOptions(t, fs, t.TempDir())
	opts.DestageAfter, opts.SyncEvery = time.Hour, time.Hour // no other sync
	s := openTest(t, opts)
	quiet, flusher := createTest(t, s, "quiet", 16<<20), createTest(t, s, "flusher", 16<<20)
	p := make([]byte, block.Size)
	var flush <-chan error
	for begun := false; !begun; { // what was written may be synced already, by a checkpoint
		writeTest(t, flusher, 0, p)
		slow.Store(true)
		flush = start(func() error { return flusher.Flush(context.Background()) })
		select {
		case <-syncing:
			begun = true
		case err := <-flush:
			if err != nil {
				t.Fatal(err)
			}
			slow.Store(false)
			select {
			case <-syncing: // of somebody else, who goes on; a flush does not wait for that one
				goOn <- struct{}{}
			default:
			}
		}
	}
	written := start(func() error { // all of them while one sync is under way
		for i := range uint64(500) {
			if err := quiet.Write(context.Background(), []block.Write{{Off: i * block.Size, Data: p}}, false); err != nil {
				return err
			}
		}
		return nil
	})
	select {
	case err := <-written:
		if err != nil {
			t.Error(err)
		}
	case err := <-flush:
		t.Errorf("a flush ended before its sync: %v", err)
	case <-time.After(time.Minute):
		t.Error("writes wait for the sync of another volume's flush")
	}
	close(goOn)
	if err := <-flush; err != nil {
		t.Error(err)
	}
}

// Admission below the soft mark allocates nothing.
func TestAdmissionAllocatesNothing(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 1<<20)
	writeTest(t, d, 0, make([]byte, block.Size)) // looks at the disk
	n := fewestAllocations(1000, func() {
		if err := s.space.tryAdmit(&d.v.share, block.Size); err != nil {
			t.Fatal(err)
		}
		s.space.landed(block.Size)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}
