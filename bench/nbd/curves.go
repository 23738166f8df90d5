package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/bench/wire"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// timed returns how long something took, in milliseconds.
func timed(do func() error) (float64, error) {
	began := time.Now()
	err := do()
	return time.Since(began).Seconds() * 1000, err
}

// row gathers the cells of a table, and the first error.
type row struct {
	cells []string
	err   error
}

func (r *row) add(format string, value any) { r.cells = append(r.cells, fmt.Sprintf(format, value)) }

// time adds how long something took.
func (r *row) time(do func() error) {
	if r.err == nil {
		var ms float64
		ms, r.err = timed(do)
		r.add("%.2f", ms)
	}
}

// iops adds what fio reached.
func (r *row) iops(do func() (fioResult, error)) {
	if r.err == nil {
		var result fioResult
		result, r.err = do()
		r.add("%.0f", result.IOPS)
	}
}

// mostTrim is the largest length of a request that is a multiple of the block size.
const mostTrim = 1<<32 - 4096

// trim takes away all of a volume.
func trim(ctx context.Context, d *daemon, name string, size units.Size) error {
	w, err := wire.Open(ctx, filepath.Join(d.dir, "nbd.sock"), name)
	if err != nil {
		return err
	}
	defer w.Close()
	for at := uint64(0); at < uint64(size); at += mostTrim {
		if err := w.Do(wire.Trim, at, uint32(min(mostTrim, uint64(size)-at)), nil); err != nil {
			return err
		}
	}
	return nil
}

// memory adds what a server's group has of anonymous memory and of page cache, in MiB.
func (r *row) memory(u usage) {
	r.add("%.0f", float64(u.anon)/(1<<20))
	r.add("%.0f", float64(u.file)/(1<<20))
}

// sizeCurve does the same things to sparse volumes of 1 GiB to 16 TiB.
func sizeCurve(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("curve-size")
	d, err := b.alone(ctx, "c")
	if err != nil {
		return s, err
	}
	s.Table = [][]string{{"size", "create ms", "attach ms", "random write IOPS", "random read IOPS, as left", "the same, settled", "snapshot ms", "trim of all ms", "delete ms", "anonymous MiB", "file MiB"}}
	for _, size := range []units.Size{1 << 30, 16 << 30, 256 << 30, 1 << 40, 4 << 40, 16 << 40} {
		r := row{cells: []string{size.Human()}}
		input := client.CreateVolumeInput{Name: disk, SizeBytes: uint64(size), Chunking: "cdc", Mode: client.WriteModeWriteback}
		read := func() (fioResult, error) {
			return b.once(ctx, j, d.uri(disk), "--rw=randread", size, b.nextSeed())
		}
		r.time(func() error { _, err := client.CreateVolume(ctx, d.api, input); return err })
		r.time(func() error { return d.attach(ctx, disk) })
		r.iops(func() (fioResult, error) {
			return b.once(ctx, j, d.uri(disk), "--rw=randwrite", size, b.nextSeed())
		})
		r.iops(read)
		if r.err == nil {
			r.err = b.rested(ctx, d)
		}
		r.iops(read)
		r.time(func() error { _, err := client.CreateSnapshot(ctx, d.api, disk, "s"); return err })
		r.time(func() error { return trim(ctx, d, disk, size) })
		if r.err == nil {
			_, r.err = client.DetachVolume(ctx, d.api, disk, true)
		}
		r.time(func() error { _, err := client.DeleteVolume(ctx, d.api, disk); return err })
		if r.err != nil {
			return s, fmt.Errorf("size %s: %w", size.Human(), r.err)
		}
		u, err := d.proc.group.usage()
		if err != nil {
			return s, err
		}
		r.memory(u)
		s.Table = append(s.Table, r.cells)
		if err := b.rested(ctx, d); err != nil {
			return s, err
		}
	}
	s.State = fmt.Sprintf("one store; each volume is made, written to at random over all of its size for %d s at depth 32, read from at random, where most of a large one is empty, and deleted. Times are of one request to the API", b.duration(j))
	return s, nil
}

// snapshotCurve reads and writes while there are ever more snapshots.
func snapshotCurve(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("curve-snapshots")
	d, err := b.alone(ctx, "c")
	if err != nil {
		return s, err
	}
	if err := b.fill(ctx, d, disk, b.o.volume, b.o.fitSet); err != nil {
		return s, err
	}
	s.Table = [][]string{{"snapshots", "snapshot ms, median", "most", "settle s", "random read IOPS", "p50 µs at depth 1", "random write IOPS", "delete of the oldest ms", "metadata MB", "anonymous MiB", "file MiB"}}
	have := 0
	for _, count := range []int{1, 10, 100, 1000, 10000} {
		took, err := b.snapshot(ctx, d, disk, b.o.fitSet, have, count)
		if err != nil && ctx.Err() == nil {
			s.Figures = append(s.Figures, figure{What: fmt.Sprintf("%d snapshots", count), Verdict: "VOID", Void: []string{fmt.Sprintf("after %d of them: %v", have+len(took), err)}})
			break // what was measured is worth having
		}
		if err != nil {
			return s, err
		}
		sp := spreadOf(took)
		r := row{cells: []string{fmt.Sprint(count), fmt.Sprintf("%.2f", sp.median), fmt.Sprintf("%.2f", sp.most)}}
		settled, err := timed(func() error { return d.settle(ctx) })
		if err != nil {
			return s, err
		}
		r.add("%.1f", settled/1000)
		r.iops(func() (fioResult, error) {
			return b.once(ctx, j, d.uri(disk), "--rw=randread", b.o.fitSet, b.nextSeed())
		})
		if r.err == nil {
			var one fioResult
			one, r.err = b.once(ctx, j, d.uri(disk), "--rw=randread --iodepth=1", b.o.fitSet, b.nextSeed())
			r.add("%.1f", one.P50)
		}
		r.iops(func() (fioResult, error) {
			return b.once(ctx, j, d.uri(disk), "--rw=randwrite", b.o.fitSet, b.nextSeed())
		})
		if r.err == nil {
			r.err = b.rested(ctx, d)
		}
		r.time(func() error { _, err := client.DeleteSnapshot(ctx, d.api, disk, fmt.Sprintf("s%d", have)); return err })
		if r.err != nil {
			return s, fmt.Errorf("%d snapshots: %w", count, r.err)
		}
		stats, err := d.stats(ctx)
		if err != nil {
			return s, err
		}
		u, err := d.proc.group.usage()
		if err != nil {
			return s, err
		}
		r.add("%.1f", float64(stats.MetadataBytes)/1e6)
		r.memory(u)
		s.Table = append(s.Table, r.cells)
		have = count
	}
	s.State = fmt.Sprintf("one volume over %s; before each snapshot %d random blocks of 4 KiB are overwritten; times are of one request to the API", b.o.fitSet.Human(), writesBetween)
	return s, nil
}

// volumeCurve makes ever more volumes, writes to ten of them, and starts hvd anew.
func volumeCurve(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("curve-volumes")
	d, err := b.alone(ctx, "c")
	if err != nil {
		return s, err
	}
	const size = 1 << 30
	s.Table = [][]string{{"volumes", "create ms, median", "attach ms, median", "list of all ms", "random write over up to ten, IOPS", "random read, IOPS", "restart until ready ms", "anonymous MiB after it", "file MiB"}}
	have := 0
	var names []string
	for _, count := range []int{1, 10, 100, 1000} {
		var created, attached []float64
		for k := have; k < count; k++ {
			name := fmt.Sprintf("v%d", k)
			input := client.CreateVolumeInput{Name: name, SizeBytes: size, Chunking: "cdc", Mode: client.WriteModeWriteback}
			ms, err := timed(func() error { _, err := client.CreateVolume(ctx, d.api, input); return err })
			if err != nil {
				return s, err
			}
			created = append(created, ms)
			if ms, err = timed(func() error { return d.attach(ctx, name) }); err != nil {
				return s, err
			}
			attached = append(attached, ms)
			if len(names) < volumesAtOnce {
				names = append(names, name)
			}
		}
		have = count
		r := row{cells: []string{fmt.Sprint(count), fmt.Sprintf("%.2f", spreadOf(created).median), fmt.Sprintf("%.2f", spreadOf(attached).median)}}
		r.time(func() error { _, err := client.ListVolumes(ctx, d.api); return err })
		for _, direction := range []string{"randwrite", "randread"} {
			direct := j
			direct.fio += " --rw=" + direction
			if r.err == nil {
				var results []fioResult
				results, r.err = b.atOnce(ctx, direct, d, names, b.partOfTen(), b.nextSeed())
				total := 0.0
				for _, one := range results {
					total += one.IOPS
				}
				r.add("%.0f", total)
			}
			if r.err == nil {
				r.err = b.rested(ctx, d)
			}
		}
		if r.err == nil {
			args := d.args[5:] // behind what start gives to every hvd
			r.err = d.stop()
			r.time(func() error { return d.start(ctx, args...) })
		}
		if r.err != nil {
			return s, fmt.Errorf("%d volumes: %w", count, r.err)
		}
		u, err := d.proc.group.usage()
		if err != nil {
			return s, err
		}
		r.memory(u)
		s.Table = append(s.Table, r.cells)
	}
	s.State = fmt.Sprintf("volumes of 1 GiB, all attached; fio runs on up to ten of them, over %s each at depth 32, for %d s; settled, then ended with SIGTERM and started", b.partOfTen().Human(), b.duration(j))
	return s, nil
}
