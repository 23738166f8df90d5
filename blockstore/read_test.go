package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/framecache"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
)

// countedTier counts the reads of a tier's segments, holds them up, and fails them if it is told to.
type countedTier struct {
	tiers.Backend
	reads, bytes, ahead atomic.Int64
	gate                atomic.Pointer[chan struct{}] // reads wait until it is closed
	never               atomic.Bool                   // nothing is in memory
}

type countedReader struct {
	tiers.Reader
	t *countedTier
}

func (t *countedTier) Open(key string) (tiers.Reader, error) {
	r, err := t.Backend.Open(key)
	if err != nil {
		return nil, err
	}
	return &countedReader{r, t}, nil
}

func (r *countedReader) ReadAt(p []byte, off int64) (int, error) {
	if gate := r.t.gate.Load(); gate != nil {
		<-*gate
	}
	r.t.reads.Add(1)
	r.t.bytes.Add(int64(len(p)))
	return r.Reader.ReadAt(p, off)
}

func (r *countedReader) TryReadAt(p []byte, off int64) error {
	if r.t.never.Load() {
		return block.ErrWouldBlock
	}
	return r.Reader.TryReadAt(p, off)
}

func (r *countedReader) Prefetch(off, n int64) { r.t.ahead.Add(n) }

// coldVolume is a destaged volume of random data none of whose frames is in the cache, over a tier that counts.
func coldVolume(t *testing.T, size int) (*Store, *Device, *countedTier, []byte) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	d := createTest(t, s, "v", uint64(size))
	data := guestData(rand.New(rand.NewPCG(5, 6)), size)
	for off := 0; off < size; off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	settleTest(t, s)
	backend, err := dir.Open(s.fs, s.path("segments"))
	if err != nil {
		t.Fatal(err)
	}
	counted := &countedTier{Backend: backend}
	set, err := tiers.NewSet(tiers.Options{Tiers: []tiers.Tier{{Name: defaultTier, Backend: counted}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.tiers.Close(); err != nil {
		t.Fatal(err)
	}
	s.tiers = set
	if err := s.chunks.frames.Close(); err != nil {
		t.Fatal(err)
	}
	s.chunks.frames = framecache.New(s.plan.frames)
	return s, d, counted, data
}

// TestNeighboursAreReadAtOnce reads 1 MiB: far fewer reads of the device than frames.
func TestNeighboursAreReadAtOnce(t *testing.T) {
	_, d, tier, data := coldVolume(t, 8<<20)
	expect(t, d, 1<<20, data[1<<20:2<<20])
	if n := tier.reads.Load(); n == 0 || n > 8 {
		t.Errorf("%d reads for 1 MiB", n)
	}
}

// TestOneReadForAllWhoWait has 16 readers ask for one block at the same time, while the device stands still.
func TestOneReadForAllWhoWait(t *testing.T) {
	s, d, tier, data := coldVolume(t, 1<<20)
	gate := make(chan struct{})
	tier.gate.Store(&gate)
	var readers sync.WaitGroup
	for range 16 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			p := make([]byte, block.Size)
			if _, err := d.ReadAt(context.Background(), p, 64<<10, nil); err != nil || !bytes.Equal(p, data[64<<10:][:block.Size]) {
				t.Errorf("other bytes, or %v", err)
			}
		}()
	}
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		s.chunks.flights.mu.Lock()
		waits := s.chunks.flights.waits
		s.chunks.flights.mu.Unlock()
		if waits >= 15 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d of 15 wait", waits)
		}
	}
	close(gate)
	readers.Wait()
	if n := tier.reads.Load(); n != 1 {
		t.Errorf("%d reads of one frame", n)
	}
	if len(s.chunks.flights.frames) != 0 {
		t.Error("a frame is still claimed")
	}
}

// TestWaiterLeavesWithItsContext cancels a reader that waits for another one's read.
func TestWaiterLeavesWithItsContext(t *testing.T) {
	s, d, tier, _ := coldVolume(t, 1<<20)
	gate := make(chan struct{})
	tier.gate.Store(&gate)
	first := make(chan error)
	go func() {
		_, err := d.ReadAt(context.Background(), make([]byte, block.Size), 0, nil)
		first <- err
	}()
	flights := &s.chunks.flights
	waitFor(t, "the first one reads", func() bool {
		flights.mu.Lock()
		defer flights.mu.Unlock()
		return len(flights.frames) > 0
	})
	ctx, cancel := context.WithCancel(context.Background())
	second := start(func() error { _, err := d.ReadAt(ctx, make([]byte, block.Size), 0, nil); return err })
	waitFor(t, "the second one waits for it", func() bool {
		flights.mu.Lock()
		defer flights.mu.Unlock()
		return flights.waits > 0
	})
	cancel()
	if err := <-second; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that waits, and need not any more: %v", err)
	}
	close(gate)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

// TestReadersOfAllSizes reads ranges of random places and lengths at once from several goroutines, against the data, with a cache that holds a part of it.
func TestReadersOfAllSizes(t *testing.T) {
	s, d, tier, data := coldVolume(t, 16<<20)
	s.chunks.frames = framecache.New(4 << 20)
	var readers sync.WaitGroup
	for g := range 4 {
		readers.Add(1)
		go func() {
			defer readers.Done()
			rng := rand.New(rand.NewPCG(9, uint64(g)))
			for i := range 150 {
				n := 1 + rng.IntN(1<<(8+rng.IntN(13)))
				off := rng.IntN(len(data) - n)
				p := make([]byte, n)
				tier.never.Store(i%3 == 0)
				_, err := d.TryReadAt(p, uint64(off), nil)
				if errors.Is(err, block.ErrWouldBlock) {
					_, err = d.ReadAt(context.Background(), p, uint64(off), nil)
				}
				if err != nil || !bytes.Equal(p, data[off:off+n]) {
					t.Errorf("%d B at %d: other bytes, or %v", n, off, err)
					return
				}
			}
		}()
	}
	readers.Wait()
	if len(s.chunks.helpers) != 0 {
		t.Errorf("%d helpers were not given back", len(s.chunks.helpers))
	}
}

// TestDamageIsToldByLongReads flips a byte in the middle of the segments and reads everything at once: the damage is an error, in whichever part of the read it lies.
func TestDamageIsToldByLongReads(t *testing.T) {
	s, d, _, data := coldVolume(t, 8<<20)
	told := atomic.Int64{}
	s.opts.Events.Corruption = func(error) { told.Add(1) }
	files, err := filepath.Glob(filepath.Join(s.path("segments"), "*", "*.seg"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for at := len(b) / 2; at < len(b)/2+(64<<10) && at < len(b); at += 4 << 10 {
			b[at] ^= 1
		}
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, step := range []int{len(data), block.Size} {
		failed := 0
		for off := 0; off < len(data); off += step {
			p := make([]byte, step)
			_, err := d.ReadAt(context.Background(), p, uint64(off), nil)
			switch {
			case errors.Is(err, block.ErrCorrupt):
				failed++
			case err != nil:
				t.Fatal(err)
			case !bytes.Equal(p, data[off:off+step]):
				t.Fatalf("wrong bytes at %d", off)
			}
		}
		if failed == 0 || told.Load() == 0 {
			t.Errorf("reads of %d B: %d failed, %d events", step, failed, told.Load())
		}
	}
}

// TestReadsAhead reads from front to back and then all over: the first is read ahead for, the other is not.
func TestReadsAhead(t *testing.T) {
	s, d, tier, _ := coldVolume(t, 32<<20)
	p := make([]byte, 64<<10)
	for off := uint64(0); off < 8<<20; off += uint64(len(p)) {
		if _, err := d.ReadAt(context.Background(), p, off, nil); err != nil {
			t.Fatal(err)
		}
		d.streams.running.Wait()
	}
	if n := tier.ahead.Load(); n < 4<<20 {
		t.Errorf("%d B read ahead of 8 MiB of half compressible data", n)
	}
	began := d.streams.begun
	other := deviceTest(t, s, "v", "")
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		if _, err := other.ReadAt(context.Background(), p[:block.Size], rng.Uint64N(32<<20/block.Size)*block.Size, nil); err != nil {
			t.Fatal(err)
		}
	}
	other.streams.running.Wait()
	if other.streams.begun > 1 || d.streams.begun != began {
		t.Errorf("random reads began %d windows", other.streams.begun)
	}
}

// TestStreams tells readers apart.
func TestStreams(t *testing.T) {
	var s streams
	done := func() {
		if s.busy {
			s.ended()
		}
	}
	const step = 128 << 10
	// Two readers in turns, each with its own place.
	a, b := uint64(0), uint64(1<<40)
	for range 40 {
		s.follow(a, step, true)
		done()
		s.follow(b, step, true)
		done()
		a, b = a+step, b+step
	}
	if s.begun < 4 {
		t.Errorf("%d windows for two readers of 5 MiB", s.begun)
	}
	for i := range s.known {
		if k := s.known[i]; k.run > 0 && k.ahead > k.next+aheadMost {
			t.Errorf("%d B ahead", k.ahead-k.next)
		}
	}
	// Reads from memory begin no stream, and after many of them nobody looks for streams any more.
	began := s.begun
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		s.follow(1<<50+rng.Uint64N(1<<40), block.Size, false)
	}
	if s.begun != began || s.active.Load() {
		t.Error("random reads from memory count as a stream")
	}
}
