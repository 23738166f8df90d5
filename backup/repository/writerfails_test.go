package repository

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// stuck fails, or waits for a cancel, at one of its Creates.
type stuck struct {
	backend.Backend
	at     int64
	fails  error // nil: it waits for the end of the context
	cancel context.CancelFunc
	n      atomic.Int64
}

// Create implements backend.Backend.
func (s *stuck) Create(ctx context.Context, key string, data []byte) error {
	if (strings.HasPrefix(key, packPrefix) || strings.HasPrefix(key, indexPrefix)) && s.n.Add(1) == s.at {
		if s.fails != nil {
			return s.fails
		}
		s.cancel()
		<-ctx.Done()
		return ctx.Err()
	}
	return s.Backend.Create(ctx, key, data)
}

// Whichever object cannot be stored, or is stored when it is all cancelled: a writer that several goroutines use ends, says why, leaves no goroutine, and what it says it has stored is there.
func TestWriterFails(t *testing.T) {
	broken := errors.New("broken")
	for _, cancelled := range []bool{false, true} {
		for at, reached := int64(1), true; reached; at++ {
			t.Run(fmt.Sprint(cancelled, at), func(t *testing.T) {
				r, _ := newTestRepository(t)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				s := &stuck{Backend: r.backend, at: at, cancel: cancel}
				want := context.Canceled
				if !cancelled {
					s.fails, want = broken, broken
				}
				r.backend = s
				before := runtime.NumGoroutine()
				w, err := r.NewWriter(ctx)
				if err != nil {
					t.Fatal(err)
				}
				added := make(map[block.Hash][]byte)
				var mu sync.Mutex
				var adders sync.WaitGroup
				for k := range 3 {
					adders.Go(func() {
						noise := rand.NewChaCha8([32]byte{byte(k)})
						rng := rand.New(noise)
						hasher := dedup.NewHasher(r.keys.Domain)
						for range 14 {
							raw := make([]byte, 1+rng.IntN(2<<20))
							_, _ = noise.Read(raw)
							id := hasher.Sum(raw)
							if _, err := w.Add(id, raw); err != nil {
								if !errors.Is(err, want) {
									t.Errorf("add: %v", err)
								}
								return
							}
							mu.Lock()
							added[id] = raw
							mu.Unlock()
							clear(raw[:len(raw)/2]) // it keeps no byte
							copy(raw, "not this")
						}
					})
				}
				adders.Wait()
				stats, err := w.Close()
				if reached = s.n.Load() >= at; reached != errors.Is(err, want) || !reached && err != nil {
					t.Fatalf("object %d: %v", at, err)
				}
				for range 100 {
					if runtime.NumGoroutine() <= before {
						break
					}
					time.Sleep(10 * time.Millisecond)
				}
				if now := runtime.NumGoroutine(); now > before {
					t.Errorf("%d goroutines, there were %d", now, before)
				}
				if again, err := w.Close(); errors.Is(err, want) != reached || again != stats {
					t.Errorf("closed again: %+v, %v", again, err)
				}
				r.backend = s.Backend
				if reached && stats.Packs > int(at) {
					t.Errorf("%d packs are said to be stored before object %d", stats.Packs, at)
				}
				if !reached && stats.Chunks != len(added) {
					t.Errorf("%d chunks of %d are said to be stored", stats.Chunks, len(added))
				}
				reader, there := r.NewReader(0), 0
				for id := range added {
					if !r.index.Has(id) {
						continue
					}
					there++
					if _, err := reader.Chunk(context.Background(), id); err != nil {
						t.Fatalf("what the index has cannot be read: %v", err)
					}
				}
				if there < stats.Chunks {
					t.Errorf("%d chunks are said to be stored, and %d are there", stats.Chunks, there)
				}
			})
			if at > 40 {
				t.Fatal("it never ends")
			}
		}
	}
}
