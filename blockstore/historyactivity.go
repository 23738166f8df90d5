package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// Activity is what was written to a volume in one stretch of its history.
type Activity struct {
	Start      time.Time
	BeforeSeq  uint64 // the last record before it: the state that it began from
	Writes     uint64
	Bytes      uint64  // that were written
	Overwrites uint64  // of these, bytes over what held data before
	Trimmed    uint64  // bytes that held data, and were trimmed or zeroed
	Samples    uint64  // writes whose first bytes were looked at, up to 4 KiB
	Entropy    float64 // bits a byte of the samples, each weighed by what it stands for
	Random     uint64  // samples that look encrypted or well compressed
	// RandomShare estimates which part of Bytes does, 0 to 1: of many writes few are sampled, so each sample counts for the bytes that were written since the one before it.
	RandomShare float64
}

// MaxActivities bounds the stretches of a history that are told at once.
const MaxActivities = 4096

const (
	sampleBytes = 4096
	// sampleAll is how many writes of a stretch are all looked at; of the others one in so many.
	sampleAll = 32
	// randomEntropy, in bits a byte, is what a sample of 4 KiB of random bytes hardly ever has less of: its expected value is 7.954, with a deviation of 0.005. Shorter samples are not counted as random.
	randomEntropy = 7.92
)

// HistoryActivity tells what was written to a volume in its history, in stretches of the given length, oldest first; those without a change are left out. Where history is thinned, it tells of what is left. It reads the indexes of the history, and a sample of the payload. ErrInvalid if there were more
// than MaxActivities stretches.
func (s *Store) HistoryActivity(ctx context.Context, volume string, stretch time.Duration) (all []Activity, err error) {
	vh, err := s.historyOf(volume)
	if err != nil {
		return nil, err
	}
	fail := func(err error) ([]Activity, error) {
		return nil, fmt.Errorf("activity of volume %q: %w", volume, err)
	}
	_, release, err := s.historian.catchUp(ctx, vh)
	if err != nil {
		return fail(err)
	}
	defer release() // until then no file goes
	info, err := s.History(volume)
	if err != nil {
		return nil, err
	}
	if stretch < time.Second || s.opts.Now().Sub(info.First)/stretch >= MaxActivities && info.FirstSeq > 0 {
		return fail(fmt.Errorf("stretches of %v: want a second or more, and at most %d of them: %w", stretch, MaxActivities, block.ErrInvalid))
	}
	if info.FirstSeq == 0 {
		return nil, nil
	}
	base, err := s.OpenPoint(ctx, volume, Moment{Seq: info.FirstSeq})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, base.Close()) }()
	w := &activityWalk{s: s, ctx: ctx, base: base, stretch: stretch.Nanoseconds(), held: make(map[uint64]*regionBlocks), before: info.FirstSeq}
	if err := vh.stream.Each(info.FirstSeq+1, ^uint64(0), w.record); err != nil {
		return fail(err)
	}
	w.end()
	return w.all, nil
}

// regionBlocks has a bit for each block of a region that holds data.
type regionBlocks [block.RegionSize / block.Size / 64]uint64

// activityWalk goes over the records of a history.
type activityWalk struct {
	s       *Store
	ctx     context.Context
	base    *Device // the state that the history begins with
	stretch int64   // ns
	held    map[uint64]*regionBlocks
	dropped [][2]uint64 // regions, from and to, that were trimmed before they were looked at

	all     []Activity
	number  int64 // of the open stretch
	open    Activity
	begun   bool
	entropy float64 // sum over its samples, by their weights
	random  float64 // weights of the samples that look random
	weight  float64 // of all samples, bytes
	since   uint64  // bytes written since the last sample
	before  uint64
	buffer  [sampleBytes]byte
}

func (w *activityWalk) record(r *history.Record) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if number := r.Time / w.stretch; !w.begun || number > w.number && len(w.all) < MaxActivities-1 { // a clock that goes back stays in the stretch
		w.end()
		w.begun, w.number = true, number
		w.open = Activity{Start: time.Unix(0, number*w.stretch).UTC(), BeforeSeq: w.before}
	}
	w.before = r.Seq
	switch r.Kind {
	case history.Write:
		w.open.Writes++
		w.open.Bytes += r.Len
		over, err := w.cover(r.Off, r.Len, true)
		if err != nil {
			return err
		}
		w.open.Overwrites += over
		return w.sample(r)
	case history.Trim, history.Zero, history.Resize:
		if r.Len > wideTrim {
			w.dropWide(block.Range{Off: r.Off, Len: r.Len})
			return nil
		}
		gone, err := w.cover(r.Off, r.Len, false)
		w.open.Trimmed += gone
		return err
	case history.Rollback:
		w.dropped = nil
		clear(w.held) // what it holds now is not known from here: the states before it are the better guess
	}
	return nil
}

// end closes the open stretch.
func (w *activityWalk) end() {
	if !w.begun || w.open.Writes == 0 && w.open.Trimmed == 0 {
		return
	}
	if w.weight > 0 {
		w.open.Entropy, w.open.RandomShare = w.entropy/w.weight, w.random/w.weight
	}
	w.entropy, w.random, w.weight, w.since = 0, 0, 0, 0
	w.all = append(w.all, w.open)
}

// cover notes that a range holds data, or none, and returns how many bytes of it held data before.
func (w *activityWalk) cover(off, length uint64, data bool) (before uint64, err error) {
	for at, end := off/block.Size, (off+length+block.Size-1)/block.Size; at < end; at++ {
		region := at * block.Size / block.RegionSize
		blocks := w.held[region]
		if blocks == nil {
			if blocks, err = w.load(region); err != nil {
				return before, err
			}
			w.held[region] = blocks
		}
		in := at % (block.RegionSize / block.Size)
		bit := uint64(1) << (in % 64)
		if blocks[in/64]&bit != 0 {
			before += block.Size
		}
		if data {
			blocks[in/64] |= bit
		} else {
			blocks[in/64] &^= bit
		}
	}
	return min(before, length), nil
}

// wideTrim is above what trims are not looked at block by block, in bytes.
const wideTrim = 1 << 30

// dropWide notes that a wide range holds nothing any more, but for its regions at both ends.
func (w *activityWalk) dropWide(r block.Range) {
	first, end := (r.Off+block.RegionSize-1)/block.RegionSize, r.End()/block.RegionSize
	for region, blocks := range w.held {
		if first <= region && region < end {
			for _, word := range blocks {
				w.open.Trimmed += uint64(bits.OnesCount64(word)) * block.Size
			}
			*blocks = regionBlocks{}
		}
	}
	if w.dropped = append(w.dropped, [2]uint64{first, end}); len(w.dropped) > 1024 {
		w.dropped = w.dropped[1:] // what was there counts as held again
	}
}

// load finds out which blocks of a region held data when the history began.
func (w *activityWalk) load(region uint64) (*regionBlocks, error) {
	blocks := new(regionBlocks)
	off, size := region*block.RegionSize, w.base.Size()
	gone := slices.ContainsFunc(w.dropped, func(d [2]uint64) bool { return d[0] <= region && region < d[1] })
	if off >= size || gone {
		return blocks, nil
	}
	at := uint64(0)
	err := w.base.Depths(w.ctx, block.Range{Off: off, Len: min(block.RegionSize, size-off)}, func(n uint64, depth uint32) bool {
		for in := at / block.Size; depth != 0 && in*block.Size < at+n; in++ {
			blocks[in/64] |= 1 << (in % 64)
		}
		at += n
		return true
	})
	return blocks, err
}

// sample looks at the first bytes of a write.
func (w *activityWalk) sample(r *history.Record) error {
	w.since += r.Len
	if w.open.Writes > sampleAll && w.open.Writes%sampleAll != 0 {
		return nil
	}
	p := w.buffer[:min(sampleBytes, r.Len)/block.Size*block.Size]
	if len(p) == 0 || len(r.Sums) < len(p)/block.Size {
		return nil
	}
	if err := w.s.historian.set.ReadAt(p, r.Pos, r.Sums[:len(p)/block.Size]); err != nil {
		return err
	}
	e := entropyOf(p)
	weight := float64(w.since)
	w.open.Samples, w.since = w.open.Samples+1, 0
	w.entropy += e * weight
	w.weight += weight
	if len(p) == sampleBytes && e >= randomEntropy {
		w.open.Random++
		w.random += weight
	}
	return nil
}

// entropyOf is that of the bytes of p, in bits a byte (Shannon 1948).
func entropyOf(p []byte) (sum float64) {
	var counts [256]int
	for _, b := range p {
		counts[b]++
	}
	for _, n := range counts {
		if n > 0 {
			share := float64(n) / float64(len(p))
			sum -= share * math.Log2(share)
		}
	}
	return sum
}
