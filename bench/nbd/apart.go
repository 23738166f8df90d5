package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/bench/wire"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// apartJobs are measured in ways of their own, mostly of hvd against itself; --job all has them too.
func apartJobs() []job {
	return []job{
		{name: "reduction", title: "4 KiB random overwrite of a hot tenth, depth 32: reduction on / off", fio: random4K + "--rw=randwrite --iodepth=32", seconds: 60, apart: reductionCost},
		{name: "ten", title: "4 KiB random write, depth 32 each: ten volumes at once / one", fio: random4K + "--rw=randwrite --iodepth=32", seconds: 60, apart: tenVolumes},
		{name: "noisy", title: "4 KiB random write, ten volumes at once: one is noisy", fio: random4K + "--rw=randwrite", seconds: 60, apart: noisyVolume},
		{name: "idle", title: "1,000 idle connections", apart: idleConnections},
		{name: "snapshots", title: "4 KiB random read, depth 1, p50: 1,000 snapshots / none", fio: random4K + "--rw=randread --iodepth=1", seconds: 20, apart: manySnapshots},
		{name: "operations", title: "Snapshot, clone and rollback of 1 TiB, by the API and by command", apart: operations},
		{name: "curve-size", title: "Cost by size of a volume, sparse", fio: random4K + "--iodepth=32", seconds: 10, apart: sizeCurve},
		{name: "curve-snapshots", title: "Cost by number of snapshots", fio: random4K + "--iodepth=32", seconds: 10, apart: snapshotCurve},
		{name: "curve-volumes", title: "Cost by number of volumes", fio: random4K + "--iodepth=32", seconds: 10, apart: volumeCurve},
	}
}

// find returns the job of a name, for the parts that need its arguments.
func find(name string) job {
	all := slices.Concat(tableJobs(), apartJobs())
	return all[slices.IndexFunc(all, func(j job) bool { return j.name == name })]
}

// alone ends the servers of the comparison, and starts an hvd with an empty store.
func (b *bench) alone(ctx context.Context, name string, settings ...string) (*daemon, error) {
	var all error
	for _, p := range b.peers {
		all = errors.Join(all, p.remove())
	}
	b.peers = nil
	if b.hvd != nil {
		all = errors.Join(all, b.hvd.remove())
		b.hvd = nil
	}
	if all != nil {
		return nil, all
	}
	d := b.newDaemon(name)
	b.extra = append(b.extra, d)
	args := []string{"--store-log-cap", b.o.logCap.String()}
	if b.o.memory != 0 {
		args = append(args, "--memory", b.o.memory.String())
	}
	return d, d.start(ctx, append(args, settings...)...)
}

// leave ends the daemons of a job apart, and removes their stores.
func (b *bench) leave() error {
	var all error
	for _, d := range b.extra {
		all = errors.Join(all, d.remove())
	}
	b.extra = nil
	return all
}

// fill makes a volume and writes its first part once.
func (b *bench) fill(ctx context.Context, d *daemon, name string, size, part units.Size) error {
	if err := d.volume(ctx, name, size); err != nil {
		return err
	}
	args := append(fioArgs(d.uri(name), b.nextSeed(), fields(sequential1M+"--rw=write")...), fmt.Sprintf("--size=%d", part))
	_, err := b.fio(ctx, args)
	return err
}

// once does a timed job and returns its first result.
func (b *bench) once(ctx context.Context, j job, uri, shape string, part units.Size, seed int) (fioResult, error) {
	args := append(fioArgs(uri, seed, fields(j.fio+" "+shape)...), fmt.Sprintf("--size=%d", part), "--time_based", fmt.Sprintf("--runtime=%d", b.duration(j)))
	results, err := b.fio(ctx, args)
	if err != nil {
		return fioResult{}, err
	}
	return results[0], nil
}

// rested settles a daemon's store and waits until it is quiet.
func (b *bench) rested(ctx context.Context, d *daemon) error {
	if err := d.settle(ctx); err != nil {
		return err
	}
	b.quiet(ctx)
	return ctx.Err()
}

// own is the figure of a job of hvd against itself.
func own(what string, ratios []float64, a aim, data dataCheck, void ...string) figure {
	f := figure{What: what, Ratios: ratios, Void: void}
	if data.UniqueShare < leastUnique {
		f.Void = append(f.Void, "fio's blocks have copies")
	}
	f.judge(a)
	return f
}

// idleConnections opens a thousand connections that have read once.
func idleConnections(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	d, err := b.alone(ctx, "i")
	if err != nil {
		return s, err
	}
	if err := b.fill(ctx, d, disk, b.o.fitSet, b.o.fitSet); err != nil {
		return s, err
	}
	if err := b.rested(ctx, d); err != nil {
		return s, err
	}
	const count, mostMiB = 1000, 64
	before, err := d.proc.group.usage()
	if err != nil {
		return s, err
	}
	began := time.Now()
	block := make([]byte, 4096)
	for k := range count {
		w, err := wire.Open(ctx, filepath.Join(d.dir, "nbd.sock"), disk)
		if err != nil {
			return s, fmt.Errorf("connection %d: %w", k+1, err)
		}
		defer w.Close()
		if err := w.Do(wire.Read, uint64(k)*uint64(len(block)), uint32(len(block)), block); err != nil {
			return s, err
		}
	}
	opened := time.Since(began)
	if err := sleep(ctx, 5*time.Second); err != nil {
		return s, err
	}
	after, err := d.proc.group.usage()
	if err != nil {
		return s, err
	}
	grown := float64(after.anon-before.anon) / (1 << 20)
	s.Table = [][]string{{"connections", "opened and read from in", "anonymous MiB before", "after 5 s of rest", "more"},
		{fmt.Sprint(count), fmt.Sprintf("%.2f s", opened.Seconds()), fmt.Sprintf("%.1f", float64(before.anon)/(1<<20)), fmt.Sprintf("%.1f", float64(after.anon)/(1<<20)), fmt.Sprintf("%.1f", grown)}}
	f := own("MiB of 1,000 idle connections, each of which has read 4 KiB", []float64{grown}, aim{most: true, ratio: mostMiB}, dataCheck{UniqueShare: 1})
	f.Aim = fmt.Sprintf("under %d MiB", mostMiB)
	s.Figures = []figure{f}
	s.Accounting = d.proc.group.how()
	return s, nil
}

// reductionCost compares hvd with one that never destages, since its log takes all of a run: that is what reduction off comes to.
func reductionCost(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("reduction")
	hot := b.o.set / 10 / (1 << 20) << 20
	const rawLog = 24 << 30 // 60 s at 400 MB/s
	if free, err := freeBytes(b.dir); err != nil || free < rawLog+8<<30 {
		return section{Notes: []string{"skipped: the log that never destages needs 32 GiB of free space"}}, err
	}
	on, err := b.alone(ctx, "on")
	if err != nil {
		return s, err
	}
	off := b.newDaemon("off")
	b.extra = append(b.extra, off)
	if err := off.start(ctx, "--store-log-cap", units.Size(rawLog).String(), "--store-destage-after", "24h", "--store-stream-room", "0"); err != nil {
		return s, err
	}
	for _, d := range []*daemon{on, off} {
		if err := b.fill(ctx, d, disk, b.o.set, b.o.set); err != nil {
			return s, err
		}
	}
	var ratios []float64
	var void []string
	s.Table = [][]string{{"pair", "reduction on, IOPS", "off, IOPS", "on / off", "undestaged after on", "stored meanwhile by off, MB"}}
	for pair := range b.o.pairs + 1 {
		seed := b.nextSeed()
		var got [2]fioResult
		var left, stored uint64
		for k, d := range []*daemon{on, off} {
			if err := b.rested(ctx, d); err != nil {
				return s, err
			}
			before, err := d.stats(ctx)
			if err != nil {
				return s, err
			}
			if got[k], err = b.once(ctx, b.shortened(j, pair), d.uri(disk), "", hot, seed); err != nil {
				return s, err
			}
			after, err := d.stats(ctx)
			if err != nil {
				return s, err
			}
			if d == on {
				left = after.UndestagedBytes
			} else {
				stored = after.StoredBytes - min(after.StoredBytes, before.StoredBytes)
			}
		}
		if pair == 0 {
			continue
		}
		if stored > 1<<20 {
			void = append(void, "the one with reduction off has reduced")
		}
		ratios = append(ratios, got[0].IOPS/got[1].IOPS)
		s.Table = append(s.Table, []string{fmt.Sprint(pair), fmt.Sprintf("%.0f", got[0].IOPS), fmt.Sprintf("%.0f", got[1].IOPS), fmt.Sprintf("%.3f", got[0].IOPS/got[1].IOPS),
			units.Size(left).Human(), fmt.Sprintf("%.1f", float64(stored)/1e6)})
	}
	s.State = fmt.Sprintf("two stores, each with %s written once; the job overwrites the first %s. On: hvd as set. Off, which hvd has no switch for: a log of %s that nothing leaves (destage-after 24h, stream-room 0), settled between runs",
		b.o.set.Human(), hot.Human(), units.Size(rawLog).Human())
	s.Figures = []figure{own("reduction on / off, IOPS", ratios, aim{ratio: 0.9}, b.report.Data, void...)}
	return s, nil
}
