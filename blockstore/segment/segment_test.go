package segment_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// memFile is a segment in memory: sink, reader and updater.
type memFile struct {
	b      []byte
	writes int
	synced int   // bytes at the last Sync
	fail   error // of the next Write or Sync
}

func (f *memFile) Write(p []byte) (int, error) {
	if f.fail != nil {
		f.b = append(f.b, p[:len(p)/2]...)
		return len(p) / 2, f.fail
	}
	f.writes++
	f.b = append(f.b, p...)
	return len(p), nil
}

func (f *memFile) Sync() error {
	if f.fail != nil {
		return f.fail
	}
	f.synced = len(f.b)
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(f.b).ReadAt(p, off)
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if end := int(off) + len(p); end > len(f.b) {
		f.b = append(f.b, make([]byte, end-len(f.b))...)
	}
	return copy(f.b[off:], p), nil
}

func (f *memFile) size() int64 { return int64(len(f.b)) }

var (
	testKey  = must(dedup.DomainKeyFromBytes(bytes.Repeat([]byte{1, 2, 3, 4}, 8)))
	testMeta = segment.Meta{StoreID: block.UUID{0xaa, 1, 2, 3, 0xbb}, ID: 0x1234, Generation: 7, Class: segment.Warm, DomainID: testKey.ID()}
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func randomBytes(seed byte, n int) []byte {
	src := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, n)
	src.Read(p)
	return p
}

// textBytes compress well.
func textBytes(seed, n int) []byte {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of text %d: the quick brown fox\n", i*i, seed)
	}
	return []byte(b.String()[:n])
}

func chunk(id int, raw []byte) segment.Chunk {
	return segment.Chunk{ID: block.ChunkID(id), Hash: dedup.NewHasher(testKey).Sum(raw), Raw: raw}
}

func encode(tb testing.TB, codec segment.Codec, chunks ...segment.Chunk) []byte {
	tb.Helper()
	b, err := segment.EncodeFrame(nil, chunks, codec, segment.NewEncoder())
	if err != nil {
		tb.Fatal(err)
	}
	return b
}

// checkFrame parses and decodes b and compares it with the chunks that went in.
func checkFrame(tb testing.TB, b []byte, want []segment.Chunk) {
	tb.Helper()
	f, err := segment.ParseFrame(b)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := f.Decode(nil, segment.NewDecoder())
	if err != nil {
		tb.Fatal(err)
	}
	got := f.Chunks(nil)
	if len(got) != len(want) || len(got) != f.NumChunks() {
		tb.Fatalf("%d chunks, want %d", len(got), len(want))
	}
	for i, c := range got {
		w := want[i]
		if c.ID != w.ID || c.Hash != w.Hash || !bytes.Equal(raw[c.RawOff:c.RawOff+c.RawLen], w.Raw) {
			tb.Errorf("chunk %d differs", i)
		}
	}
}

// build writes a segment of n frames and returns it with the frames' offsets and chunks. It is not sealed.
func build(tb testing.TB, n int) (*memFile, *segment.Writer, []uint32, [][]segment.Chunk) {
	tb.Helper()
	f := &memFile{}
	w, err := segment.NewWriter(f, testMeta)
	if err != nil {
		tb.Fatal(err)
	}
	var offs []uint32
	var all [][]segment.Chunk
	for i := range n {
		chunks := []segment.Chunk{chunk(3*i+1, textBytes(i, 9000+i)), chunk(3*i+2, randomBytes(byte(i), 3000)), chunk(3*i+3, textBytes(-i, 1))}[:1+i%3]
		off, err := w.Append(encode(tb, segment.Codec(i%3), chunks...))
		if err != nil {
			tb.Fatal(err)
		}
		offs, all = append(offs, off), append(all, chunks)
	}
	return f, w, offs, all
}

func sealed(tb testing.TB, n int) (*memFile, segment.Footer) {
	tb.Helper()
	f, w, _, _ := build(tb, n)
	footer, err := w.Seal(99)
	if err != nil {
		tb.Fatal(err)
	}
	return f, footer
}

func TestSealedSegmentTellsWhatItHolds(t *testing.T) {
	f, w, offs, all := build(t, 10)
	footer, err := w.Seal(4711)
	if err != nil {
		t.Fatal(err)
	}
	if f.synced != len(f.b) || footer.FileSize() != uint64(len(f.b)) {
		t.Errorf("%d B, of which %d are synced; the footer says %d", len(f.b), f.synced, footer.FileSize())
	}
	got, err := segment.Check(f, f.size())
	if err != nil {
		t.Fatal(err)
	}
	want := footer
	want.DomainID = dedup.DomainID{} // in the header only
	if got != want || got.SealEpoch != 4711 || got.Frames != 10 || got.Codecs != 7 {
		t.Errorf("footer read as %+v, written as %+v", got, want)
	}
	meta, err := segment.ReadHeader(f, f.size())
	if err != nil || meta != testMeta {
		t.Errorf("header read as %+v, %v", meta, err)
	}
	dir, err := segment.ReadDirectory(f, &got)
	if err != nil {
		t.Fatal(err)
	}
	for i, d := range dir {
		if d.Off != offs[i] || len(d.Chunks) != len(all[i]) {
			t.Errorf("frame %d: %+v", i, d)
			continue
		}
		checkFrame(t, f.b[d.Off:d.Off+d.Len], all[i])
		for j, c := range d.Chunks {
			if w := all[i][j]; c.ID != w.ID || int(c.RawLen) != len(w.Raw) || c.Hash != [16]byte(w.Hash[:16]) {
				t.Errorf("frame %d, chunk %d: %+v", i, j, c)
			}
		}
	}
}

func TestEmptySegment(t *testing.T) {
	f, footer := sealed(t, 0)
	if _, err := segment.Check(f, f.size()); err != nil || footer.Frames != 0 {
		t.Errorf("%+v, %v", footer, err)
	}
}

func TestOpenSegmentIsReadAtOffsets(t *testing.T) {
	f, w, offs, all := build(t, 5)
	if len(f.b) != segment.HeaderSize {
		t.Errorf("%d B written before Flush", len(f.b))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if f.synced != 0 || len(f.b) != int(w.Size()) {
		t.Errorf("after Flush %d B are synced, %d of %d are written", f.synced, len(f.b), w.Size())
	}
	for i, off := range offs {
		checkFrame(t, f.b[off:], all[i])
	}
	if _, err := segment.ReadFooter(f, f.size()); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("footer of an open segment: %v", err)
	}
}

func TestCheckHeaderFindsStrangers(t *testing.T) {
	f, _ := sealed(t, 1)
	if m, err := segment.CheckHeader(f, f.size(), testMeta.StoreID, testMeta.ID, testMeta.Generation); err != nil || m != testMeta {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, err := range map[string]error{
		"store":      second(segment.CheckHeader(f, f.size(), block.UUID{9}, testMeta.ID, testMeta.Generation)),
		"id":         second(segment.CheckHeader(f, f.size(), testMeta.StoreID, 5, testMeta.Generation)),
		"generation": second(segment.CheckHeader(f, f.size(), testMeta.StoreID, testMeta.ID, 8)),
		"empty file": second(segment.CheckHeader(&memFile{}, 0, testMeta.StoreID, testMeta.ID, 7)),
	} {
		if !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("other %s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestWriterLimits(t *testing.T) {
	if testing.Short() {
		t.Skip("writes 64 MiB to memory")
	}
	f := &memFile{b: make([]byte, 0, segment.SegmentSize)}
	w, err := segment.NewWriter(f, testMeta)
	if err != nil {
		t.Fatal(err)
	}
	big := encode(t, segment.None, chunk(1, randomBytes(1, segment.MaxFrameRaw)))
	small := encode(t, segment.None, chunk(2, []byte("x")))
	for err == nil {
		_, err = w.Append(big)
	}
	if !errors.Is(err, segment.ErrFull) {
		t.Fatal(err)
	}
	for err = nil; err == nil; {
		_, err = w.Append(small)
	}
	if !errors.Is(err, segment.ErrFull) {
		t.Fatal(err)
	}
	if _, err := w.Seal(1); err != nil {
		t.Fatal(err)
	}
	if n := f.size(); n > segment.SegmentSize || n < segment.SegmentSize-1024 {
		t.Errorf("a full segment has %d B", n)
	}
	if _, err := segment.Check(f, f.size()); err != nil {
		t.Error(err)
	}
	if f.writes > 40 {
		t.Errorf("%d writes for 64 MiB", f.writes)
	}
}

func TestWriterRefuses(t *testing.T) {
	_, w, _, _ := build(t, 1)
	frame := encode(t, segment.S2, chunk(1, textBytes(1, 5000)))
	frame[80] ^= 1
	if _, err := w.Append(frame); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("frame with a flipped bit: %v", err)
	}
	frame[80] ^= 1
	if _, err := w.Append(append(frame, 0)); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("frame with a byte behind it: %v", err)
	}
	if _, err := w.Seal(1); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Append(frame); !errors.Is(err, block.ErrClosed) {
		t.Errorf("append after seal: %v", err)
	}
	if _, err := w.Seal(1); !errors.Is(err, block.ErrClosed) {
		t.Errorf("second seal: %v", err)
	}
	for _, change := range []func(*segment.Meta){func(m *segment.Meta) { m.Class = 0 }, func(m *segment.Meta) { m.ID = 0 }, func(m *segment.Meta) { m.KeyID = 1 }} {
		m := testMeta
		change(&m)
		if _, err := segment.NewWriter(&memFile{}, m); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// A failed sync may have lost what it was to make durable, whatever a second one says.
func TestWriterFailureIsFinal(t *testing.T) {
	for _, act := range []func(*segment.Writer) error{(*segment.Writer).Flush, (*segment.Writer).Sync, func(w *segment.Writer) error { _, err := w.Seal(1); return err }} {
		f, w, _, _ := build(t, 2)
		f.fail = io.ErrNoProgress
		if err := act(w); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("first: %v", err)
		}
		f.fail = nil
		if err := w.Sync(); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("then: %v", err)
		}
		if _, err := w.Append(encode(t, segment.None, chunk(1, []byte("x")))); !errors.Is(err, io.ErrNoProgress) {
			t.Errorf("append: %v", err)
		}
	}
}

func TestScanStopsAtTheFirstBadFrame(t *testing.T) {
	f, w, offs, all := build(t, 12)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	end := w.Size()
	scan := func(from, to uint32) (n int, at uint32, err error) {
		at, err = segment.ScanFrames(f, from, to, func(off uint32, fr *segment.Frame) error {
			checkFrame(t, f.b[off:off+fr.Size], all[len(all)-12+n])
			n++
			return nil
		})
		return n, at, err
	}
	if n, at, err := scan(segment.HeaderSize, end); n != 12 || at != end || err != nil {
		t.Errorf("whole: %d frames to %d, %v", n, at, err)
	}
	for _, to := range []uint32{end - 1, offs[11] + 1, offs[11] + 63, offs[11] + 64} {
		if n, at, err := scan(segment.HeaderSize, to); n != 11 || at != offs[11] || !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("to %d: %d frames to %d, %v", to, n, at, err)
		}
	}
	f.b[offs[7]+200] ^= 4
	if n, at, err := scan(segment.HeaderSize, end); n != 7 || at != offs[7] || !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("bad frame 7: %d frames to %d, %v", n, at, err)
	}
	f.b = f.b[:offs[5]+100]
	if n, at, err := scan(segment.HeaderSize, end); n != 5 || at != offs[5] || !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("file cut in frame 5: %d frames to %d, %v", n, at, err)
	}
	stop := errors.New("stop")
	if at, err := segment.ScanFrames(f, segment.HeaderSize, end, func(uint32, *segment.Frame) error { return stop }); err != stop || at != segment.HeaderSize {
		t.Errorf("visit that stops: %d, %v", at, err)
	}
}

func TestReseal(t *testing.T) {
	for _, c := range []struct {
		name      string
		committed int // frames
		garbage   int // bytes behind the last whole frame
	}{{"all", 6, 0}, {"none", 0, 0}, {"some", 3, 0}, {"torn tail", 6, 50000}, {"little tail", 6, 3}} {
		t.Run(c.name, func(t *testing.T) {
			f, w, offs, all := build(t, 6)
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			committed := w.Size()
			if c.committed < 6 {
				committed = offs[c.committed]
			}
			f.b = append(f.b, randomBytes(1, c.garbage)...)
			for range 2 { // the second is a repetition after a crash
				footer, err := segment.Reseal(f, f.size(), testMeta, committed, 5)
				if err != nil {
					t.Fatal(err)
				}
				got, err := segment.Check(f, f.size())
				if err != nil || int(got.Frames) != c.committed || got.SealEpoch != 5 || footer.FileSize() != uint64(f.size()) || f.synced != len(f.b) {
					t.Fatalf("%+v, %v", got, err)
				}
			}
			for i := range c.committed {
				checkFrame(t, f.b[offs[i]:], all[i])
			}
		})
	}
}

func TestResealRefuses(t *testing.T) {
	f, w, offs, _ := build(t, 4)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	before := bytes.Clone(f.b)
	other := testMeta
	other.ID++
	for name, err := range map[string]error{
		"inside a frame":    second(segment.Reseal(f, f.size(), testMeta, offs[2]+10, 1)),
		"behind the file":   second(segment.Reseal(f, f.size(), testMeta, uint32(f.size())+1, 1)),
		"inside the header": second(segment.Reseal(f, f.size(), testMeta, 100, 1)),
		"another segment":   second(segment.Reseal(f, f.size(), other, offs[2], 1)),
	} {
		if !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	f.b[offs[1]+70] ^= 1
	if _, err := segment.Reseal(f, f.size(), testMeta, offs[3], 1); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("bad frame: %v", err)
	}
	f.b[offs[1]+70] ^= 1
	if !bytes.Equal(f.b, before) {
		t.Error("a refused reseal changed the file")
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// resum makes the checksum at crcOff cover b[from:crcOff] again, as a wrong writer would have.
func resum(b []byte, from, crcOff int) {
	binary.LittleEndian.PutUint32(b[crcOff:], crc32.Checksum(b[from:crcOff], castagnoli))
}
