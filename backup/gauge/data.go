package gauge

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Rate is bytes in a time.
type Rate struct {
	Bytes   uint64
	Seconds float64
}

// PerSecond is bytes a second, 0 if nothing was measured.
func (r Rate) PerSecond() float64 {
	if r.Seconds <= 0 {
		return 0
	}
	return float64(r.Bytes) / r.Seconds
}

func (r *Rate) add(n uint64, since time.Time) {
	r.Bytes += n
	r.Seconds += time.Since(since).Seconds()
}

// DataResult is what was measured of sampled data. Rates are those of all workers together, in bytes before compression.
type DataResult struct {
	SourceBytes     uint64 // size of all of it
	SampledBytes    uint64 // that were looked at, holes included
	DataBytes       uint64 // of these, that are not zero
	UniqueBytes     uint64 // of these, in chunks that differ from each other
	CompressedBytes uint64 // that these take, sealed
	Chunks          uint64
	Workers         int

	Read     Rate // from the source, by one reader
	Cut      Rate // cutting and hashing
	Compress Rate
	Seal     Rate
	Open     Rate // unsealing, decompressing and verifying: what a restore does
}

// Ratio is by how much dedup within the sample, and compression, make data smaller; 0 if there was none.
func (d *DataResult) Ratio() float64 {
	if d.CompressedBytes == 0 {
		return 0
	}
	return float64(d.DataBytes) / float64(d.CompressedBytes)
}

// farther is how many times the sample is read at most, to find data in it that is not zero.
const farther = 4

// Data measures a sample of so many bytes that are not zero, taken in whole regions from all over src. progress may be nil.
func Data(ctx context.Context, src backup.Source, sample uint64, cut cdc.Params, progress func(done uint64)) (d DataResult, err error) {
	keys, err := seal.NewKeys(block.UUID{1}, dedup.DomainKey{}) // of this sample alone
	if err != nil {
		return d, err
	}
	session, err := keys.NewSession()
	if err != nil {
		return d, err
	}
	h := pack.Header{Repository: keys.Repository, Salt: seal.NewSalt(), Wrapped: session.Wrapped}
	reader, err := pack.NewReader(keys, &h)
	if err != nil {
		return d, err
	}
	s := &sampling{d: &d, keys: keys, cut: cut, reader: reader, box: session.Secret.Box(seal.PurposeFrames, h.Salt, keys.Repository), seen: make(map[block.Hash]bool)}
	d.SourceBytes, d.Workers = src.Size(), workers()
	regions := (d.SourceBytes + backup.RegionSize - 1) / backup.RegionSize
	order := rand.New(rand.NewPCG(1, regions)).Perm(int(regions)) // the same each time
	buffers := make([][]byte, d.Workers)
	for len(order) > 0 && d.DataBytes < sample && d.SampledBytes < farther*sample {
		var batch [][]byte
		for len(batch) < d.Workers && len(order) > 0 && d.SampledBytes < farther*sample {
			off := uint64(order[0]) * backup.RegionSize
			order = order[1:]
			n := min(backup.RegionSize, d.SourceBytes-off)
			i := len(batch)
			if buffers[i] == nil {
				buffers[i] = make([]byte, backup.RegionSize)
			}
			began := time.Now()
			zero, err := src.Region(ctx, buffers[i][:n], off)
			if err != nil {
				return d, fmt.Errorf("read at %d: %w", off, err)
			}
			if d.SampledBytes += n; !zero {
				d.Read.add(n, began)
				batch = append(batch, buffers[i][:n])
			}
		}
		if err := s.batch(ctx, batch); err != nil {
			return d, err
		}
		if progress != nil {
			progress(min(d.DataBytes, sample))
		}
	}
	return d, nil
}

// sampling is a sample under way.
type sampling struct {
	d      *DataResult
	keys   *seal.Keys
	cut    cdc.Params
	box    *seal.Box
	reader *pack.Reader
	seen   map[block.Hash]bool
}

// chunk is a chunk of a region.
type chunk struct {
	id   block.Hash
	data []byte
}

// frame is chunks that are compressed together.
type frame struct {
	chunks     []pack.Chunk
	raw        []byte
	compressed []byte
	sealed     []byte
}

// batch does to regions what a backup does, one step after the other, each with all workers.
func (s *sampling) batch(ctx context.Context, regions [][]byte) error {
	cuts := make([][]chunk, len(regions))
	bytes := uint64(0)
	for _, p := range regions {
		bytes += uint64(len(p))
	}
	began := time.Now()
	if err := each(ctx, len(regions), func(i int) (err error) {
		cuts[i], err = s.cutOne(regions[i])
		return err
	}); err != nil {
		return err
	}
	s.d.Cut.add(bytes, began)
	frames := s.frames(cuts)
	raw := uint64(0)
	for _, f := range frames {
		raw += uint64(len(f.raw))
	}
	for _, step := range []struct {
		rate *Rate
		do   func(i int) error
	}{
		{&s.d.Compress, func(i int) error {
			frames[i].compressed = pack.Compress(nil, frames[i].raw)
			return nil
		}},
		{&s.d.Seal, func(i int) error {
			frames[i].sealed = s.box.Seal(nil, frames[i].compressed, uint64(i))
			return nil
		}},
		{&s.d.Open, func(i int) error { return s.open(frames[i], i) }},
	} {
		for _, f := range frames {
			if step.rate == &s.d.Open {
				s.d.CompressedBytes += uint64(len(f.sealed)) // before it is opened in place
			}
		}
		began := time.Now()
		if err := each(ctx, len(frames), step.do); err != nil {
			return err
		}
		step.rate.add(raw, began)
	}
	return nil
}

// cutOne cuts and hashes a region. Chunks of zeroes are left out.
func (s *sampling) cutOne(p []byte) (chunks []chunk, err error) {
	cutter, err := cdc.NewCutter(s.cut)
	if err != nil {
		return nil, err
	}
	hasher := dedup.NewHasher(s.keys.Domain)
	for _, n := range cutter.Cut(nil, p, 0) {
		if piece := p[:n]; !dedup.IsZero(piece) {
			chunks = append(chunks, chunk{hasher.Sum(piece), piece})
		}
		p = p[n:]
	}
	return chunks, nil
}

// frames puts what is new together.
func (s *sampling) frames(cuts [][]chunk) (frames []*frame) {
	var f *frame
	for _, chunks := range cuts {
		for _, c := range chunks {
			s.d.DataBytes += uint64(len(c.data))
			if s.d.Chunks++; s.seen[c.id] {
				continue
			}
			s.seen[c.id] = true
			s.d.UniqueBytes += uint64(len(c.data))
			if f == nil || len(f.raw)+len(c.data) > pack.MaxFrameRaw {
				f = &frame{raw: make([]byte, 0, pack.FrameRaw+len(c.data))}
				frames = append(frames, f)
			}
			f.chunks, f.raw = append(f.chunks, pack.Chunk{ID: c.id, Raw: uint32(len(c.data))}), append(f.raw, c.data...)
			if len(f.raw) >= pack.FrameRaw {
				f = nil
			}
		}
	}
	return frames
}

// open does to a frame what a restore does, and compares.
func (s *sampling) open(f *frame, number int) error {
	raw, err := s.reader.Open(&pack.Frame{Raw: uint32(len(f.raw)), Len: uint32(len(f.sealed)), Chunks: f.chunks}, number, f.sealed)
	if err != nil {
		return err
	}
	hasher := dedup.NewHasher(s.keys.Domain)
	for _, c := range f.chunks {
		if err := pack.Verify(hasher, c.ID, raw[:c.Raw]); err != nil {
			return err
		}
		raw = raw[c.Raw:]
	}
	return nil
}

// maxWorkers bounds what a measurement holds: some 64 MiB for each.
const maxWorkers = 8

func workers() int { return min(runtime.GOMAXPROCS(0), maxWorkers) }

// each calls do for 0 to n-1, by all workers.
func each(ctx context.Context, n int, do func(i int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(workers())
	for i := range n {
		g.Go(func() error {
			if err := ctx.Err(); err != nil {
				return err
			}
			return do(i)
		})
	}
	return g.Wait()
}
