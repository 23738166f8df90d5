package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// loaded is a store whose log holds half a GiB of random blocks of volume "v", and whose volume "w" is written to all the time if that is wanted.
type loaded struct {
	b    *testing.B
	s    *Store
	rng  *rand.Rand
	data []byte
	took []time.Duration
}

const loadedVolume = 4 << 30 // bytes

func loadStore(b *testing.B, constant bool) *loaded {
	s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default})
	l := &loaded{b: b, s: s, rng: rand.New(rand.NewPCG(1, 1))}
	l.data = guestData(l.rng, 32*block.Size)
	if err := createTest(b, s, "v", loadedVolume).Close(); err != nil {
		b.Fatal(err)
	}
	w := createTest(b, s, "w", loadedVolume)
	l.burst("v", 512<<20)
	if constant {
		ctx, cancel := context.WithCancel(context.Background())
		var running sync.WaitGroup
		rng := rand.New(rand.NewPCG(2, 2))
		running.Go(func() {
			for ctx.Err() == nil {
				_ = w.Write(ctx, l.batch(rng), false) // ends with ctx
			}
		})
		b.Cleanup(func() { cancel(); running.Wait() })
	}
	return l
}

// batch is what a client at depth 32 sends.
func (l *loaded) batch(rng *rand.Rand) []block.Write {
	batch := make([]block.Write, 32)
	for i := range batch {
		batch[i] = block.Write{Off: rng.Uint64N(loadedVolume/block.Size) * block.Size, Data: l.data[i*block.Size : (i+1)*block.Size]}
	}
	return batch
}

// burst writes random blocks and closes the volume again, as rollback wants it.
func (l *loaded) burst(volume string, n int) {
	l.b.Helper()
	d := deviceTest(l.b, l.s, volume, "")
	for ; n > 0; n -= len(l.data) {
		if err := d.Write(context.Background(), l.batch(l.rng), false); err != nil {
			l.b.Fatal(err)
		}
	}
	if err := d.Close(); err != nil {
		l.b.Fatal(err)
	}
}

// measure runs op once for each iteration, right after a burst of writes.
func (l *loaded) measure(op func(i int) error) {
	l.b.Helper()
	for i := 0; l.b.Loop(); i++ {
		l.b.StopTimer()
		l.burst("v", 4<<20)
		began := time.Now()
		l.b.StartTimer()
		err := op(i)
		l.took = append(l.took, time.Since(began))
		if err != nil {
			l.b.Fatal(err)
		}
	}
	slices.Sort(l.took)
	at := func(percent int) float64 {
		return float64(l.took[(len(l.took)-1)*percent/100].Microseconds()) / 1000
	}
	l.b.ReportMetric(at(50), "p50-ms")
	l.b.ReportMetric(at(99), "p99-ms")
	l.b.ReportMetric(at(100), "max-ms")
}

// BenchmarkLoaded measures what must take less than 10 ms whatever was written just before: snapshot, clone of a snapshot, clone of the present state, rollback.
// -benchtime 128x gives percentiles that mean something.
func BenchmarkLoaded(b *testing.B) {
	ctx := context.Background()
	for _, kind := range []struct {
		name     string
		constant bool
	}{{"burst", false}, {"constant", true}} {
		run := func(name string, op func(l *loaded) func(i int) error) {
			b.Run(kind.name+"/"+name, func(b *testing.B) {
				l := loadStore(b, kind.constant)
				if _, err := l.s.CreateSnapshot(ctx, "v", "s"); err != nil {
					b.Fatal(err)
				}
				l.measure(op(l))
			})
		}
		run("snapshot", func(l *loaded) func(int) error {
			return func(i int) error { _, err := l.s.CreateSnapshot(ctx, "v", fmt.Sprint("s", i)); return err }
		})
		run("clone", func(l *loaded) func(int) error {
			return func(i int) error { _, err := l.s.Clone(ctx, "v", "s", fmt.Sprint("c", i)); return err }
		})
		run("clone-present", func(l *loaded) func(int) error {
			return func(i int) error { _, err := l.s.Clone(ctx, "v", "", fmt.Sprint("c", i)); return err }
		})
		run("rollback", func(l *loaded) func(int) error {
			return func(int) error { return l.s.Rollback(ctx, "v", "s") }
		})
	}
}
