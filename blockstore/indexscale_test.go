package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

var (
	scaleTiB  = flag.Float64("index.tib", 0.001, "unique data, in TiB, that TestIndexScale fills the index for (bench/index.sh)")
	scaleDir  = flag.String("index.dir", "", "where TestIndexScale puts its store, or finds one of an earlier run to go on with; default a temporary folder")
	scaleSpan = flag.Duration("index.lookups", 4*time.Second, "how long TestIndexScale asks in each way; 0: hardly at all, it only fills")
	scaleStep = flag.Int("index.steps", 4, "at how many sizes, each twice the one before, TestIndexScale measures")
)

const (
	scaleChunk      = 16 << 10 // bytes of a chunk, the average of cutting by content
	scalePerSegment = 8192     // chunks of a segment that compress to half
	scaleBatch      = 4096     // chunks of a batch: 64 MiB
)

// scaleHash is the hash of chunk i: any number is as good as a digest here (SplitMix64, Steele, Lea, Flood 2014).
func scaleHash(i uint64) (h [16]byte) {
	mix := func(z uint64) uint64 {
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	binary.LittleEndian.PutUint64(h[:8], mix(2*i*0x9e3779b97f4a7c15))
	binary.LittleEndian.PutUint64(h[8:], mix((2*i+1)*0x9e3779b97f4a7c15))
	return h
}

// scaleLab is a store whose metadata and index are filled as destage does it, with chunks that are in no segment.
type scaleLab struct {
	t       testing.TB
	opts    Options
	s       *Store
	filled  uint64 // chunks
	written uint64 // to the index and the metadata, by stores that are closed
	fillFor time.Duration
	found   uint64 // chunks that were there at the beginning
}

// published is the memory that is published for so much unique data, bytes.
func published(tib float64) int64 { return 64<<20 + int64(160*tib*(1<<20)) }

func (l *scaleLab) open() {
	s, err := Open(context.Background(), l.opts)
	if err != nil {
		l.t.Fatal(err)
	}
	l.s = s
}

func (l *scaleLab) close() {
	l.written += l.writtenNow()
	if err := l.s.Close(); err != nil {
		l.t.Fatal(err)
	}
}

func (l *scaleLab) writtenNow() uint64 {
	m := l.s.db.Metrics()
	n := l.s.Index().WrittenBytes + m.WAL.BytesWritten
	for i := range m.Levels {
		n += m.Levels[i].TableBytesFlushed + m.Levels[i].TableBytesCompacted
	}
	return n
}

// fill stores chunks until there are so many: each is looked for first, as destage does it.
func (l *scaleLab) fill(chunks uint64) {
	began := time.Now()
	for l.filled < chunks {
		m := l.s.beginMeta()
		for range min(scaleBatch, chunks-l.filled) {
			if err := l.store(m, l.filled+1); err != nil {
				m.abort()
				l.t.Fatal(err)
			}
			l.filled++
		}
		if err := m.commit(); err != nil {
			l.t.Fatal(err)
		}
	}
	l.fillFor += time.Since(began)
}

func (l *scaleLab) store(m *metaBatch, i uint64) error {
	hash := scaleHash(i)
	if id, err := m.known(hash, scaleChunk); !errors.Is(err, block.ErrNotFound) {
		return fmt.Errorf("chunk %d is known as %d, %w", i, id, err)
	}
	seg := block.SegmentID(1<<20 + i/scalePerSegment)
	if _, known := l.s.segments.get(seg); !known && m.segs[seg] == nil {
		key := fmt.Sprintf("%016x.00000001.seg", uint64(seg))
		m.segs[seg] = &segmentRow{ID: seg, Generation: 1, Class: segment.Warm, State: segmentSealed, Size: segment.SegmentSize, Placement: tiers.PlacementList{{Tier: defaultTier, Key: key, Generation: 1, State: tiers.Live}}}
		m.c.NextSegment = max(m.c.NextSegment, uint64(seg))
	}
	m.c.NextChunk++
	id := block.ChunkID(m.c.NextChunk)
	m.hints[hash] = id
	at := uint32(i % scalePerSegment)
	if err := m.addChunk(id, chunkRow{Segment: seg, FrameOff: 4096 + at*8000, FrameLen: 7000 + uint32(hash[3])*4, RawLen: scaleChunk, Hash: hash}); err != nil {
		return err
	}
	m.refs.Add(id, 1)
	return nil
}

// lookups asks for hashes for a while, on one core, and returns how many were answered in a second. Each answer must be right.
func (l *scaleLab) lookups(least time.Duration, next func(k uint64) (i uint64, there bool)) float64 {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	began, n := time.Now(), uint64(0)
	for n == 0 || time.Since(began) < least {
		m := l.s.beginMeta()
		for range 1024 {
			i, there := next(n)
			n++
			_, err := m.known(scaleHash(i), scaleChunk)
			if there && err != nil || !there && !errors.Is(err, block.ErrNotFound) {
				l.t.Fatalf("chunk %d, there: %v: %v", i, there, err)
			}
		}
		m.abort()
	}
	return float64(n) / time.Since(began).Seconds()
}

// scalePoint is what was measured at one size.
type scalePoint struct {
	tib, filterBits                 float64
	rss, heap, filter, meta, index  float64 // MiB
	wa, fillRate                    float64
	misses, half, halfWarm, streams float64 // a second
}

func procStatus(field string) float64 {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == field+":" {
			kib, _ := strconv.ParseFloat(f[1], 64)
			return kib / 1024
		}
	}
	return 0
}

func (l *scaleLab) measure(span time.Duration) (p scalePoint) {
	n := l.filled
	r := rand.New(rand.NewPCG(5, n))
	p.tib = float64(n) * scaleChunk / (1 << 40)
	missing := func(k uint64) (uint64, bool) { return 1<<60 + k + n, false }
	uniform := func(of uint64) func(k uint64) (uint64, bool) {
		return func(k uint64) (uint64, bool) {
			if k%2 == 0 {
				return missing(k)
			}
			return 1 + r.Uint64N(of), true
		}
	}
	for k := range uint64(16 * hintParts) { // builds the filter
		h := scaleHash(1<<60 + k)
		l.s.hints.perhaps(&h)
	}
	p.misses = l.lookups(span, missing)
	p.half = l.lookups(span, uniform(n))
	p.halfWarm = l.lookups(span, uniform(min(n, 1<<16)))
	start := 1 + r.Uint64N(max(1, n-n/4))
	p.streams = l.lookups(span, func(k uint64) (uint64, bool) { return 1 + (start+k)%n, true })
	var ms runtime.MemStats
	runtime.ReadMemStats(&ms)
	const mib = 1 << 20
	info := l.s.Index()
	p.rss, p.heap, p.filter = procStatus("VmRSS"), float64(ms.HeapInuse)/mib, float64(l.s.hints.used)/mib
	p.filterBits = float64(l.s.hints.used) * 8 / float64(n)
	md := l.s.db.Metrics()
	p.index, p.meta = float64(info.DiskBytes)/mib, float64(md.DiskSpaceUsage())/mib
	p.wa = float64(l.written+l.writtenNow()) / float64(max(1, n-l.found)*(25+57))
	p.fillRate = float64(n-l.found) / max(1e-9, l.fillFor.Seconds())
	return p
}

// line fits y = a + b·x by least squares.
func line(points []scalePoint, y func(*scalePoint) float64) (a, b float64) {
	var sx, sy, sxx, sxy float64
	n := float64(len(points))
	for i := range points {
		x, v := points[i].tib, y(&points[i])
		sx, sy, sxx, sxy = sx+x, sy+v, sxx+x*x, sxy+x*v
	}
	if d := n*sxx - sx*sx; d != 0 {
		b = (n*sxy - sx*sy) / d
	}
	return (sy - b*sx) / n, b
}

// TestIndexScale fills the index with ids and hashes of so many TiB of unique data, without payload, and measures it at sizes that double, after a restart each. bench/index.sh
// runs it in a memory cgroup of what is published for that size.
func TestIndexScale(t *testing.T) {
	total := published(*scaleTiB)
	engine := max(32<<20, min(total*5/8, total-38<<20)) // as control does it
	dir := *scaleDir
	if dir == "" {
		dir = filepath.Join(t.TempDir(), "store")
	}
	opts := Options{Dir: dir, FS: vfs.Default, MemoryBytes: engine, LogCapBytes: 64 << 20, LogFileBytes: 1 << 20, ReserveBytes: 1}
	full := *scaleTiB >= 0.01
	span := 10 * time.Millisecond
	if full {
		span = *scaleSpan
		opts.LogCapBytes, opts.LogFileBytes = 0, 0                                                          // as by default: the overlay has its share of the memory
		defer debug.SetMemoryLimit(debug.SetMemoryLimit(total - max(total/16, 14<<20) - OutsideHeap(opts))) // as hvd does it
	}
	l := &scaleLab{t: t, opts: opts}
	l.open()
	defer func() { l.close() }()
	l.filled, l.found = l.s.c.NextChunk, l.s.c.NextChunk
	chunks := uint64(*scaleTiB * (1 << 40) / scaleChunk)
	var points []scalePoint
	t.Logf("memory published for %.3g TiB: %d MiB, of which the engine has %d MiB", *scaleTiB, total>>20, engine>>20)
	for k := *scaleStep - 1; k >= 0; k-- {
		l.fill(chunks >> k)
		l.close()
		l.open()
		p := l.measure(span)
		points = append(points, p)
		t.Logf("%.4f TiB: RSS %.0f MiB, heap %.0f, filter %.1f (%.1f bits a chunk); index %.0f MiB, metadata %.0f MiB, written %.1f times; fill %.0f chunks/s; lookups/s: none there %.0f, half there %.0f (of 1 GiB: %.0f), a second copy %.0f",
			p.tib, p.rss, p.heap, p.filter, p.filterBits, p.index, p.meta, p.wa, p.fillRate, p.misses, p.half, p.halfWarm, p.streams)
		if i := l.s.Index(); !i.Whole() || i.Unmatched != 0 {
			t.Errorf("the index is not whole: %+v", i)
		}
	}
	for _, y := range []struct {
		name string
		of   func(*scalePoint) float64
	}{
		{"RSS", func(p *scalePoint) float64 { return p.rss }}, {"filter", func(p *scalePoint) float64 { return p.filter }},
		{"index on disk", func(p *scalePoint) float64 { return p.index }}, {"metadata on disk", func(p *scalePoint) float64 { return p.meta }},
	} {
		a, b := line(points, y.of)
		t.Logf("%s: %.0f + %.1f MiB a TiB; at 10 TiB %.0f MiB, at 100 TiB %.0f MiB", y.name, a, b, a+10*b, a+100*b)
	}
	t.Logf("published: at 10 TiB %d MiB, at 100 TiB %d MiB; most RSS ever %.0f MiB", published(10)>>20, published(100)>>20, procStatus("VmHWM"))
}
