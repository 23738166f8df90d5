package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// disk is the volume that the jobs of the comparison use.
const disk = "v"

// wraps is how often the log goes round before anything is measured.
const wraps = 3

// leastInLog is the share of the set that must still be raw for a figure of reads from the log.
const leastInLog = 0.95

// settings of hvd in a state.
func (b *bench) settings(s state, memory units.Size) []string {
	args := []string{"--store-log-cap", b.logCap.String()}
	if s == stateLog {
		args = append(args, "--store-destage-after", "24h", "--store-stream-room", "0")
	}
	if memory != 0 {
		args = append(args, "--memory", memory.String())
	}
	return args
}

// size of the part that a job goes over.
func (b *bench) size(r reach) units.Size {
	switch r {
	case overFitSet:
		return b.o.fitSet
	case overVolume:
		return b.o.volume
	}
	return b.o.set
}

// pass makes fio go once over the part, outside of any measurement.
func (b *bench) pass(ctx context.Context, uri string, r reach, shape string) error {
	args := append(fioArgs(uri, b.nextSeed(), fields(shape)...), fmt.Sprintf("--size=%d", b.size(r)))
	_, err := b.fio(ctx, args)
	return err
}

// enter brings hvd and the peers into the state that a job begins in.
func (b *bench) enter(ctx context.Context, j job) error {
	logCap := b.o.logCap
	if j.logCap != 0 {
		logCap = units.Size(j.logCap) << 30
	}
	if err := b.fillPeers(ctx); err != nil {
		return err
	}
	if b.hvd == nil || b.logCap != logCap {
		if err := b.newStore(ctx, logCap); err != nil {
			return err
		}
	}
	if b.now == j.state && b.reach == j.reach && j.state != stateFit {
		return nil // the frame cache of the fitting set is warmed anew, jobs of other sets may have come between
	}
	if err := b.place(ctx, j); err != nil {
		return fmt.Errorf("bring hvd into its state: %w", err)
	}
	b.now, b.reach = j.state, j.reach
	return nil
}

// fillPeers starts the peers, and writes their files once in order, so that the file system never allocates in a measured run.
func (b *bench) fillPeers(ctx context.Context) error {
	if len(b.peers) > 0 {
		return nil
	}
	for _, name := range b.o.peers {
		p, err := b.startPeer(ctx, name)
		if p != nil && p.proc != nil {
			b.peers = append(b.peers, p)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(b.say, "  filling %s\n", name)
		if err := b.pass(ctx, p.uri(), overVolume, sequential1M+"--rw=write"); err != nil {
			return err
		}
		b.report.note("%s: `%s`, its volume written once in order", name, b.short(p.proc.args))
	}
	return nil
}

// newStore makes hvd's store, and writes until its log has wrapped.
func (b *bench) newStore(ctx context.Context, logCap units.Size) error {
	if b.hvd != nil {
		if err := b.hvd.remove(); err != nil {
			return err
		}
	}
	b.hvd, b.logCap, b.now = b.newDaemon("s"), logCap, stateWritten
	if err := b.hvd.start(ctx, b.settings(stateWritten, b.o.memory)...); err != nil {
		return err
	}
	if err := b.hvd.volume(ctx, disk, b.o.volume); err != nil {
		return err
	}
	fmt.Fprintf(b.say, "  filling hvd, and writing until its log of %s has wrapped %d times\n", logCap.Human(), wraps)
	if err := b.pass(ctx, b.hvd.uri(disk), overVolume, sequential1M+"--rw=write"); err != nil {
		return err
	}
	most := wraps * logCap
	if err := b.pass(ctx, b.hvd.uri(disk), overSet, random4K+"--rw=randwrite --iodepth=32 --io_size="+strconv.FormatUint(uint64(most), 10)); err != nil {
		return err
	}
	s, err := b.hvd.stats(ctx)
	if err != nil {
		return err
	}
	b.report.note("hvd: `%s`; store made with a log cap of %s, its volume written once in order, then 4 KiB at random over the set: %.1f GiB written in all, %.1f times the log",
		b.short(b.hvd.proc.args), logCap.Human(), gib(s.GuestWrittenBytes), float64(s.GuestWrittenBytes)/float64(logCap))
	return nil
}

// place restarts hvd as a state wants it, and moves the data where the state has it.
func (b *bench) place(ctx context.Context, j job) (err error) {
	d := b.hvd
	b.placed, b.void = "", nil
	switch j.state {
	case stateWritten:
		return d.start(ctx, b.settings(j.state, b.o.memory)...)
	case stateLog:
		return b.placeInLog(ctx, j)
	case stateFit:
		if err := b.startFitting(ctx); err != nil {
			return err
		}
	default:
		if err := d.start(ctx, b.settings(j.state, b.o.memory)...); err != nil {
			return err
		}
	}
	if err := d.settle(ctx); err != nil {
		return err
	}
	s, err := d.stats(ctx)
	if err != nil {
		return err
	}
	b.placed = fmt.Sprintf("%d B undestaged, frame cache %s, reduced %.2f : 1", s.UndestagedBytes, units.Size(frameBudget(s)).Human(), s.CompressionRatio)
	if j.state == stateCold {
		return nil
	}
	for _, uri := range b.uris() {
		if err := b.pass(ctx, uri, j.reach, "--rw=randread --bs=4k --iodepth=32"); err != nil {
			return err
		}
	}
	return nil
}

// coolsWithin is when destage of what is no longer written to is well under way, if it is to be.
const coolsWithin = 10 * time.Second

// placeInLog writes the set where it stays in the log. A log that is destaged before it is full does not hold it: then it is made three times as large for these jobs, which the report says.
func (b *bench) placeInLog(ctx context.Context, j job) error {
	usual := b.logCap
	defer func() { b.logCap = usual }()
	for _, times := range []units.Size{1, 3} {
		b.logCap = times * usual
		if err := b.hvd.start(ctx, b.settings(j.state, b.o.memory)...); err != nil {
			return err
		}
		if err := b.hvd.settle(ctx); err != nil {
			return err
		}
		if err := b.pass(ctx, b.hvd.uri(disk), j.reach, "--rw=randwrite --bs=4k --iodepth=32"); err != nil {
			return err
		}
		select { // what nobody writes to for 5 s goes down if the log is filling
		case <-time.After(coolsWithin):
		case <-ctx.Done():
			return ctx.Err()
		}
		s, err := b.hvd.stats(ctx)
		if err != nil {
			return err
		}
		share := float64(s.UndestagedBytes) / float64(b.size(j.reach))
		found := fmt.Sprintf("with a log cap of %s %.1f %% of the set is in the log alone", b.logCap.Human(), 100*share)
		if b.placed != "" {
			b.placed += "; "
		}
		b.placed += found
		if share >= leastInLog {
			b.void = nil
			return nil
		}
		b.void = []string{found}
	}
	return nil
}

// startFitting gives hvd so much memory that its frame cache holds 1.25 times the fitting set.
func (b *bench) startFitting(ctx context.Context) error {
	want := uint64(b.o.fitSet) * 5 / 4
	memory := max(b.o.memory, 1<<30)
	for range 4 {
		if err := b.hvd.start(ctx, b.settings(stateFit, memory)...); err != nil {
			return err
		}
		s, err := b.hvd.stats(ctx)
		if err != nil {
			return err
		}
		have := frameBudget(s)
		if have >= want {
			b.report.note("fitting set: %s, hvd with --memory %s, of which its frame cache gets %s", b.o.fitSet.Human(), memory.Human(), units.Size(have).Human())
			return nil
		}
		grown := units.Size(float64(memory) * float64(want) / float64(max(have, 1)))
		memory = (grown/(256<<20) + 1) * (256 << 20)
	}
	return fmt.Errorf("no --memory up to %s makes the frame cache hold %s", memory.Human(), units.Size(want).Human())
}

// uris are those of all servers, hvd's last.
func (b *bench) uris() []string {
	var all []string
	for _, p := range b.peers {
		all = append(all, p.uri())
	}
	return append(all, b.hvd.uri(disk))
}

func gib(n uint64) float64 { return float64(n) / (1 << 30) }
