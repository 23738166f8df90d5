package backup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// newDevice backs up an image and opens the backup as a disk with a small cache.
func newDevice(t *testing.T, p *place, data []byte) *Device {
	t.Helper()
	m, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	d, err := NewDevice(p.open(), m, 4<<20)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// A device reads what was backed up, at any place and from several goroutines, and what it calls a hole is zero.
func TestDeviceReads(t *testing.T) {
	p, _ := newMemoryPlace(t)
	data := image(21, 2*RegionSize+777)
	copy(data[RegionSize:], make([]byte, RegionSize/2)) // a hole that begins with a region
	d := newDevice(t, p, data)
	if d.Size() != uint64(len(data)) || !d.ReadOnly() {
		t.Errorf("the device has %d B, read-only %v", d.Size(), d.ReadOnly())
	}
	var wait sync.WaitGroup
	for worker := range 4 {
		wait.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(worker), 5))
			for next := 0; next < 300; next++ {
				off := rng.IntN(len(data))
				got := make([]byte, 1+rng.IntN(min(len(data)-off, 1<<uint(rng.IntN(22)))))
				if worker == 0 { // one reads on and on
					off, got = min(next*65536, len(data)-65536), make([]byte, 65536)
				}
				rng.Uint64()
				holes, err := d.TryReadAt(got, uint64(off), nil)
				if errors.Is(err, block.ErrWouldBlock) {
					holes, err = d.ReadAt(context.Background(), got, uint64(off), nil)
				}
				if err != nil || !bytes.Equal(got, data[off:off+len(got)]) {
					t.Errorf("%d B at %d: other bytes than were backed up, %v", len(got), off, err)
					return
				}
				last := uint64(0)
				for _, h := range holes {
					if h.Off < last || h.Off < uint64(off) || h.End() > uint64(off+len(got)) || len(bytes.Trim(data[h.Off:h.End()], "\x00")) > 0 {
						t.Errorf("%d B at %d: %+v is no hole", len(got), off, h)
					}
					last = h.End() + 1
				}
			}
		})
	}
	wait.Wait()
	for _, off := range []uint64{uint64(len(data) - 1), uint64(len(data)), 3*RegionSize + 5, 1 << 62} {
		if _, err := d.ReadAt(context.Background(), make([]byte, 2), off, nil); !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("a read at %d, beyond the end: %v", off, err)
		}
	}
	if err := d.Write(context.Background(), nil, false); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("a write: %v", err)
	}
}

// Statuses cover what is asked for, in sectors, and what they call zero is.
func TestDeviceStatus(t *testing.T) {
	p, _ := newMemoryPlace(t)
	data := image(22, 2*RegionSize+12345)
	copy(data[RegionSize:2*RegionSize], make([]byte, RegionSize))
	d := newDevice(t, p, data)
	holes := 0
	for at := uint64(0); at < d.Size(); {
		from := at
		err := d.BlockStatus(context.Background(), nbd.ContextAllocation, block.Range{Off: at, Len: d.Size() - at}, func(n uint64, status uint32) bool {
			if status != 0 {
				holes += int(n)
				if len(bytes.Trim(data[at:at+n], "\x00")) > 0 {
					t.Errorf("%d B at %d are called zero", n, at)
				}
			}
			if at += n; at%block.SectorSize != 0 && at != d.Size() {
				t.Errorf("a run ends at %d", at)
			}
			return true
		})
		if err != nil || at == from || at > d.Size() {
			t.Fatalf("from %d to %d of %d, %v", from, at, d.Size(), err)
		}
	}
	if holes < RegionSize {
		t.Errorf("%d B of holes, and a region has none but zeroes", holes)
	}
	if err := d.BlockStatus(context.Background(), "x:y", block.Range{Len: 1}, nil); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("another context: %v", err)
	}
}

// A read that needs what is damaged fails and says where that is; others go on.
func TestDeviceDamage(t *testing.T) {
	p, m := newMemoryPlace(t)
	data := noise(23, RegionSize)
	d := newDevice(t, p, data)
	ctx := context.Background()
	var pack backend.Object // the first has no pages
	_ = m.List(ctx, "packs/", func(o backend.Object) error {
		if o.SizeBytes > 8<<20 {
			pack = o
		}
		return nil
	})
	whole := make([]byte, pack.SizeBytes)
	if err := m.ReadAt(ctx, pack.Key, whole, 0); err != nil {
		t.Fatal(err)
	}
	whole[5<<20] ^= 1
	if err := errors.Join(m.Delete(ctx, pack.Key), m.Create(ctx, pack.Key, whole)); err != nil {
		t.Fatal(err)
	}
	bad := 0
	for off := 0; off < len(data); off += 4096 {
		got := make([]byte, 4096)
		_, err := d.ReadAt(ctx, got, uint64(off), nil)
		switch {
		case err == nil && !bytes.Equal(got, data[off:off+4096]):
			t.Fatalf("other bytes at %d", off)
		case err != nil && (!errors.Is(err, block.ErrCorrupt) || !strings.Contains(err.Error(), pack.Key[len("packs/xx/"):]+", frame 2 at ")):
			t.Fatalf("the error is %v", err)
		case err != nil:
			bad += 4096
		}
	}
	if bad < 2<<20 || bad > 2<<20+128<<10 {
		t.Errorf("one frame is damaged, and %d B cannot be read", bad)
	}
}

// meeting lets reads of frames wait until some are under way at once.
type meeting struct {
	backend.Backend
	begun  atomic.Bool
	wanted chan struct{} // one for each read that has come
	met    chan struct{} // closed when enough have
}

func (b *meeting) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	if b.begun.Load() && len(p) > 500_000 {
		select {
		case b.wanted <- struct{}{}:
		default:
		}
		select {
		case <-b.met:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return b.Backend.ReadAt(ctx, key, p, off)
}

// A read that spans frames fetches several at once, though each has many chunks of it.
func TestDeviceFetchesFramesAtOnce(t *testing.T) {
	p, _ := newMemoryPlace(t)
	data := noise(24, RegionSize)
	m, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	const together = 4
	b := &meeting{wanted: make(chan struct{}, together), met: make(chan struct{})}
	p.wrap = func(below backend.Backend) backend.Backend { b.Backend = below; return b }
	d, err := NewDevice(p.open(), m, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // if they do not meet
	defer cancel()
	go func() {
		for range together {
			select {
			case <-b.wanted:
			case <-ctx.Done():
				return
			}
		}
		close(b.met)
	}()
	got := make([]byte, len(data))
	if _, err := d.ReadAt(ctx, got[:1], 0, nil); err != nil { // the page
		t.Fatal(err)
	}
	b.begun.Store(true)
	if _, err := d.ReadAt(ctx, got, 0, nil); err != nil || !bytes.Equal(got, data) {
		t.Errorf("frames are fetched one after the other: %v", err)
	}
}

// A stream is followed, also out of order, and nothing is read ahead for reads here and there.
func TestReadahead(t *testing.T) {
	a := &readahead{window: 8 << 20, queue: make(chan block.Range, 1000)}
	for off := uint64(0); off < 16<<20; off += 128 << 10 {
		a.note(off^(128<<10), 128<<10) // two connections
	}
	asked := uint64(0)
	for len(a.queue) > 0 {
		r := <-a.queue
		if r.Off < asked {
			t.Errorf("%+v was asked for before", r)
		}
		asked = r.End()
	}
	if asked < 23<<20 || asked > 24<<20 {
		t.Errorf("at 16 MiB everything before %d was asked for", asked)
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		a.note(rng.Uint64N(1<<40), 4096)
	}
	if len(a.queue) > 0 {
		t.Errorf("%d ranges were asked for", len(a.queue))
	}
}
