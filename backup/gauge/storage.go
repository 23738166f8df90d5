package gauge

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// prefix is where objects of a measurement are, as docs/format/repository.md says.
const prefix = "bench/"

const (
	leftAfter = time.Hour   // when another one's objects count as left behind
	tidyTime  = time.Minute // for the deletes of a measurement that has ended
	// MaxRequests bounds how many requests are in flight.
	MaxRequests = 64
)

// StorageOptions say what to ask a backend for.
type StorageOptions struct {
	Requests    []int         // in flight, one measurement for each
	ObjectBytes int           // of what is stored; default pack.TargetSize
	ReadBytes   int           // of what is read at once; default 512 KiB, which is a frame, or so
	MostBytes   uint64        // that a measurement stores at most, and reads; default 512 MiB
	Time        time.Duration // that storing may take, and reading, but for what is in flight then; default 5 s
}

func (o StorageOptions) withDefaults() (StorageOptions, error) {
	if o.ObjectBytes == 0 {
		o.ObjectBytes = pack.TargetSize
	}
	if o.ReadBytes == 0 {
		o.ReadBytes = min(512<<10, o.ObjectBytes)
	}
	if o.MostBytes == 0 {
		o.MostBytes = 512 << 20
	}
	if o.Time == 0 {
		o.Time = 5 * time.Second
	}
	for _, n := range o.Requests {
		if n < 1 || n > MaxRequests {
			return o, fmt.Errorf("%d requests in flight: want 1 to %d: %w", n, MaxRequests, block.ErrInvalid)
		}
		if uint64(n)*uint64(o.ObjectBytes) > o.MostBytes {
			return o, fmt.Errorf("%d requests of %d B in flight are more than the %d B that may be stored: %w", n, o.ObjectBytes, o.MostBytes, block.ErrInvalid)
		}
	}
	if len(o.Requests) == 0 || o.ObjectBytes < 1 || o.ObjectBytes > pack.MaxSize || o.ReadBytes < 1 || o.ReadBytes > o.ObjectBytes {
		return o, fmt.Errorf("objects of %d B, reads of %d B, %d measurements: want reads no longer than objects, of at most %d B: %w", o.ObjectBytes, o.ReadBytes, len(o.Requests), pack.MaxSize, block.ErrInvalid)
	}
	return o, nil
}

// Operation is how fast requests of a kind are, with so many in flight.
type Operation struct {
	Rate
	Requests int // in flight
	Count    int
	P50, P99 time.Duration // of one request
	Slowest  time.Duration
}

// StorageResult is one measurement.
type StorageResult struct{ Put, Get, Delete Operation }

// Storage measures a backend. Each measurement deletes what it has stored. After an error there are the results of those before it.
func Storage(ctx context.Context, b backend.Backend, o StorageOptions) (all []StorageResult, err error) {
	if o, err = o.withDefaults(); err != nil {
		return nil, err
	}
	if err := tidy(ctx, b); err != nil {
		return nil, err
	}
	for _, n := range o.Requests {
		one, err := measure(ctx, b, o, n)
		if err != nil {
			return all, fmt.Errorf("with %d in flight: %w", n, err)
		}
		all = append(all, one)
	}
	return all, nil
}

// tidy deletes what measurements left that were killed.
func tidy(ctx context.Context, b backend.Backend) error {
	var left []string
	err := b.List(ctx, prefix, func(o backend.Object) error {
		if time.Since(o.Created) > leftAfter {
			left = append(left, o.Key)
		}
		return nil
	})
	for _, key := range left {
		if deleteErr := b.Delete(ctx, key); !errors.Is(deleteErr, block.ErrNotFound) {
			err = errors.Join(err, deleteErr)
		}
	}
	return err
}

// stored are the objects of a measurement.
type stored struct {
	sync.Mutex
	tried []string // keys that may have an object
	whole []string // keys that do
}

func measure(ctx context.Context, b backend.Backend, o StorageOptions, requests int) (r StorageResult, err error) {
	var s stored
	defer func() { // also when ctx has ended
		tidying, cancel := context.WithTimeout(context.WithoutCancel(ctx), tidyTime)
		defer cancel()
		var deleteErr error
		r.Delete, _ = inFlight(tidying, requests, len(s.tried), tidyTime, func(n int) (int, error) {
			if err := b.Delete(tidying, s.tried[n]); err != nil && !errors.Is(err, block.ErrNotFound) {
				s.Lock()
				deleteErr = err // the others are deleted all the same
				s.Unlock()
			}
			return 0, nil
		})
		if deleteErr != nil {
			deleteErr = fmt.Errorf("delete what the measurement stored under %s in %s: %w; the next one an hour from now does", prefix, b.Location(), deleteErr)
		}
		err = errors.Join(err, deleteErr)
	}()
	data := make([]byte, o.ObjectBytes)
	_, _ = crand.Read(data) // documented never to fail
	session := make([]byte, 12)
	_, _ = crand.Read(session)
	r.Put, err = inFlight(ctx, requests, int(o.MostBytes/uint64(o.ObjectBytes)), o.Time, func(n int) (int, error) {
		key := fmt.Sprintf("%s%s%08x", prefix, hex.EncodeToString(session), n)
		s.Lock()
		s.tried = append(s.tried, key)
		s.Unlock()
		if err := b.Create(ctx, key, data); err != nil {
			return 0, err
		}
		s.Lock()
		s.whole = append(s.whole, key)
		s.Unlock()
		return len(data), nil
	})
	if err != nil {
		return r, err
	}
	r.Get, err = inFlight(ctx, requests, int(o.MostBytes/uint64(o.ReadBytes)), o.Time, func(n int) (int, error) {
		off := rand.N(o.ObjectBytes - o.ReadBytes + 1)
		p := make([]byte, o.ReadBytes)
		if err := b.ReadAt(ctx, s.whole[n%len(s.whole)], p, int64(off)); err != nil {
			return 0, err
		}
		if !slices.Equal(p[:min(64, len(p))], data[off:off+min(64, len(p))]) {
			return 0, fmt.Errorf("read %d B at %d of an object: other bytes than were stored: %w", len(p), off, block.ErrCorrupt)
		}
		return len(p), nil
	})
	return r, err
}

// inFlight calls do with 0, 1 and so on, up to most, so many at once, until it has taken so long.
func inFlight(ctx context.Context, requests, most int, atMost time.Duration, do func(n int) (bytes int, err error)) (o Operation, err error) {
	o.Requests = requests
	g, ctx := errgroup.WithContext(ctx)
	var mu struct {
		sync.Mutex
		next  int
		bytes uint64
		took  []time.Duration
	}
	began := time.Now()
	for range requests {
		g.Go(func() error {
			for {
				mu.Lock()
				n := mu.next
				mu.next++
				mu.Unlock()
				if n >= most || n >= requests && time.Since(began) >= atMost {
					return nil
				}
				if err := ctx.Err(); err != nil {
					return err
				}
				start := time.Now()
				bytes, err := do(n)
				if err != nil {
					return err
				}
				mu.Lock()
				mu.bytes += uint64(bytes)
				mu.took = append(mu.took, time.Since(start))
				mu.Unlock()
			}
		})
	}
	err = g.Wait()
	o.Bytes, o.Seconds, o.Count = mu.bytes, time.Since(began).Seconds(), len(mu.took)
	slices.Sort(mu.took)
	if n := len(mu.took); n > 0 {
		o.P50, o.P99, o.Slowest = mu.took[n/2], mu.took[n*99/100], mu.took[n-1]
	}
	return o, err
}
