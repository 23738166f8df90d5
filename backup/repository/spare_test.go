package repository

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// claim stores a pack that says it holds a chunk and holds other bytes, as somebody may who has a writer's keys.
func claim(t *testing.T, r *Repository, id block.Hash, raw []byte) {
	t.Helper()
	w, err := r.NewWriter(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if err := w.copy(id, raw); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// A chunk is read from wherever it really is: places that claim to hold it, or are damaged, or gone, are passed over.
func TestReaderTriesOtherPlaces(t *testing.T) {
	ctx := context.Background()
	raw := []byte("the true bytes")
	r, m := newTestRepository(t)
	id := dedup.NewHasher(r.Keys().Domain).Sum(raw)
	claim(t, r, id, []byte("forged bytes!!"))
	claim(t, r, id, []byte("short"))
	if err := store(t, r, []byte("another chunk"), 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.NewReader(0).Chunk(ctx, id); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("without a true place: %v", err)
	}
	claim(t, r, id, raw) // a true one
	all := r.index.all()
	truth := all[len(all)-1].name
	for _, what := range []string{"two forged places", "packs of the forged places gone"} {
		fresh := *r
		fresh.index = newIndex()
		if err := fresh.LoadIndex(ctx, nil); err != nil {
			t.Fatal(err)
		}
		if what != "two forged places" {
			for _, p := range all {
				if p.name != truth {
					if err := m.Delete(ctx, packKey(p.name)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}
		d := fresh.NewReader(0)
		for range 2 {
			if got, err := d.Chunk(ctx, id); err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%s: %q, %v", what, got, err)
			}
		}
		if _, ok := d.Cached(id); !ok {
			t.Errorf("%s: what was read is not in memory", what)
		}
	}
}

// A reader whose caller gives up does not take others with it.
func TestReaderCancel(t *testing.T) {
	raw := []byte("a chunk")
	r, m := newTestRepository(t)
	if err := store(t, r, raw, 0, nil); err != nil {
		t.Fatal(err)
	}
	slow := &slowBackend{Memory: m, gate: make(chan struct{})}
	r.backend = slow
	d, id := r.NewReader(0), dedup.NewHasher(r.Keys().Domain).Sum(raw)
	ctx, cancel := context.WithCancel(context.Background())
	first := make(chan error, 1)
	go func() { _, err := d.Chunk(ctx, id); first <- err }()
	for len(d.frames()) == 0 {
		time.Sleep(time.Millisecond)
	}
	second := make(chan error, 1)
	go func() { _, err := d.Chunk(context.Background(), id); second <- err }()
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("who gave up got %v", err)
	}
	close(slow.gate)
	if err := <-second; err != nil {
		t.Errorf("who waited got %v", err)
	}
}

// slowBackend lets reads wait for its gate.
type slowBackend struct {
	*backendtest.Memory
	gate chan struct{}
}

func (b *slowBackend) ReadAt(ctx context.Context, key string, p []byte, off int64) error {
	select {
	case <-b.gate:
		return b.Memory.ReadAt(ctx, key, p, off)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (d *Reader) frames() []frameKey {
	d.mu.Lock()
	defer d.mu.Unlock()
	var keys []frameKey
	for key := range d.mu.frames {
		keys = append(keys, key)
	}
	return keys
}
