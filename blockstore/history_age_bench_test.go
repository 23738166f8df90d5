package blockstore

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// BenchmarkHistoryAttachByAge opens moments of three volumes in one log after 24 simulated hours, by age: every write of an hour, flushes of 4, minutes of 10, then hours. Those are compared of which it is known what the volume was (compared); all are in TestHistoryThinDay. An operation is an attach.
func BenchmarkHistoryAttachByAge(b *testing.B) {
	d := newDay(b, 25, Options{Dir: b.TempDir(), FS: vfs.Default, LogCapBytes: 256 << 20, MemoryBytes: 256 << 20, GCBytesPerSecond: 4 << 30, GCRequestsPerSecond: 1 << 20})
	for _, name := range []string{"a", "b", "c"} {
		d.add(name, 32<<20)
	}
	ctx := context.Background()
	begin := d.clock.Load()
	written, most := int64(0), int64(0)
	for end := begin + int64(24*time.Hour); d.clock.Load() < end; { // 32 blocks every half minute, and a flush, a volume
		for _, v := range d.vols {
			dev, err := d.s.OpenDevice(v.name, "")
			d.must(err)
			batch := make([]block.Write, 32)
			for i := range batch {
				off := d.rng.IntN(len(v.data)/block.Size) * block.Size
				batch[i] = block.Write{Off: uint64(off), Data: guestData(d.rng, block.Size)}
				copy(v.data[off:], batch[i].Data)
				written += block.Size
			}
			d.must(dev.Write(ctx, batch, false))
			d.must(dev.Flush(ctx))
			if d.rng.IntN(10) == 0 { // only these are compared: to hash a volume takes longer than to write
				d.note(v)
			}
			d.must(dev.Close())
		}
		if d.clock.Add(int64(30*time.Second))%int64(10*time.Minute) == 0 {
			d.turn()
			most = max(most, d.s.historian.set.Bytes())
		}
	}
	settleTest(b, d.s)
	b.Logf("%d MiB written, history took %d MiB at most and takes %d MiB; thinning made %d files and gave back %d MiB", written>>20, most>>20, d.s.historian.set.Bytes()>>20, d.s.thinner.files.Load(), d.s.thinner.freed.Load()>>20)
	for _, age := range []time.Duration{time.Minute, 30 * time.Minute, 2 * time.Hour, 3 * time.Hour, 6 * time.Hour, 9 * time.Hour, 14 * time.Hour, 18 * time.Hour, 22 * time.Hour} {
		b.Run(fmt.Sprint("age=", age), func(b *testing.B) {
			var all []time.Duration
			compared := 0
			for b.Loop() {
				v := d.vols[d.rng.IntN(3)]
				at := d.clock.Load() - int64(age) - d.rng.Int64N(int64(age)/25)
				began := time.Now()
				p, err := d.s.OpenPoint(ctx, v.name, Moment{At: time.Unix(0, at)})
				all = append(all, time.Since(began))
				d.must(err)
				b.StopTimer()
				if seq, _, _ := p.Moment(); v.states[seq] != 0 {
					d.same(p, v, seq, fmt.Sprint(v.name, " of ", age, " ago"))
					compared++
				}
				d.must(p.Close())
				b.StartTimer()
			}
			slices.Sort(all)
			b.ReportMetric(float64(all[len(all)-1].Microseconds())/1000, "ms/worst")
			b.ReportMetric(float64(compared), "compared")
		})
	}
}
