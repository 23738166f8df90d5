package main

import (
	"context"
	"fmt"
	"slices"
)

// compare lets the servers do a job in turns: a warm-up, then the pairs.
func (b *bench) compare(ctx context.Context, j job) (section, error) {
	if err := b.enter(ctx, j); err != nil {
		return section{}, err
	}
	s := section{Metric: j.metric.unit(), metric: j.metric, State: j.state.String(), Placed: b.placed, Accounting: b.hvd.proc.group.how()}
	if j.logCap != 0 {
		s.State += fmt.Sprintf("; log cap %d GiB", j.logCap)
	}
	for pair := range b.o.pairs + 1 {
		seed := b.nextSeed() // the same for all in a pair: the same places, the same data
		for _, contestant := range b.servers() {
			if !j.against(contestant) {
				continue
			}
			if j.state == stateCold {
				if err := b.cool(ctx); err != nil {
					return s, err
				}
				contestant = b.again(contestant)
			}
			r, err := b.measure(ctx, b.shortened(j, pair), contestant, pair, seed)
			if err != nil {
				return s, fmt.Errorf("pair %d, %s: %w", pair, contestant.name, err)
			}
			fmt.Fprintf(b.say, "  pair %d %-8s %10.0f IOPS %7.0f MB/s  p50 %6.0f µs  %5.1f CPU s/GiB  client %3.0f %% of a core %v\n", pair, r.Server, r.IOPS, r.BytesPerSecond/1e6, r.P50, r.CPUPerGiB, r.ClientCPU, r.Void)
			s.Runs = append(s.Runs, r)
		}
	}
	s.judge(j.aims, b.report.Data)
	return s, nil
}

// against reports whether a server takes part: hvd, and the peers that the job has an aim for, or all if it has none.
func (j job) against(s server) bool {
	return s.hvd != nil || len(j.aims) == 0 || slices.ContainsFunc(j.aims, func(a aim) bool { return a.peer == s.name })
}

// warmUp is the most seconds of the run that does not count.
const warmUp = 15

// shortened is the job as it is done in a pair: pair 0 is the warm-up.
func (b *bench) shortened(j job, pair int) job {
	if pair == 0 && j.seconds != 0 {
		j.seconds = min(b.duration(j), warmUp)
		j.fixed = true
	}
	return j
}

// cool starts hvd anew and drops the system's caches.
func (b *bench) cool(ctx context.Context) error {
	if err := b.hvd.stop(); err != nil {
		return err
	}
	if err := b.hvd.start(ctx, b.settings(stateCold, b.o.memory)...); err != nil {
		return err
	}
	b.quiet(ctx)
	if err := dropCaches(); err != nil {
		return fmt.Errorf("drop the system's caches, which needs root: %w", err)
	}
	return nil
}

// again is the same server after hvd was started anew.
func (b *bench) again(s server) server {
	for _, now := range b.servers() {
		if now.name == s.name {
			return now
		}
	}
	return s
}
