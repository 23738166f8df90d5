package forecast

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

const (
	// MaxSettings bounds how many settings are compared at once: each cuts and hashes everything.
	MaxSettings = 8
	// maxKept is how many chunks a setting keeps at most: some 12 MiB of a Go map.
	maxKept = 1 << 18
	// groups is how many parts of the sample are compared with each other. They are told apart by the low bits of the hash; the threshold looks at the high ones.
	groups = 16
	// packEvery is how rare the frames are that are compressed, of those that begin with a kept chunk.
	packEvery = 4
)

// Prediction is what one setting would come to. All but the counts are bytes.
type Prediction struct {
	Cut cdc.Params
	// NonZeroBytes is the data that is not zeroes, and Mentions the chunks it was cut to; both are exact.
	NonZeroBytes, Mentions uint64
	// Chunks and UniqueBytes are what is left of them when each is counted once.
	Chunks, UniqueBytes uint64
	// StoredBytes is what frames of these chunks take in segments.
	StoredBytes uint64
	// UniqueError and StoredError are how far these two may be off, as a part of 1: the half of an interval that holds the truth in 19 of 20 cases.
	UniqueError, StoredError float64
	// KeptOneIn is 1 if every chunk was kept, so that UniqueBytes is exact; else one in so many stands for all.
	KeptOneIn uint64
}

// Forecast predicts for some settings at once. It belongs to one goroutine.
type Forecast struct {
	settings []*setting
	hash     *dedup.Hasher
	enc      *segment.Encoder
	lens     []uint32
}

// New returns a forecast for one to MaxSettings settings.
func New(cuts []cdc.Params) (*Forecast, error) {
	if len(cuts) == 0 || len(cuts) > MaxSettings {
		return nil, fmt.Errorf("forecast for %d settings: want 1 to %d: %w", len(cuts), MaxSettings, block.ErrInvalid)
	}
	// Any key does: hashes leave this package in no form.
	key, err := dedup.DomainKeyFromBytes(slices.Repeat([]byte{7}, dedup.DomainKeySize))
	if err != nil {
		return nil, err
	}
	f := &Forecast{hash: dedup.NewHasher(key), enc: segment.NewEncoder()}
	for _, p := range cuts {
		cutter, err := cdc.NewCutter(p)
		if err != nil {
			return nil, err
		}
		f.settings = append(f.settings, &setting{cutter: cutter, kept: map[uint64]kept{}, limit: maxKept})
	}
	return f, nil
}

// kept is a chunk of the sample.
type kept struct {
	len, times uint32
}

// ratio is two sums of each part of the sample.
type ratio [groups]struct{ over, under float64 }

// setting is what one setting saw so far.
type setting struct {
	cutter *cdc.Cutter
	limit  int
	shift  uint // chunks are kept whose hash has so many zero bits at the top
	kept   map[uint64]kept
	size   uint64 // bytes that are not zeroes
	count  uint64 // chunks of them
	packed ratio  // stored over raw bytes of frames
	frame  []segment.Chunk
	raw    int  // bytes of frame
	pick   bool // it is to be compressed
	group  int  // of its first chunk
	out    []byte
}

// Add takes the data at off of a volume. Data of a region of the engine (block.RegionSize) belongs into one call, as it is cut as one run. It keeps nothing of p.
func (f *Forecast) Add(p []byte, off uint64) error {
	for len(p) > 0 {
		n := min(uint64(len(p)), block.RegionSize-off%block.RegionSize)
		for _, s := range f.settings {
			if err := f.run(s, p[:n], off); err != nil {
				return err
			}
		}
		p, off = p[n:], off+n
	}
	return nil
}

// run cuts a run of bytes inside one region.
func (f *Forecast) run(s *setting, p []byte, off uint64) error {
	f.lens = s.cutter.Cut(f.lens[:0], p, off)
	for _, n := range f.lens {
		chunk := p[:n]
		p = p[n:]
		if dedup.IsZero(chunk) {
			continue
		}
		s.size += uint64(n)
		s.count++
		sum := f.hash.Sum(chunk)
		fresh := s.note(binary.BigEndian.Uint64(sum[:8]), n)
		if !segment.FrameTakes(segment.FrameRawTarget, s.raw, len(chunk)) {
			if err := f.pack(s); err != nil {
				return err
			}
		}
		if len(s.frame) == 0 {
			s.pick, s.group = fresh && sum[8]%packEvery == 0, int(sum[7])%groups
		}
		s.frame = append(s.frame, segment.Chunk{ID: 1, Hash: sum, Raw: chunk})
		if s.raw += len(chunk); s.raw >= segment.FrameRawTarget {
			if err := f.pack(s); err != nil {
				return err
			}
		}
	}
	return f.pack(s) // what p holds is the caller's
}

// note counts a chunk and reports whether it is kept and new.
func (s *setting) note(hash uint64, n uint32) bool {
	if s.shift > 0 && hash>>(64-s.shift) != 0 {
		return false
	}
	k, known := s.kept[hash]
	if k.len, k.times = n, k.times+1; k.times == 0 {
		k.times = math.MaxUint32
	}
	s.kept[hash] = k
	for len(s.kept) > s.limit {
		s.shift++
		for h := range s.kept {
			if h>>(64-s.shift) != 0 {
				delete(s.kept, h)
			}
		}
	}
	return !known
}

// pack ends the frame that is being filled, and measures it if it is in the sample.
func (f *Forecast) pack(s *setting) error {
	if s.pick && len(s.frame) > 0 {
		var err error
		if s.out, err = segment.EncodeFrame(s.out[:0], s.frame, segment.S2, f.enc); err != nil {
			return errors.Join(fmt.Errorf("forecast for %v", s.cutter.Params()), err)
		}
		s.packed[s.group].over += float64(len(s.out))
		s.packed[s.group].under += float64(s.raw)
	}
	s.frame, s.raw, s.pick = s.frame[:0], 0, false
	return nil
}

// Predict returns what the settings come to for all that was added, in their order.
func (f *Forecast) Predict() []Prediction {
	all := make([]Prediction, 0, len(f.settings))
	for _, s := range f.settings {
		all = append(all, s.predict())
	}
	return all
}

func (s *setting) predict() Prediction {
	p := Prediction{Cut: s.cutter.Params(), NonZeroBytes: s.size, Mentions: s.count, KeptOneIn: 1 << s.shift}
	var unique ratio
	bytes, chunks := 0.0, 0.0
	for hash, k := range s.kept {
		g := &unique[hash%groups]
		g.over += float64(k.len)
		g.under += float64(k.len) * float64(k.times)
		bytes, chunks = bytes+float64(k.len), chunks+1
	}
	if chunks == 0 {
		return p
	}
	part, err := unique.estimate()
	if s.shift == 0 {
		err = 0
	}
	p.UniqueBytes, p.UniqueError = uint64(math.Round(part*float64(s.size))), err
	p.Chunks = uint64(math.Round(float64(p.UniqueBytes) / (bytes / chunks)))
	packed, packedErr := s.packed.estimate()
	p.StoredBytes = uint64(packed * float64(p.UniqueBytes))
	p.StoredError = math.Hypot(err, packedErr)
	return p
}

// estimate is the ratio of the sums, and by which part of it that may be wrong, from how far the parts are from each other.
func (r *ratio) estimate() (value, relative float64) {
	over, under, n := 0.0, 0.0, 0.0
	for _, g := range r {
		over, under = over+g.over, under+g.under
		if g.under > 0 {
			n++
		}
	}
	if under == 0 {
		return 1, 1
	}
	value = over / under
	if n < 2 || value == 0 {
		return value, 1
	}
	// The variance of a ratio estimator from residuals (Cochran, Sampling Techniques, 1977, 6.4).
	sum, mean := 0.0, under/n
	for _, g := range r {
		d := g.over - value*g.under
		sum += d * d
	}
	return value, 2 * math.Sqrt(sum/(n-1)/n) / mean / value
}
