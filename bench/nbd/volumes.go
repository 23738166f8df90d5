package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const volumesAtOnce = 10

// atOnce does a timed job on several volumes in one fio, and returns their results in order. depths has one entry for each, or one for all.
func (b *bench) atOnce(ctx context.Context, j job, d *daemon, names []string, part units.Size, seed int, depths ...int) ([]fioResult, error) {
	args := append(fields(j.fio), "--ioengine=nbd", fmt.Sprintf("--size=%d", part), "--time_based", fmt.Sprintf("--runtime=%d", b.duration(j)))
	args = append(args, dataArgs...)
	for k, name := range names {
		args = append(args, "--name="+name, "--uri="+d.uri(name), fmt.Sprintf("--randseed=%d", seed+k))
		if len(depths) == len(names) {
			args = append(args, fmt.Sprintf("--iodepth=%d", depths[k]))
		}
	}
	results, err := b.fio(ctx, args)
	if err == nil && len(results) != len(names) {
		err = fmt.Errorf("fio has results of %d volumes instead of %d", len(results), len(names))
	}
	return results, err
}

// partOfTen is each volume's part of the working set.
func (b *bench) partOfTen() units.Size { return b.o.set / volumesAtOnce / (1 << 20) << 20 }

// makeTen makes the volumes, and writes the part of each once.
func (b *bench) makeTen(ctx context.Context, d *daemon) (names []string, err error) {
	for k := range volumesAtOnce {
		names = append(names, fmt.Sprintf("v%d", k))
		if err := b.fill(ctx, d, names[k], b.partOfTen(), b.partOfTen()); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// tenVolumes compares ten volumes at once with one, over the same working set.
func tenVolumes(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("ten")
	d, err := b.alone(ctx, "t")
	if err != nil {
		return s, err
	}
	if err := b.fill(ctx, d, disk, b.o.set, b.o.set); err != nil {
		return s, err
	}
	names, err := b.makeTen(ctx, d)
	if err != nil {
		return s, err
	}
	var ratios []float64
	s.Table = [][]string{{"pair", "one, IOPS", "ten together, IOPS", "ten / one", "least and most of the ten, IOPS"}}
	for pair := range b.o.pairs + 1 {
		seed, job := b.nextSeed(), b.shortened(j, pair)
		if err := b.rested(ctx, d); err != nil {
			return s, err
		}
		one, err := b.once(ctx, job, d.uri(disk), "", b.o.set, seed)
		if err != nil {
			return s, err
		}
		if err := b.rested(ctx, d); err != nil {
			return s, err
		}
		results, err := b.atOnce(ctx, job, d, names, b.partOfTen(), seed)
		if err != nil {
			return s, err
		}
		if pair == 0 {
			continue
		}
		var each []float64
		total := 0.0
		for _, r := range results {
			each, total = append(each, r.IOPS), total+r.IOPS
		}
		sp := spreadOf(each)
		ratios = append(ratios, total/one.IOPS)
		s.Table = append(s.Table, []string{fmt.Sprint(pair), fmt.Sprintf("%.0f", one.IOPS), fmt.Sprintf("%.0f", total), fmt.Sprintf("%.3f", total/one.IOPS), fmt.Sprintf("%.0f, %.0f", sp.least, sp.most)})
	}
	s.State = fmt.Sprintf("one store; one volume over %s, and ten over %s each, in one fio with a process for each; settled before each run", b.o.set.Human(), b.partOfTen().Human())
	s.Figures = []figure{own("ten volumes / one, IOPS", ratios, aim{ratio: 0.9}, b.report.Data)}
	return s, nil
}

// noisyVolume compares ten equal volumes with nine and one that has sixteen times as many requests in flight. That one takes no more than its share if the others get what they had.
func noisyVolume(ctx context.Context, b *bench) (s section, err error) {
	defer func() { err = errors.Join(err, b.leave()) }()
	j := find("noisy")
	d, err := b.alone(ctx, "n")
	if err != nil {
		return s, err
	}
	names, err := b.makeTen(ctx, d)
	if err != nil {
		return s, err
	}
	equal := slices.Repeat([]int{8}, volumesAtOnce)
	noisy := append([]int{128}, equal[1:]...)
	var ratios, shares []float64
	s.Table = [][]string{{"pair", "ten equal: each, mean IOPS", "beside a noisy one: each of nine, mean IOPS", "ratio", "least, most of the nine", "the noisy one, IOPS", "its part of all"}}
	for pair := range b.o.pairs + 1 {
		seed := b.nextSeed()
		var each [2][]float64
		for k, depths := range [][]int{equal, noisy} {
			if err := b.rested(ctx, d); err != nil {
				return s, err
			}
			results, err := b.atOnce(ctx, b.shortened(j, pair), d, names, b.partOfTen(), seed+100*k, depths...)
			if err != nil {
				return s, err
			}
			for _, r := range results {
				each[k] = append(each[k], r.IOPS)
			}
		}
		if pair == 0 {
			continue
		}
		others := each[1][1:]
		before, after, sp := mean(each[0]), mean(others), spreadOf(others)
		share := each[1][0] / (each[1][0] + after*float64(len(others)))
		ratios, shares = append(ratios, after/before), append(shares, share)
		s.Table = append(s.Table, []string{fmt.Sprint(pair), fmt.Sprintf("%.0f", before), fmt.Sprintf("%.0f", after), fmt.Sprintf("%.2f", after/before), fmt.Sprintf("%.0f, %.0f", sp.least, sp.most),
			fmt.Sprintf("%.0f", each[1][0]), fmt.Sprintf("%.2f", share)})
	}
	s.State = fmt.Sprintf("ten volumes over %s each, depth 8; then the first at depth 128; settled before each run", b.partOfTen().Human())
	s.Figures = []figure{
		own("each of nine beside a noisy one / each of ten equal ones, IOPS", ratios, aim{ratio: 0.9}, b.report.Data),
		own("part of all writes that the noisy one of ten got", shares, aim{}, b.report.Data),
	}
	return s, nil
}

func mean(values []float64) float64 {
	total := 0.0
	for _, v := range values {
		total += v
	}
	return total / float64(len(values))
}
