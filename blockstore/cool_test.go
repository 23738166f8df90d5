package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/check"
)

// coolTest settles a store cold.
func coolTest(t testing.TB, s *Store) {
	t.Helper()
	if err := s.SettleCold(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
}

// classes counts the live raw bytes of each class.
func classes(s *Store) map[segment.Class]uint64 {
	live := map[segment.Class]uint64{}
	for _, r := range s.segments.all() {
		live[r.Class] += r.LiveRaw
	}
	return live
}

// guestText is data of which zstd makes more than S2 does: words out of a small vocabulary.
func guestText(rng *rand.Rand, n int) []byte {
	words := make([][]byte, 500)
	for i := range words {
		words[i] = make([]byte, 3+rng.IntN(8))
		for j := range words[i] {
			words[i][j] = byte('a' + rng.IntN(26))
		}
	}
	p := make([]byte, 0, n+16)
	for len(p) < n {
		p = append(append(p, words[min(rng.IntN(500), rng.IntN(500))]...), ' ')
	}
	return p[:n]
}

// A cold settle leaves nothing warm, takes less room, and every state of every volume still reads as before, after a restart too; what is written then is warm again until the next one.
func TestSettleCold(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	d := createTest(t, s, "a", 64<<20)
	rng := rand.New(rand.NewPCG(5, 1))
	data := guestText(rng, 12<<20)
	writeTest(t, d, 0, data)
	if _, err := s.CreateSnapshot(context.Background(), "a", "one"); err != nil {
		t.Fatal(err)
	}
	old := append([]byte(nil), data...)
	copy(data[3<<20:], guestText(rng, 5<<20))
	writeTest(t, d, 3<<20, data[3<<20:8<<20])
	settleTest(t, s)
	warm := s.Stats().StoredBytes
	if live := classes(s); live[segment.Cold] != 0 || live[segment.Warm] == 0 {
		t.Fatalf("live before: %v", live)
	}
	coolTest(t, s)
	cold := s.Stats()
	if live := classes(s); live[segment.Warm] != 0 || live[segment.Cold] != cold.UniqueBytes {
		t.Fatalf("live after: %v, unique %d", live, cold.UniqueBytes)
	}
	if cold.StoredBytes > warm*85/100 {
		t.Fatalf("%d B stored cold, %d B warm", cold.StoredBytes, warm)
	}
	for range 2 {
		expect(t, d, 0, data)
		expect(t, deviceTest(t, s, "a", "one"), 0, old)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = openTest(t, opts)
		d = deviceTest(t, s, "a", "")
	}
	copy(data[10<<20:], guestText(rng, 2<<20))
	writeTest(t, d, 10<<20, data[10<<20:12<<20])
	settleTest(t, s)
	if live := classes(s); live[segment.Warm] == 0 {
		t.Fatalf("live after new writes: %v", live)
	}
	coolTest(t, s)
	if live := classes(s); live[segment.Warm] != 0 {
		t.Fatalf("live after the second: %v", live)
	}
	expect(t, d, 0, data)
	expect(t, deviceTest(t, s, "a", "one"), 0, old)
}

// What dies, or moves, after a cold pass has read it and before it places it, stays dead, or where it went. Nobody has to wait for the pass either.
func TestCoolingLetsOthersChangeWhatItReads(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	g := newGate(beforeCold)
	opts.atMoment = g.pass
	s := openTest(t, opts)
	defer g.release()
	rng := rand.New(rand.NewPCG(7, 1))
	d := createTest(t, s, "a", 32<<20)
	data := guestText(rng, 4<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	g.arm()
	done := make(chan error, 1)
	go func() { done <- s.SettleCold(context.Background(), nil) }()
	<-g.reached
	fresh := guestText(rng, 3<<20)
	copy(data, fresh)
	writeTest(t, d, 0, fresh)
	settleTest(t, s)
	unique := s.Stats().UniqueBytes
	g.release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	expect(t, d, 0, data)
	if got := s.Stats().UniqueBytes; got != unique {
		t.Errorf("%d B unique after the pass, %d B before", got, unique)
	}
	(&model{t: t, s: s}).audit()
	coolTest(t, s)
	if live := classes(s); live[segment.Warm] != 0 || live[segment.Cold] != unique {
		t.Errorf("live %v, want all of %d B cold", live, unique)
	}
	expect(t, d, 0, data)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	checkStore(t, opts.Dir)
}

// Versions of the same place share frames, so that what they have in common is stored once, whether they are snapshots of one volume or volumes of their own.
func TestSimilarChunksShareFrames(t *testing.T) {
	rng := rand.New(rand.NewPCG(8, 1))
	first := guestData(rng, 4<<20)
	versions := [][]byte{first}
	for range 3 {
		v := append([]byte(nil), versions[len(versions)-1]...)
		for at := rng.IntN(4 << 10); at < len(v); at += 10<<10 + rng.IntN(4<<10) {
			v[at] ^= 0xff // a byte in most chunks
		}
		versions = append(versions, v)
	}
	stored := func(similarOff bool, write func(s *Store)) uint64 {
		opts := testOptions(t, vfs.Default, t.TempDir())
		opts.SimilarOff = similarOff
		opts.MemoryBytes = 512 << 20 // a batch that holds all versions of a stretch
		s := openTest(t, opts)
		write(s)
		coolTest(t, s)
		n := s.Stats().StoredBytes
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		checkStore(t, opts.Dir)
		return n
	}
	for name, write := range map[string]func(s *Store){
		"snapshots": func(s *Store) {
			d := createTest(t, s, "a", 16<<20)
			for i, v := range versions {
				writeTest(t, d, 0, v)
				if _, err := s.CreateSnapshot(context.Background(), "a", string(rune('a'+i))); err != nil {
					t.Fatal(err)
				}
			}
		},
		"volumes": func(s *Store) {
			for i, v := range versions {
				writeTest(t, createTest(t, s, string(rune('a'+i)), 16<<20), 0, v)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			plain, packed := stored(true, write), stored(false, write)
			if packed > plain*60/100 {
				t.Errorf("%d B with similar chunks together, %d B without", packed, plain)
			}
			t.Logf("%d B with similar chunks together, %d B without", packed, plain)
		})
	}
}

// checkStore has the second reader look at a closed store.
func checkStore(t *testing.T, dir string) {
	t.Helper()
	report, err := check.Run(t.Context(), dir, check.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range report.Findings {
		if encrypted && f.Severity == check.Warning {
			continue // that it is encrypted
		}
		t.Errorf("check: %+v", f)
	}
}

// What nobody writes to or reads goes cold by itself, once it is sealed, as it is by the next start.
func TestColdByItself(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	data := guestText(rand.New(rand.NewPCG(9, 1)), 6<<20)
	writeTest(t, createTest(t, s, "a", 16<<20), 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.ColdAfter, opts.coolLeast, opts.KeepBytesPerSecond = 40*time.Millisecond, 1, 1<<30
	s = openTest(t, opts)
	for deadline := time.Now().Add(4 * time.Minute); classes(s)[segment.Warm] > 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it does not go cold: %+v, live %v", s.Cooling(), classes(s))
		}
	}
	waitFor(t, "all that is stored is counted as gone cold", func() bool { return s.Cooling().MovedBytes == s.Stats().UniqueBytes }) // after the rows
	expect(t, deviceTest(t, s, "a", ""), 0, data)
	(&model{t: t, s: s}).audit()
}

// Reads of a segment begin its time anew.
func TestWhatIsReadStaysWarm(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.ColdAfter = time.Hour
	s := openTest(t, opts)
	s.cancel() // only the cooler's choice is tested
	s.running.Wait()
	s.segments.rows[901] = &segmentRow{ID: 901, Class: segment.Warm, State: segmentSealed, Size: 80, LiveRaw: 100, LiveChunks: 1}
	s.segments.rows[902] = &segmentRow{ID: 902, Class: segment.Cold, State: segmentSealed, Size: 80, LiveRaw: 100, LiveChunks: 1}
	s.segments.rows[903] = &segmentRow{ID: 903, Class: segment.Warm, State: segmentOpen, Size: 80, LiveRaw: 100, LiveChunks: 1}
	defer func() {
		for id := block.SegmentID(901); id <= 903; id++ {
			s.segments.remove(id)
		}
	}()
	known, now := map[block.SegmentID]*cooled{}, time.Unix(1000, 0)
	step := func(after time.Duration, read int, want bool) {
		t.Helper()
		now = now.Add(after)
		s.cooler.reads.add(901, read)
		from, live := s.cooler.due(known, now)
		if len(from) > 1 || from[901] != want || want != (live == 100) {
			t.Fatalf("at %v: %v, %d live, want 901 alone: %v", now.Unix(), from, live, want)
		}
	}
	step(0, 0, false)
	step(30*time.Minute, 5, false)
	step(29*time.Minute, 6, false) // more than an eighth altogether
	step(59*time.Minute, 9, false)
	step(2*time.Minute, 0, true)
	step(time.Minute, 20, false)
}

// TestAuditBesideCooling audits while a cold pass holds packed chunks that are not placed yet, and after each step that follows: they count where they were, and files of the segments
// that the pass empties go with the audit of a settle, not before.
func TestAuditBesideCooling(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	g := newGate(beforeCold)
	opts.atMoment = g.pass
	s := openTest(t, opts)
	defer g.release()
	d := createTest(t, s, "a", 32<<20)
	data := guestText(rand.New(rand.NewPCG(7, 2)), 6<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	audit := func() AuditReport {
		t.Helper()
		r, err := s.Audit(t.Context(), nil)
		if err != nil || !r.Passed() || r.Unreachable+r.WrongSegments+r.FilesKept != 0 || r.Chunks == 0 {
			t.Fatalf("audit: %+v, %v", r, err)
		}
		return r
	}
	before := audit()
	g.arm()
	ended := make(chan error, 1)
	go func() { ended <- s.SettleCold(context.Background(), nil) }()
	<-g.reached
	if r := audit(); r.Chunks != before.Chunks || r.References != before.References {
		t.Errorf("%d chunks, %d references while they are packed, %d and %d before", r.Chunks, r.References, before.Chunks, before.References)
	}
	g.release()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if r := audit(); r.Chunks != before.Chunks || r.References != before.References {
		t.Errorf("%d chunks, %d references when they are cold, %d and %d before", r.Chunks, r.References, before.Chunks, before.References)
	}
	if live, st := classes(s), s.GC(); live[segment.Warm] != 0 || st.WaitingFiles != 0 || st.SegmentsFreed == 0 || st.Audits == 0 {
		t.Errorf("live %v, %+v", live, st)
	}
	expect(t, d, 0, data)
}

// TestSurvivorsStayCold: what lives in a cold segment that is emptied stays in the cold class, and what lives in a warm one in the warm class, apart from what destage writes.
func TestSurvivorsStayCold(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "a", 32<<20)
	rng := rand.New(rand.NewPCG(7, 3))
	data := guestText(rng, 24<<20)
	writeTest(t, d, 0, data)
	coolTest(t, s)
	for at := 0; at < len(data); at += 2 << 20 { // half of each cold segment dies
		copy(data[at:], guestText(rng, 1<<20))
		writeTest(t, d, uint64(at), data[at:at+1<<20])
	}
	before := s.GC().MovedBytes
	settleTest(t, s)
	live := classes(s)
	if moved := s.GC().MovedBytes - before; moved == 0 || live[segment.Cold] < 11<<20 || live[segment.Warm] < 11<<20 {
		t.Errorf("%d B were moved; live %v", moved, live)
	}
	if s.mover.w != nil {
		t.Error("survivors of cold segments went into a warm one")
	}
	expect(t, d, 0, data)
	(&model{t: t, s: s}).audit()
}

// guestLog is lines of a web server's log, of which zstd makes a tenth less when it tries hard.
func guestLog(rng *rand.Rand, n int) []byte {
	paths := make([]string, 300)
	for i := range paths {
		paths[i] = fmt.Sprintf("/%x/%x.html", rng.IntN(40), rng.Uint64N(1<<30))
	}
	p, at := make([]byte, 0, n+200), time.Duration(0)
	for len(p) < n {
		at += time.Duration(rng.IntN(300)) * time.Millisecond
		p = fmt.Appendf(p, "10.1.%d.%d - [%v] GET %s 200 %d\n", rng.IntN(4), rng.IntN(256), at, paths[min(rng.IntN(300), rng.IntN(300))], rng.IntN(20000))
	}
	return p[:n]
}

// What survives in cold segments that are emptied is packed as densely as what goes cold for the first time.
func TestColdSurvivorsStayDense(t *testing.T) {
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(5, 9))
	data := guestLog(rng, 12<<20)
	density := func(name string, write func(s *Store, d *Device)) float64 { // bytes stored for each that lives
		opts := testOptions(t, vfs.Default, t.TempDir())
		opts.ColdEffort = segment.High
		s := openTest(t, opts)
		d := createTest(t, s, "a", 64<<20)
		write(s, d)
		coolTest(t, s)
		if err := s.CollectGarbage(ctx, nil); err != nil {
			t.Fatal(err)
		}
		expect(t, d, 0, data)
		stored, live := uint64(0), uint64(0)
		for _, r := range s.segments.all() {
			if r.Class == segment.Cold {
				stored, live = stored+r.Size, live+r.LiveRaw
			}
		}
		t.Logf("%s: %d KiB for %d KiB, %d KiB moved", name, stored>>10, live>>10, s.GC().MovedBytes>>10)
		return float64(stored) / float64(live)
	}
	trimmed := density("trimmed", func(s *Store, d *Device) {
		writeTest(t, d, 0, data)
		coolTest(t, s)
		for off := 0; off < len(data); off += 256 << 10 {
			clear(data[off : off+160<<10])
			if err := d.Trim(ctx, block.Range{Off: uint64(off), Len: 160 << 10}, false); err != nil {
				t.Fatal(err)
			}
		}
	})
	fresh := density("fresh", func(s *Store, d *Device) {
		for off := 160 << 10; off < len(data); off += 256 << 10 {
			writeTest(t, d, uint64(off), data[off:off+96<<10])
		}
	})
	if trimmed > fresh*1.04 {
		t.Errorf("%.3f of a byte for each that trims have left, %.3f of the same data at once", trimmed, fresh)
	}
}

// With the effort High and memory for it, cold frames are as large as a frame may be; with less memory they are not.
func TestDenseFrames(t *testing.T) {
	data := guestLog(rand.New(rand.NewPCG(5, 10)), 24<<20)
	for _, c := range []struct {
		effort      segment.Effort
		memory      int64
		least, most uint32 // raw bytes of the largest frame
	}{
		{segment.High, 320 << 20, segment.DenseFrameRawTarget, segment.MaxFrameRaw},
		{segment.High, 128 << 20, segment.ColdFrameRawTarget, segment.ColdFrameRawTarget * 3 / 2},
		{segment.Normal, 1 << 30, segment.ColdFrameRawTarget, segment.ColdFrameRawTarget * 3 / 2},
	} {
		opts := testOptions(t, vfs.Default, t.TempDir())
		opts.ColdEffort, opts.MemoryBytes = c.effort, c.memory
		s := openTest(t, opts)
		d := createTest(t, s, "a", 64<<20)
		writeTest(t, d, 0, data)
		coolTest(t, s)
		largest := uint32(0)
		for _, r := range s.segments.all() {
			if r.Class != segment.Cold {
				continue
			}
			at := &segmentReader{ctx: t.Context(), s: s, row: &r}
			if _, err := segment.ScanFrames(at, segment.HeaderSize, uint32(r.Size), func(_ uint32, fr *segment.Frame) error {
				largest = max(largest, fr.RawLen)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		if largest < c.least || largest > c.most {
			t.Errorf("effort %d with %d MiB: the largest frame holds %d B", c.effort, c.memory>>20, largest)
		}
		expect(t, d, 0, data)
	}
}
