package tiers_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
)

var ctx = context.Background()

// watched counts the handles that are open on a backend, and can hold or fail their opening.
type watched struct {
	tiers.Backend
	opens, closes, doubleCloses atomic.Int64
	entered, hold               chan struct{} // if set, Open sends to the first, then waits for the second
	fail                        atomic.Bool
}

func (w *watched) Open(key string) (tiers.Reader, error) {
	if w.hold != nil {
		w.entered <- struct{}{}
		<-w.hold
	}
	if w.fail.Load() {
		return nil, errors.New("device is on fire")
	}
	r, err := w.Backend.Open(key)
	if err != nil {
		return nil, err
	}
	w.opens.Add(1)
	return &watchedReader{Reader: r, w: w}, nil
}

type watchedReader struct {
	tiers.Reader
	w      *watched
	closed atomic.Bool
}

func (r *watchedReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.Reader.ReadAt(p, off)
	if r.closed.Load() {
		return 0, errors.New("read of a closed handle")
	}
	return n, err
}

func (r *watchedReader) Close() error {
	if r.closed.Swap(true) {
		r.w.doubleCloses.Add(1)
	}
	r.w.closes.Add(1)
	return r.Reader.Close()
}

func memTier(t *testing.T) *watched {
	t.Helper()
	b, err := dir.Open(vfs.NewCrashableMem(), "segments")
	if err != nil {
		t.Fatal(err)
	}
	return &watched{Backend: b}
}

func newSet(t *testing.T, o tiers.Options) *tiers.Set {
	t.Helper()
	s, err := tiers.NewSet(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func content(id block.SegmentID) []byte {
	src := rand.NewChaCha8([32]byte{byte(id), byte(id >> 8)})
	p := make([]byte, 4096)
	src.Read(p)
	return p
}

func create(t *testing.T, s *tiers.Set, tier string, id block.SegmentID, data []byte) tiers.Placement {
	t.Helper()
	p, w, err := s.Create(tier, id, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.Write(bytes.Clone(data))
	if err := errors.Join(err, w.Sync(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestReadTriesCopiesInOrder(t *testing.T) {
	hot, cold := memTier(t), memTier(t)
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: hot}, {Name: "cold", Backend: cold}}})
	a := create(t, s, "hot", 1, content(1))
	b := create(t, s, "cold", 1, content(1))
	got := make([]byte, 100)
	read := func(list ...tiers.Placement) error {
		clear(got)
		err := s.ReadAt(ctx, 1, list, got, 50)
		if err == nil && !bytes.Equal(got, content(1)[50:150]) {
			t.Error("wrong bytes")
		}
		return err
	}
	if err := read(a, b); err != nil || cold.opens.Load() != 0 {
		t.Errorf("two live copies: %v, %d opens of the second", err, cold.opens.Load())
	}
	incoming := a
	incoming.State = tiers.Incoming
	if err := read(incoming); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("read of a copy that is not there yet: %v", err)
	}
	damaged := b
	damaged.State = tiers.Damaged
	if err := read(incoming, damaged); err != nil {
		t.Errorf("a damaged copy is better than none: %v", err)
	}
	if err := s.Delete(a); err != nil {
		t.Fatal(err)
	}
	if err := read(a, b); err != nil {
		t.Errorf("first copy deleted: %v", err)
	}
	if err := s.Delete(b); err != nil {
		t.Fatal(err)
	}
	if err := read(a, b); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("both copies deleted: %v", err)
	}
	cold.fail.Store(true)
	if err := read(a, b); errors.Is(err, block.ErrNotFound) || err == nil {
		t.Errorf("one copy gone, the other fails: %v; it must not look like a segment that was deleted", err)
	}
	if err := s.ReadAt(ctx, 1, tiers.PlacementList{{Tier: "lost", Key: a.Key, State: tiers.Live}}, got, 0); err == nil {
		t.Error("read from an unknown tier")
	}
}

func TestShortSegmentIsCorrupt(t *testing.T) {
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: memTier(t)}}})
	p := create(t, s, "hot", 1, content(1))
	err := s.ReadAt(ctx, 1, tiers.PlacementList{p}, make([]byte, 100), 4050)
	if !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("read across the end: %v", err)
	}
}

func TestCheckOpenRefuses(t *testing.T) {
	b := memTier(t)
	stale := &block.CorruptError{Source: "header", Want: "this store", Got: "another"}
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}, CheckOpen: func(id block.SegmentID, _ uint32, r tiers.Reader) error {
		p := make([]byte, 10)
		if _, err := r.ReadAt(p, 0); err != nil || !bytes.Equal(p, content(id)[:10]) {
			return stale
		}
		return nil
	}})
	good := create(t, s, "hot", 1, content(1))
	bad := create(t, s, "hot", 2, content(7))
	p := make([]byte, 10)
	if err := s.ReadAt(ctx, 1, tiers.PlacementList{good}, p, 0); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := s.ReadAt(ctx, 2, tiers.PlacementList{bad}, p, 0); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("a stale file: %v", err)
		}
	}
	if s.OpenHandles() != 1 || b.opens.Load()-b.closes.Load() != 1 {
		t.Errorf("%d handles open", b.opens.Load()-b.closes.Load())
	}
}

func TestHandlesAreBounded(t *testing.T) {
	b := memTier(t)
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}, MaxOpen: 5})
	var lists []tiers.PlacementList
	for id := block.SegmentID(1); id <= 20; id++ {
		lists = append(lists, tiers.PlacementList{create(t, s, "hot", id, content(id))})
	}
	got := make([]byte, 64)
	for range 3 {
		for i, l := range lists {
			if err := s.ReadAt(ctx, block.SegmentID(i+1), l, got, 0); err != nil {
				t.Fatal(err)
			}
			if n := s.OpenHandles(); n > 5 {
				t.Fatalf("%d handles open, bound is 5", n)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if b.opens.Load() != b.closes.Load() || b.doubleCloses.Load() != 0 {
		t.Errorf("%d opens, %d closes, %d of them twice", b.opens.Load(), b.closes.Load(), b.doubleCloses.Load())
	}
	if err := s.ReadAt(ctx, 1, lists[0], got, 0); !errors.Is(err, block.ErrClosed) {
		t.Errorf("read after close: %v", err)
	}
}

func TestOneOpenForManyReaders(t *testing.T) {
	b := memTier(t)
	b.entered, b.hold = make(chan struct{}), make(chan struct{})
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}})
	l := tiers.PlacementList{create(t, s, "hot", 1, content(1))}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.ReadAt(ctx, 1, l, make([]byte, 10), 0); err != nil {
				t.Error(err)
			}
		})
	}
	<-b.entered
	if err := s.TryReadAt(1, l, make([]byte, 10), 0); !errors.Is(err, block.ErrWouldBlock) {
		t.Errorf("try while the segment is being opened: %v", err)
	}
	b.hold <- struct{}{}
	wg.Wait()
	if n := b.opens.Load(); n != 1 {
		t.Errorf("%d opens", n)
	}
}

func TestWaitForAnOpenEndsWithItsContext(t *testing.T) {
	b := memTier(t)
	b.entered, b.hold = make(chan struct{}), make(chan struct{})
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}})
	l := tiers.PlacementList{create(t, s, "hot", 1, content(1))}
	done := make(chan error)
	go func() { done <- s.ReadAt(ctx, 1, l, make([]byte, 10), 0) }()
	<-b.entered // so that the others wait
	go func() { done <- s.ReadAt(ctx, 1, l, make([]byte, 10), 0) }()
	ended, cancel := context.WithCancel(ctx)
	waiter := make(chan error)
	go func() { waiter <- s.ReadAt(ended, 1, l, make([]byte, 10), 0) }()
	cancel()
	if err := <-waiter; !errors.Is(err, context.Canceled) {
		t.Errorf("waiter: %v", err)
	}
	close(b.hold)
	if err := errors.Join(<-done, <-done); err != nil {
		t.Error(err)
	}
}

func TestTryReadAtOnDisk(t *testing.T) {
	b, err := dir.Open(vfs.Default, filepath.Join(t.TempDir(), "segments"))
	if err != nil {
		t.Fatal(err)
	}
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}})
	l := tiers.PlacementList{create(t, s, "hot", 1, content(1))}
	got := make([]byte, 100)
	if err := s.TryReadAt(1, l, got, 0); !errors.Is(err, block.ErrWouldBlock) {
		t.Errorf("no handle is open, yet: %v", err)
	}
	if err := s.ReadAt(ctx, 1, l, got, 0); err != nil {
		t.Fatal(err)
	}
	clear(got)
	switch err := s.TryReadAt(1, l, got, 0); {
	case errors.Is(err, block.ErrWouldBlock):
		t.Log("this file system cannot tell whether a read would wait")
	case err != nil || !bytes.Equal(got, content(1)[:100]):
		t.Errorf("bytes in the page cache: %v", err)
	}
	if n := testing.AllocsPerRun(100, func() { s.TryReadAt(1, l, got, 0) }); n > 1 {
		t.Errorf("%v allocations per TryReadAt", n)
	}
	if err := s.TryReadAt(1, l, got, 4090); !errors.Is(err, block.ErrWouldBlock) {
		t.Errorf("a short segment is for ReadAt to report, yet: %v", err)
	}
}

// Readers must get the right bytes or block.ErrNotFound while segments are created and deleted under them, and no handle may leak.
func TestConcurrentReadAndDelete(t *testing.T) {
	for name, b := range map[string]*watched{"memory": memTier(t), "disk": diskTier(t)} {
		t.Run(name, func(t *testing.T) { readAndDelete(t, b) })
	}
}

func diskTier(t *testing.T) *watched {
	t.Helper()
	b, err := dir.Open(vfs.Default, filepath.Join(t.TempDir(), "segments"))
	if err != nil {
		t.Fatal(err)
	}
	return &watched{Backend: b}
}

func readAndDelete(t *testing.T, b *watched) {
	const segments, readers = 24, 6
	s := newSet(t, tiers.Options{Tiers: []tiers.Tier{{Name: "hot", Backend: b}}, MaxOpen: 4})
	var lists [segments + 1]tiers.PlacementList
	for id := block.SegmentID(1); id <= segments; id++ {
		lists[id] = tiers.PlacementList{create(t, s, "hot", id, content(id))}
	}
	var deleted [segments + 1]atomic.Bool
	var reads atomic.Int64
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for r := range readers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(r), 1))
			got := make([]byte, 512)
			for {
				select {
				case <-stop:
					return
				default:
				}
				id := block.SegmentID(rng.IntN(segments) + 1)
				off := rng.Int64N(3000)
				gone := deleted[id].Load()
				err := s.ReadAt(ctx, id, lists[id], got, off)
				if rng.IntN(2) == 0 && err == nil {
					if terr := s.TryReadAt(id, lists[id], got, off); terr != nil {
						continue
					}
				}
				reads.Add(1)
				switch {
				case err == nil && gone:
					t.Errorf("segment %d was read after its deletion", id)
				case err == nil && !bytes.Equal(got, content(id)[off:off+512]):
					t.Errorf("segment %d: wrong bytes", id)
				case err != nil && !errors.Is(err, block.ErrNotFound):
					t.Errorf("segment %d: %v", id, err)
				}
			}
		})
	}
	for id := block.SegmentID(1); id <= segments; id++ {
		for seen := reads.Load(); reads.Load() < seen+60; {
			if t.Failed() {
				break
			}
		}
		if err := s.Delete(lists[id][0]); err != nil {
			t.Error(err)
		}
		deleted[id].Store(true)
	}
	close(stop)
	wg.Wait()
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if b.opens.Load() != b.closes.Load() || b.doubleCloses.Load() != 0 || s.OpenHandles() != 0 {
		t.Errorf("%d opens, %d closes, %d of them twice, %d left", b.opens.Load(), b.closes.Load(), b.doubleCloses.Load(), s.OpenHandles())
	}
}

func TestNewSetRefuses(t *testing.T) {
	b := memTier(t)
	for _, o := range []tiers.Options{
		{Tiers: []tiers.Tier{{Name: "", Backend: b}}},
		{Tiers: []tiers.Tier{{Name: "a", Backend: nil}}},
		{Tiers: []tiers.Tier{{Name: "a", Backend: b}, {Name: "a", Backend: b}}},
		{MaxOpen: -1},
	} {
		if _, err := tiers.NewSet(o); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}
