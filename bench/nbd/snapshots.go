package main

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/bench/wire"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// writesBetween is how many blocks are overwritten before each snapshot.
const writesBetween = 16

// snapshot adds snapshots with the numbers from to below, with random blocks overwritten before each, and returns how long each took.
func (b *bench) snapshot(ctx context.Context, d *daemon, name string, part units.Size, from, below int) (took []float64, err error) {
	w, err := wire.Open(ctx, filepath.Join(d.dir, "nbd.sock"), name)
	if err != nil {
		return nil, err
	}
	defer w.Close()
	seed := uint64(b.nextSeed())
	random := rand.New(rand.NewPCG(seed, 1))
	block := make([]byte, 4096)
	for k := from; k < below; k++ {
		for range writesBetween {
			_, _ = crand.Read(block[:len(block)/2]) // it never fails; the other half stays zero
			if err := w.Do(wire.Write, random.Uint64N(uint64(part)/4096)*4096, 4096, block); err != nil {
				return took, err
			}
		}
		began := time.Now()
		if _, err := client.CreateSnapshot(ctx, d.api, name, fmt.Sprintf("s%d", k)); err != nil {
			return took, err
		}
		took = append(took, time.Since(began).Seconds()*1000)
	}
	return took, nil
}

// manySnapshots compares reads of a volume that has a thousand snapshots with reads of one that has none.
func manySnapshots(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	const count = 1000
	j := find("snapshots")
	// The frames of both volumes fit, so that what is compared is the way to them.
	memory := max(b.o.memory, 1<<30)
	d, err := b.alone(ctx, "p", "--memory", memory.String())
	if err != nil {
		return s, err
	}
	stats, err := d.stats(ctx)
	if err != nil {
		return s, err
	}
	want, have := uint64(b.o.fitSet)*5/2, max(1, frameBudget(stats))
	if have < want {
		memory = units.Size(float64(memory)*float64(want)/float64(have))/(256<<20)*(256<<20) + 256<<20
		if err := d.start(ctx, "--store-log-cap", b.o.logCap.String(), "--memory", memory.String()); err != nil {
			return s, err
		}
	}
	names := []string{"none", "many"}
	for _, name := range names {
		if err := b.fill(ctx, d, name, b.o.fitSet, b.o.fitSet); err != nil {
			return s, err
		}
	}
	took, err := b.snapshot(ctx, d, "many", b.o.fitSet, 0, count)
	if err != nil {
		return s, err
	}
	if err := b.rested(ctx, d); err != nil {
		return s, err
	}
	for _, name := range names {
		if _, err := b.fio(ctx, append(fioArgs(d.uri(name), b.nextSeed(), fields("--rw=randread --bs=4k --iodepth=32")...), fmt.Sprintf("--size=%d", b.o.fitSet))); err != nil {
			return s, err
		}
	}
	var ratios []float64
	s.Table = [][]string{{"pair", "none, p50 µs", "1,000 snapshots, p50 µs", "ratio", "none, IOPS", "1,000 snapshots, IOPS"}}
	for pair := range b.o.pairs + 1 {
		seed := b.nextSeed()
		var got [2]fioResult
		for k, name := range names {
			b.quiet(ctx)
			if got[k], err = b.once(ctx, b.shortened(j, pair), d.uri(name), "", b.o.fitSet, seed); err != nil {
				return s, err
			}
		}
		if pair == 0 {
			continue
		}
		ratios = append(ratios, got[1].P50/got[0].P50)
		s.Table = append(s.Table, []string{fmt.Sprint(pair), fmt.Sprintf("%.2f", got[0].P50), fmt.Sprintf("%.2f", got[1].P50), fmt.Sprintf("%.3f", got[1].P50/got[0].P50),
			fmt.Sprintf("%.0f", got[0].IOPS), fmt.Sprintf("%.0f", got[1].IOPS)})
	}
	sp := spreadOf(took)
	s.State = fmt.Sprintf("two volumes over %s each, all destaged, hvd with --memory %s; before each snapshot %d random blocks of 4 KiB were overwritten; a snapshot took %.2f ms at the median, %.2f at most",
		b.o.fitSet.Human(), memory.Human(), writesBetween, sp.median, sp.most)
	s.Figures = []figure{own("1,000 snapshots / none, p50", ratios, aim{most: true, ratio: 1.05}, b.report.Data)}
	return s, nil
}
