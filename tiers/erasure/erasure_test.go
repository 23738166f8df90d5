package erasure

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// file is a file in memory: a short read at its end, and columns that cannot be read.
type file struct {
	b          []byte
	unreadable map[int]bool
}

func (f *file) ReadAt(p []byte, off int64) (int, error) {
	for c := off / ColumnSize; c*ColumnSize < off+int64(len(p)); c++ {
		if f.unreadable[int(c)] {
			return 0, errors.New("medium error")
		}
	}
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *file) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(f.b) {
		f.b = append(f.b, make([]byte, need-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

var testID = Identity{StoreID: block.UUID{1, 2, 3}, Segment: 0x12f, Generation: 7, FooterCRC: 0xabcdef01}

// encode returns the sidecar of a segment.
func encode(t testing.TB, segment []byte, s Shape) (Identity, []byte) {
	t.Helper()
	id := testID
	id.SizeBytes = int64(len(segment))
	var read []byte
	sums, err := Sums(context.Background(), &file{b: segment}, id.SizeBytes, nil, func(b []byte) { read = append(read, b...) })
	if err != nil || !bytes.Equal(read, segment) {
		t.Fatalf("sums: %v, %d B read", err, len(read))
	}
	c, err := NewCoder(s)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := c.Encode(context.Background(), &file{b: segment}, id, sums, &out, nil); err != nil {
		t.Fatal(err)
	}
	if int64(out.Len()) != SidecarSize(s, id.SizeBytes) {
		t.Fatalf("%v of %d B: %d B of sidecar, want %d", s, len(segment), out.Len(), SidecarSize(s, id.SizeBytes))
	}
	return id, out.Bytes()
}

var testShapes = []Shape{{16, 2}, {2, 1}, {2, 2}, {5, 3}, {23, 8}, {30, 1}}

// damage is a segment and its sidecar with random damage, and what a reader of the layout alone knows of it.
type damage struct {
	segment, sidecar *file
	bad              map[int]bool // data columns
	stripes          map[int]int  // damaged columns of each stripe
	parity           map[[2]int]bool
}

func (d *damage) hitData(rng *rand.Rand, l *layout, c int) {
	if d.bad[c] {
		return
	}
	d.bad[c] = true
	d.stripes[c%l.stripes]++
	at, n := c*ColumnSize, l.columnLen(c)
	switch rng.IntN(4) {
	case 0:
		d.segment.unreadable[c] = true
	case 1:
		copy(d.segment.b[at:at+n], randomBytes(rng, n))
	default:
		d.segment.b[at+rng.IntN(n)] ^= byte(1 + rng.IntN(255))
	}
}

func (d *damage) hitParity(rng *rand.Rand, l *layout, s, j int) {
	if d.parity[[2]int{s, j}] {
		return
	}
	d.parity[[2]int{s, j}] = true
	d.stripes[s]++
	off := l.parityOff(s, j)
	if rng.IntN(2) == 0 {
		d.sidecar.unreadable[int(off/ColumnSize)] = true
	} else {
		d.sidecar.b[int(off)+rng.IntN(ColumnSize)] ^= 1
	}
}

// TestRandomDamage damages columns of segments and sidecars of all shapes, from one to far more than parity reaches: what is within reach is mended, the rest is reported,
// and no byte of either kind is ever given out wrong.
func TestRandomDamage(t *testing.T) {
	lost, mended := 0, 0
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		shape := testShapes[rng.IntN(len(testShapes))]
		size := 1 + rng.IntN(3<<20)
		if rng.IntN(4) == 0 {
			size = 1 + rng.IntN(3*ColumnSize)
		}
		good := randomBytes(rng, size)
		id, sidecar := encode(t, good, shape)
		l := newLayout(shape, int64(size))
		d := &damage{segment: &file{b: bytes.Clone(good), unreadable: map[int]bool{}}, sidecar: &file{b: bytes.Clone(sidecar), unreadable: map[int]bool{}},
			bad: map[int]bool{}, stripes: map[int]int{}, parity: map[[2]int]bool{}}
		for range 1 + rng.IntN(1+l.stripes*shape.Parity/2) {
			if rng.IntN(4) == 0 {
				d.hitParity(rng, &l, rng.IntN(l.stripes), rng.IntN(l.m))
			} else {
				d.hitData(rng, &l, rng.IntN(l.columns))
			}
		}
		s, err := Open(d.sidecar, int64(len(sidecar)), id)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		n, m := d.judge(t, s, good)
		lost, mended = lost+n, mended+m
		if t.Failed() {
			t.Fatalf("seed %d: %v, %d B", seed, shape, size)
		}
	}
	if lost == 0 || mended == 0 {
		t.Errorf("%d columns lost, %d mended: the damage is too even to prove anything", lost, mended)
	}
}

// judge compares what the sidecar says with the damage that was done.
func (d *damage) judge(t *testing.T, s *Sidecar, good []byte) (lost, mended int) {
	t.Helper()
	l := &s.l
	got, err := s.Verify(context.Background(), d.segment, nil)
	if err != nil {
		t.Fatal(err)
	}
	var columns, beyond []int
	for c := range l.columns {
		if d.bad[c] {
			columns = append(columns, c)
			if d.stripes[c%l.stripes] > l.m {
				beyond = append(beyond, c)
			}
		}
	}
	if !slices.Equal(got.Columns, columns) || !slices.Equal(got.Lost, beyond) || got.ParityColumns != len(d.parity) {
		t.Errorf("found %v, lost %v, %d of parity; want %v, %v, %d", got.Columns, got.Lost, got.ParityColumns, columns, beyond, len(d.parity))
	}
	c, err := NewCoder(s.Shape())
	if err != nil {
		t.Fatal(err)
	}
	copied := &file{}
	m, err := s.Mend(context.Background(), d.segment, copied, c, nil)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(m.Lost)
	if len(copied.b) != len(good) || !slices.Equal(m.Lost, beyond) || len(m.Columns) != len(columns)-len(beyond) {
		t.Errorf("a copy of %d B, %d columns mended, lost %v; want %d B, %d, %v", len(copied.b), len(m.Columns), m.Lost, len(good), len(columns)-len(beyond), beyond)
	}
	for c := range l.columns {
		at, n := c*ColumnSize, l.columnLen(c)
		want := good[at : at+n]
		if slices.Contains(beyond, c) {
			p := make([]byte, n)
			if _, err := s.ReadAt(d.segment, p, int64(at)); !errors.Is(err, block.ErrCorrupt) {
				t.Errorf("column %d, which is lost, reads: %v", c, err)
			}
			continue
		}
		if !bytes.Equal(copied.b[at:at+n], want) {
			t.Errorf("column %d of the copy is wrong", c)
		}
		if d.bad[c] || c%17 == 0 {
			p := make([]byte, n)
			if k, err := s.ReadAt(d.segment, p, int64(at)); err != nil || !bytes.Equal(p, want) || (k > 0) != d.bad[c] {
				t.Errorf("column %d: %d reconstructed, %v", c, k, err)
			}
		}
	}
	return len(beyond), len(m.Columns)
}

// TestLostRun loses as much in one place as parity has room for: m whole shards.
func TestLostRun(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 6))
	good := randomBytes(rng, 8<<20+777)
	for _, shape := range testShapes {
		id, sidecar := encode(t, good, shape)
		l := newLayout(shape, id.SizeBytes)
		run := min(l.m*l.stripes, l.columns)
		at := rng.IntN(l.columns - run + 1)
		b := bytes.Clone(good)
		clear(b[at*ColumnSize : min(len(b), (at+run)*ColumnSize)])
		repair(t, &file{b: b}, sidecar, id, good)
		// A file that was cut short.
		repair(t, &file{b: good[:(l.columns-run)*ColumnSize]}, sidecar, id, good)
	}
}

func repair(t *testing.T, segment *file, sidecar []byte, id Identity, want []byte) {
	t.Helper()
	s, err := Open(bytes.NewReader(sidecar), int64(len(sidecar)), id)
	if err != nil {
		t.Fatal(err)
	}
	c, err := NewCoder(s.Shape())
	if err != nil {
		t.Fatal(err)
	}
	var copied file
	m, err := s.Mend(context.Background(), segment, &copied, c, nil)
	if err != nil || len(m.Lost) > 0 || !bytes.Equal(copied.b, want) {
		t.Errorf("%v: %d lost, %v", s.Shape(), len(m.Lost), err)
	}
}

// TestDamagedSidecar takes heads away: one of a pair costs nothing, both cost the protection of their group, and a sidecar that was cut short still helps with what is left.
func TestDamagedSidecar(t *testing.T) {
	good := randomBytes(rand.New(rand.NewPCG(2, 6)), 9<<20)
	id, sidecar := encode(t, good, Default)
	l := newLayout(Default, id.SizeBytes)
	broken := bytes.Clone(good)
	broken[100]++                                      // group 0
	broken[(l.stripes-1)*ColumnSize+5]++               // the last group
	for _, off := range []int64{0, l.headOffs(0)[1]} { // one head at a time
		b := bytes.Clone(sidecar)
		b[off+200] ^= 4
		repair(t, &file{b: bytes.Clone(broken)}, b, id, good)
	}
	b := bytes.Clone(sidecar)
	for _, off := range l.headOffs(0) {
		b[off+3000] ^= 4
	}
	s, err := Open(bytes.NewReader(b), int64(len(b)), id)
	if err != nil {
		t.Fatal(err)
	}
	d, err := s.Verify(context.Background(), &file{b: broken}, nil)
	if err != nil || d.Heads != 2 || d.Unguarded != 32*16 || len(d.Columns) != 1 || len(d.Lost) != 0 || !d.Sidecar() {
		t.Errorf("without the heads of group 0: %+v, %v", d, err)
	}
	if _, err := s.ReadAt(&file{b: broken}, make([]byte, 10), 100); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a read without checksums: %v", err)
	}
	for _, n := range []int64{headSize, l.groupOff(1), l.groupOff(2) + 70_000, int64(len(sidecar)) - 1} {
		s, err := Open(bytes.NewReader(sidecar[:n]), n, id)
		if err != nil {
			t.Errorf("cut to %d B: %v", n, err)
			continue
		}
		p := make([]byte, 10)
		if _, err := s.ReadAt(&file{b: broken}, p, 100); n > headSize && (err != nil || !bytes.Equal(p, good[100:110])) {
			t.Errorf("cut to %d B: %v", n, err)
		}
	}
	if _, err := Open(bytes.NewReader(sidecar[:100]), 100, id); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("100 B of a sidecar: %v", err)
	}
}

// TestForeignSidecar refuses what belongs to another store, segment, generation or content.
func TestForeignSidecar(t *testing.T) {
	good := randomBytes(rand.New(rand.NewPCG(3, 6)), 100_000)
	id, sidecar := encode(t, good, Default)
	for name, change := range map[string]func(*Identity){
		"store": func(i *Identity) { i.StoreID[3]++ }, "segment": func(i *Identity) { i.Segment++ }, "generation": func(i *Identity) { i.Generation++ },
		"size": func(i *Identity) { i.SizeBytes++ }, "footer": func(i *Identity) { i.FooterCRC++ },
	} {
		other := id
		change(&other)
		if _, err := Open(bytes.NewReader(sidecar), int64(len(sidecar)), other); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("another %s: %v", name, err)
		}
	}
	unknown := id
	unknown.FooterCRC = 0
	s, err := Open(bytes.NewReader(sidecar), int64(len(sidecar)), unknown)
	if err != nil || s.Identity() != id {
		t.Errorf("a footer that is not known: %v", err)
	}
}

// TestEncodeOfChangedBytes sees a column that reads otherwise than when it was found good.
func TestEncodeOfChangedBytes(t *testing.T) {
	good := randomBytes(rand.New(rand.NewPCG(4, 6)), 300_000)
	sums, err := Sums(context.Background(), &file{b: good}, int64(len(good)), nil, func([]byte) {})
	if err != nil {
		t.Fatal(err)
	}
	good[123_456]++
	c, _ := NewCoder(Default)
	id := testID
	id.SizeBytes = int64(len(good))
	if err := c.Encode(context.Background(), &file{b: good}, id, sums, &bytes.Buffer{}, nil); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("encode: %v", err)
	}
	if _, err := Sums(context.Background(), &file{b: good, unreadable: map[int]bool{9: true}}, int64(len(good)), nil, func([]byte) {}); err == nil {
		t.Error("a segment that cannot be read has sums")
	}
}

// TestPaceEndsWork ends every pass at the first and at a later wait.
func TestPaceEndsWork(t *testing.T) {
	good := randomBytes(rand.New(rand.NewPCG(5, 6)), 5<<20)
	id, sidecar := encode(t, good, Default)
	s, err := Open(bytes.NewReader(sidecar), int64(len(sidecar)), id)
	if err != nil {
		t.Fatal(err)
	}
	c, _ := NewCoder(Default)
	enough := errors.New("enough")
	for after := range 3 {
		left := after
		pace := func(context.Context, int) error {
			if left--; left < 0 {
				return enough
			}
			return nil
		}
		_, err := s.Verify(context.Background(), &file{b: good}, pace)
		if !errors.Is(err, enough) {
			t.Errorf("verify: %v", err)
		}
		left = after
		if _, err := s.Mend(context.Background(), &file{b: good}, &file{}, c, pace); !errors.Is(err, enough) {
			t.Errorf("mend: %v", err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Verify(ctx, &file{b: good}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("verify: %v", err)
	}
}

func TestShapes(t *testing.T) {
	for _, text := range []string{"off", "16+2", "2+1", "2+2", "23+8", "30+1"} {
		if s, err := ParseShape(text); err != nil || s.String() != text {
			t.Errorf("%s: %v, %v", text, s, err)
		}
	}
	for _, text := range []string{"", "16", "16+", "+2", "16+0", "1+1", "2+3", "31+1", "24+8", "16+9", "016+2", "16+2 ", "-2+1", "0+0"} {
		if s, err := ParseShape(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q is %v, %v", text, s, err)
		}
	}
}
