package backendtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Run runs the suite. open returns the same place each time, which is empty at first.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	t.Run("Objects", func(t *testing.T) { objects(t, open) })
	t.Run("NothingThere", func(t *testing.T) { nothingThere(t, open(t)) })
	t.Run("Keys", func(t *testing.T) { keys(t, open(t)) })
	t.Run("Race", func(t *testing.T) { race(t, open(t)) })
	t.Run("Cancelled", func(t *testing.T) { cancelled(t, open(t)) })
}

func content(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*i>>3) + seed
	}
	return p
}

func objects(t *testing.T, open func(t *testing.T) backend.Backend) {
	ctx, b := context.Background(), open(t)
	want := map[string][]byte{"config": content(300, 1), "packs/ab/cd01": content(3<<20+17, 2), "packs/ab/cd02": {}, "index/x.y-z_0": content(1, 3)}
	for key, data := range want {
		if err := b.Create(ctx, key, data); err != nil {
			t.Fatal(err)
		}
		if err := b.Create(ctx, key, content(5, 9)); !errors.Is(err, block.ErrExists) {
			t.Errorf("a second object %s: got %v, want %v", key, err, block.ErrExists)
		}
	}
	b = open(t) // what was stored is there for others
	for key, data := range want {
		got := make([]byte, len(data))
		if err := b.ReadAt(ctx, key, got, 0); err != nil || !bytes.Equal(got, data) {
			t.Errorf("object %s differs from what was stored, error %v", key, err)
		}
		o, err := b.Stat(ctx, key)
		if err != nil || o.SizeBytes != int64(len(data)) || o.Key != key || o.Created.IsZero() {
			t.Errorf("stat of %s: %+v, %v", key, o, err)
		}
	}
	part := make([]byte, 1000)
	if err := b.ReadAt(ctx, "packs/ab/cd01", part, 1<<20+5); err != nil || !bytes.Equal(part, want["packs/ab/cd01"][1<<20+5:][:1000]) {
		t.Errorf("a part of an object differs, error %v", err)
	}
	if err := b.ReadAt(ctx, "packs/ab/cd01", part, 3<<20); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a read over the end: got %v, want %v", err, block.ErrCorrupt)
	}
	for prefix, keys := range map[string][]string{
		"":              {"config", "index/x.y-z_0", "packs/ab/cd01", "packs/ab/cd02"},
		"packs/":        {"packs/ab/cd01", "packs/ab/cd02"},
		"packs/ab/cd02": {"packs/ab/cd02"},
		"pack":          {"packs/ab/cd01", "packs/ab/cd02"},
		"manifests/":    nil,
	} {
		if got := listed(t, b, prefix); !slices.Equal(got, keys) {
			t.Errorf("list of %q: got %q, want %q", prefix, got, keys)
		}
	}
	stop := errors.New("enough")
	if err := b.List(ctx, "", func(backend.Object) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("a visit that fails: got %v", err)
	}
	if err := b.Delete(ctx, "packs/ab/cd01"); err != nil {
		t.Error(err)
	}
	if got := listed(t, open(t), "packs/"); !slices.Equal(got, []string{"packs/ab/cd02"}) {
		t.Errorf("after a delete there are %q", got)
	}
	if b.Location() == "" {
		t.Error("it does not say where it is")
	}
}

func listed(t *testing.T, b backend.Backend, prefix string) (keys []string) {
	t.Helper()
	if err := b.List(context.Background(), prefix, func(o backend.Object) error { keys = append(keys, o.Key); return nil }); err != nil {
		t.Error(err)
	}
	slices.Sort(keys)
	return keys
}

func nothingThere(t *testing.T, b backend.Backend) {
	ctx := context.Background()
	_, statErr := b.Stat(ctx, "manifests/none")
	for what, err := range map[string]error{
		"read":                  b.ReadAt(ctx, "manifests/none", make([]byte, 1), 0),
		"stat":                  statErr,
		"delete":                b.Delete(ctx, "manifests/none"),
		"read of a mere prefix": b.ReadAt(ctx, "packs", make([]byte, 1), 0),
	} {
		if err == nil || what != "read of a mere prefix" && !errors.Is(err, block.ErrNotFound) {
			t.Errorf("%s of an object that is not there: got %v, want %v", what, err, block.ErrNotFound)
		}
	}
}

func keys(t *testing.T, b backend.Backend) {
	for _, key := range []string{"", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", "A", "a b", "a\x00", "a/b/c/d/e", "é", string(content(1, 'a')) + string(bytes.Repeat([]byte("a"), 250))} {
		if err := b.Create(context.Background(), key, nil); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("key %q: got %v, want %v", key, err, block.ErrInvalid)
		}
	}
}

// race has many writers store the same key: one of them does, and its bytes are there.
func race(t *testing.T, b backend.Backend) {
	var writers sync.WaitGroup
	var won atomic.Int32
	won.Store(-1)
	for n := range 8 {
		writers.Go(func() {
			err := b.Create(context.Background(), "manifests/race", bytes.Repeat([]byte{byte(n)}, 100_000))
			switch {
			case err == nil && !won.CompareAndSwap(-1, int32(n)):
				t.Errorf("writers %d and %d both stored the object", n, won.Load())
			case err != nil && !errors.Is(err, block.ErrExists):
				t.Errorf("writer %d: %v", n, err)
			}
		})
	}
	writers.Wait()
	got := make([]byte, 100_000)
	if err := b.ReadAt(context.Background(), "manifests/race", got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte(won.Load())}, 100_000)) {
		t.Errorf("the bytes of writer %d are not there whole: %v", won.Load(), err)
	}
}

func cancelled(t *testing.T, b backend.Backend) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.Create(ctx, "manifests/late", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("create: got %v, want %v", err, context.Canceled)
	}
	if _, err := b.Stat(context.Background(), "manifests/late"); !errors.Is(err, block.ErrNotFound) {
		t.Error(fmt.Errorf("what was cancelled is there: %w", err))
	}
}
