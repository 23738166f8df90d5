package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	hvfs "github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Whatever is flipped or lost within the reach of parity, also of headers and footers, all that was written is read, before and after an open, the files are found damaged and mended to the bytes that were sealed, and none of it is found again.
func TestParityMends(t *testing.T) {
	rounds := 0
	for seed := range uint64(16) {
		rng := rand.New(rand.NewPCG(seed, 32))
		var keys *keyring.Ring
		if seed%3 == 1 {
			keys = testKeys(t, block.UUID{1})
		}
		fs := newSectorFS(hvfs.NewCrashableMem())
		s, all, was := sealedStream(t, fs, keys, rng, 5)
		spoil(t, fs, rng, was)
		if !reachable(t, fs, was) {
			must(t, s.Close())
			continue
		}
		rounds++
		if rng.IntN(2) == 0 {
			must(t, s.Close())
			s = openSet(t, fs, keys)
		}
		compare(t, s, s.Stream(testVolume), all)
		if n := len(s.Asked()); (n > 0) != (s.InlineRepairs() > 0) {
			t.Errorf("seed %d: %d files are asked for after %d inline repairs", seed, n, s.InlineRepairs())
		}
		if n := mendAll(t, s); n != len(was) {
			t.Fatalf("seed %d: %d of %d damaged files were found", seed, n, len(was))
		}
		inline := s.InlineRepairs()
		compare(t, s, s.Stream(testVolume), all)
		if s.InlineRepairs() != inline {
			t.Errorf("seed %d: parity still answers reads of files that are mended", seed)
		}
		for path, b := range was {
			if !bytes.Equal(readAll(t, fs, path), b) {
				t.Fatalf("seed %d: %s is not what was sealed", seed, path)
			}
		}
		if n := mendAll(t, s); n != 0 {
			t.Errorf("seed %d: %d files are damaged after they were mended", seed, n)
		}
		must(t, s.Close())
		s = openSet(t, fs, keys)
		compare(t, s, s.Stream(testVolume), all)
		must(t, s.Close())
	}
	if rounds < 8 {
		t.Fatalf("only %d rounds were within reach", rounds)
	}
}

// A file that is read all the while is mended under its readers, and the damaged one is closed when they are done.
func TestParityMendsUnderReaders(t *testing.T) {
	counted := &countingFS{FS: hvfs.NewCrashableMem()}
	fs, rng := newSectorFS(counted), rand.New(rand.NewPCG(1, 33))
	s, all, was := sealedStream(t, fs, nil, rng, 6)
	for path := range was {
		flip(t, fs, path, 600, 1)
	}
	stop, running := make(chan struct{}), sync.WaitGroup{}
	for range 3 {
		running.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					compare(t, s, s.Stream(testVolume), all)
				}
			}
		})
	}
	for range 5 {
		if n := mendAll(t, s); n != len(was) {
			t.Errorf("%d of %d files were found damaged", n, len(was))
		}
		for path := range was {
			flip(t, fs, path, 700, 1)
		}
	}
	close(stop)
	running.Wait()
	must(t, s.Close())
	if n := counted.open.Load(); n != 0 {
		t.Errorf("%d files are open after Close", n)
	}
}

// A file longer than 64 MiB has a sidecar in parts, each of which mends its own.
func TestParityInParts(t *testing.T) {
	fs, rng := newSectorFS(hvfs.NewCrashableMem()), rand.New(rand.NewPCG(2, 33))
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	payload := make([]byte, FrameRaw)
	for i := range payload {
		payload[i] = byte(rng.Uint32())
	}
	for seq := uint64(1); len(s.Sealed()) == 0; seq++ { // of which the last ones go into the next file
		le.PutUint64(payload, seq)
		must(t, st.Append(&Record{Kind: Write, Seq: seq, Time: int64(seq), Off: seq * FrameRaw, Len: FrameRaw, Payload: payload}))
	}
	of := s.Sealed()[0]
	if of.Bytes <= partSize {
		t.Fatalf("a file of %d B", of.Bytes)
	}
	guardAll(t, s)
	was := readAll(t, fs, of.Path)
	spots := []int64{0, partSize - 3, partSize + 5, of.Bytes - 1}
	for _, off := range spots {
		flip(t, fs, of.Path, off, 1)
	}
	fs.lose(of.Path, 32<<20)
	side := beside(of.Path, sidecarSuffix)
	flip(t, fs, side, 0, 4096) // a head, and a parity column of the other part
	flip(t, fs, side, erasure.SidecarSize(erasure.Default, partSize)+5000, 1)
	must(t, s.Close())
	s = openSet(t, fs, nil)
	n := 0
	must(t, s.Stream(testVolume).Each(0, ^uint64(0), func(r *Record) error {
		n++
		got := make([]byte, FrameRaw)
		le.PutUint64(payload, r.Seq)
		if err := s.ReadAt(got, r.Pos, r.Sums); err != nil || !bytes.Equal(got, payload) {
			return fmt.Errorf("record %d: %w", r.Seq, errors.Join(err, errors.New("other bytes")))
		}
		return nil
	}))
	d, err := s.Mend(context.Background(), of.FileKey, work(nil))
	if err != nil || !d.Mended || len(d.Columns) != 5 || len(d.Lost) > 0 || d.Spoilt != 2 || n < 512 {
		t.Fatalf("%d records; %+v, %v", n, d, err)
	}
	if !bytes.Equal(readAll(t, fs, of.Path), was) {
		t.Fatal("the file is not what was sealed")
	}
	if guardAll(t, s) == 0 || mendAll(t, s) != 0 {
		t.Error("the sidecar was not made anew")
	}
	must(t, s.Close())
}

// What is beyond parity is an error, never other bytes, and the report says which writes of which times cannot be read; all others can.
func TestParityBeyond(t *testing.T) {
	fs, rng := newSectorFS(hvfs.NewCrashableMem()), rand.New(rand.NewPCG(3, 33))
	s, all, was := sealedStream(t, fs, nil, rng, 5)
	of := s.Sealed()[4]
	b := was[of.Path]
	stripes := (len(b) + 16*sectorSize - 1) / (16 * sectorSize)
	for i := range 3 { // of one stripe
		flip(t, fs, of.Path, int64((2+3*i)*stripes+2)*sectorSize+100, 1)
	}
	ctx := context.Background()
	d, err := s.Mend(ctx, of.FileKey, work(nil))
	if err != nil || d.Mended || d.Unsound == nil || len(d.Lost) != 3 || !errors.Is(d.Unsound, block.ErrCorrupt) {
		t.Fatalf("%+v, %v", d, err)
	}
	lost, more, err := s.Lost(ctx, of.FileKey, 100, nil)
	if err != nil || more > 0 || len(lost) == 0 || len(lost) > 3 {
		t.Fatalf("%+v, %d more, %v", lost, more, err)
	}
	bad, n := 0, 0
	st := s.Stream(testVolume)
	release := st.Pin(0, ^uint64(0))
	defer release()
	must(t, st.Each(0, ^uint64(0), func(r *Record) error {
		w := all[n]
		n++
		if r.Kind != Write {
			return nil
		}
		got := make([]byte, r.Len)
		err := s.ReadAt(got, r.Pos, r.Sums)
		told := slices.ContainsFunc(lost, func(l LostRange) bool {
			return l.FromSeq <= r.Seq && r.Seq <= l.ToSeq && l.From <= r.Time && r.Time <= l.To
		})
		if (err != nil) != told || err == nil && !bytes.Equal(got, w.data) || err != nil && !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("record %d: %v, told %v", r.Seq, err, told)
		}
		if told {
			bad++
		}
		return nil
	}))
	if bad == 0 || bad == n {
		t.Fatalf("%d of %d records are lost", bad, n)
	}
	if of, found := s.Lacks(erasure.Shape{Data: 4, Parity: 1}); found && of.Unsound {
		t.Error("what is damaged gets a sidecar")
	}
	if lost, more, err := s.Lost(ctx, of.FileKey, 1, nil); err != nil || len(lost) != 1 || more < 0 {
		t.Errorf("%+v, %d more, %v", lost, more, err)
	}
	must(t, s.Close())
}

// A sidecar that is not made of the bytes that it lies beside mends nothing, whatever is damaged: it is found, and replaced.
func TestParityStale(t *testing.T) {
	fs := newSectorFS(hvfs.NewCrashableMem())
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 4)
	p.grow(st, 12*time.Hour, time.Minute)
	guardAll(t, s)
	old := map[FileKey][]byte{}
	for _, of := range s.Sealed() {
		old[of.FileKey] = readAll(t, fs, beside(of.Path, sidecarSuffix))
	}
	steps := 0
	thinAll(t, st, p.policy(func(step ThinStep) {
		if step == Unguarded {
			steps++
		}
	}))
	if steps == 0 {
		t.Fatal("no file with a sidecar was thinned")
	}
	guarded := 0
	for _, of := range s.Sealed() {
		if of.Sidecar > 0 {
			guarded++
			continue
		}
		if _, err := fs.Stat(beside(of.Path, sidecarSuffix)); err == nil {
			t.Fatalf("%s was thinned, and has its sidecar", of.Path)
		}
	}
	if thinned := len(s.Sealed()) - guarded; thinned == 0 {
		t.Fatal("nothing was thinned")
	}
	// As if somebody had put them back.
	stale := 0
	was, of := map[string][]byte{}, map[string]bool{}
	for _, f := range s.Sealed() {
		was[f.Path] = readAll(t, fs, f.Path)
		if b := old[f.FileKey]; f.Sidecar == 0 && b != nil {
			writeAll(t, fs, beside(f.Path, sidecarSuffix), b)
			of[f.Path] = true
			stale++
		}
	}
	must(t, s.Close())
	for path, b := range was {
		id, _ := parseFileName(fs.PathBase(path))
		older := old[FileKey{testVolume, id}]
		if older == nil {
			continue
		}
		for what, spots := range map[string][]int64{"header": {40}, "footer": {int64(len(b)) - 20}, "header and footer": {40, int64(len(b)) - 20}} {
			for _, at := range spots {
				flip(t, fs, path, at, 1)
			}
			s, _, err := Open(Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
			must(t, err)
			if st := s.Stream(testVolume); st != nil {
				for _, f := range st.files {
					if sc := f.guard.through.Load(); f.path == path && sc != nil && sc.of.size != int64(len(b)) {
						t.Fatalf("%s of %s damaged: it became what it was before it was thinned", what, path)
					}
				}
			}
			must(t, s.Close())
			writeAll(t, fs, path, b)
			if guard := beside(path, sidecarSuffix); of[path] { // an open may have removed it
				writeAll(t, fs, guard, older)
			}
		}
	}
	s = openSet(t, fs, nil)
	for _, of := range s.Sealed() {
		d, err := s.Check(context.Background(), of.FileKey, work(nil))
		must(t, err)
		if d.Unsound != nil || len(d.Columns) > 0 {
			t.Fatalf("%+v", d)
		}
	}
	if n := guardAll(t, s); n < stale {
		t.Errorf("%d of %d stale sidecars were replaced", n, stale)
	}
	p.check(s, s.Stream(testVolume), "with stale sidecars replaced")
	if n := mendAll(t, s); n != 0 {
		t.Errorf("%d files are damaged", n)
	}
	must(t, s.Close())
}

// A death or a power loss at any step of the making of a sidecar, of a repair, and of thinning beside them leaves all that was written, nothing half made, and no sidecar of other bytes.
func TestParityCrash(t *testing.T) {
	hit := map[ParityStep]int{}
	unguarded := 0
	for seed := range uint64(2) {
		mem := hvfs.NewCrashableMem()
		s := openSet(t, mem, nil)
		st, err := s.Create(testVolume)
		must(t, err)
		p := newPast(t, seed)
		crash := func(what string) {
			left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[p.rng.IntN(3)], RNG: p.rng})
			what = fmt.Sprintf("seed %d, %s", seed, what)
			again := openSet(t, left, nil)
			names, err := left.List("history/0000000000000007")
			must(t, err)
			for _, name := range names {
				if id, ok := parseSidecarName(name); ok && !slices.Contains(names, fileName(id)) || isLeftOver(name) {
					t.Fatalf("%s: %s is left", what, name)
				}
			}
			for _, of := range again.Sealed() {
				if of.Sidecar == 0 {
					continue
				}
				f, err := again.sealedFile(of.FileKey)
				must(t, err)
				if sc, err := f.sidecar(); err != nil {
					t.Fatalf("%s: a sidecar that is not of the file beside it: %v", what, err)
				} else {
					sc.release()
				}
			}
			p.check(again, again.Stream(testVolume), what)
			mendAll(t, again)
			guardAll(t, again)
			if n := mendAll(t, again); n != 0 {
				t.Fatalf("%s: %d files are damaged", what, n)
			}
			p.check(again, again.Stream(testVolume), what+", mended")
			must(t, again.Close())
		}
		step := func(step ParityStep) {
			if hit[step]++; hit[step] < 4 || p.rng.IntN(60) == 0 {
				crash(fmt.Sprintf("step %d", step))
			}
		}
		for range 3 {
			p.grow(st, 5*time.Hour, 2*time.Minute)
			for {
				of, found := s.Lacks(erasure.Default)
				if !found {
					break
				}
				_, err := s.Guard(context.Background(), of.FileKey, erasure.Default, work(step))
				must(t, err)
			}
			for _, of := range s.Sealed() {
				if p.rng.IntN(4) > 0 {
					continue
				}
				flip(t, mem, of.Path, p.rng.Int64N(of.Bytes), 1)
				d, err := s.Mend(context.Background(), of.FileKey, work(step))
				if err != nil || !d.Mended {
					t.Fatalf("%+v, %v", d, err)
				}
			}
			thinAll(t, st, p.policy(func(step ThinStep) {
				if step == Unguarded {
					unguarded++
				}
				if step == Unguarded && p.rng.IntN(10) == 0 || step == BeforeSync && p.rng.IntN(20) == 0 {
					crash("thinning")
				}
			}))
		}
		must(t, s.Close())
	}
	if len(hit) != 8 || unguarded == 0 {
		t.Fatalf("steps %v, %d files with a sidecar thinned", hit, unguarded)
	}
}

// A sidecar, or a mended copy, for which there is no room is not there, in no part; reads go on through parity, and it is made when there is room.
func TestParityFullDisk(t *testing.T) {
	fs, rng := newSectorFS(hvfs.NewCrashableMem()), rand.New(rand.NewPCG(5, 33))
	s, all, was := sealedStream(t, fs, nil, rng, 5)
	ctx := context.Background()
	of := s.Sealed()[3]
	flip(t, fs, of.Path, of.Bytes-200, 1) // of the index
	must(t, s.Unguard(s.Sealed()[0].FileKey))
	fs.fill(true)
	if _, err := s.Guard(ctx, s.Sealed()[0].FileKey, erasure.Default, work(nil)); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("guard: %v", err)
	}
	d, err := s.Mend(ctx, of.FileKey, work(nil))
	if err != nil || d.Mended || d.Unsound == nil || !errors.Is(d.Parity, block.ErrNoSpace) {
		t.Errorf("%+v, %v", d, err)
	}
	small := work(nil)
	small.Room = func(int64) bool { return false }
	if d, err := s.Mend(ctx, of.FileKey, small); err != nil || d.Mended || !errors.Is(d.Parity, block.ErrNoSpace) {
		t.Errorf("%+v, %v", d, err)
	}
	names, err := fs.List("history/0000000000000007")
	must(t, err)
	if i := slices.IndexFunc(names, isLeftOver); i >= 0 {
		t.Errorf("%s is left", names[i])
	}
	compare(t, s, s.Stream(testVolume), all)
	if s.InlineRepairs() == 0 {
		t.Error("parity did not answer")
	}
	fs.fill(false)
	if n := mendAll(t, s); n != 1 || guardAll(t, s) != 0 {
		t.Errorf("%d files were mended", n)
	}
	if !bytes.Equal(readAll(t, fs, of.Path), was[of.Path]) {
		t.Error("the file is not what was sealed")
	}
	must(t, s.Close())
}

// A file that is damaged when its sidecar is to be made gets none; what is not wanted any more goes; and with its file a sidecar goes, too.
func TestParityOfDamaged(t *testing.T) {
	fs, rng := newSectorFS(hvfs.NewCrashableMem()), rand.New(rand.NewPCG(6, 33))
	s, all, was := sealedStream(t, fs, nil, rng, 5)
	ctx := context.Background()
	for _, of := range s.Sealed() {
		must(t, s.Unguard(of.FileKey))
	}
	if n := s.ParityBytes(); n != 0 {
		t.Errorf("%d B of parity", n)
	}
	of := s.Sealed()[4]
	b := was[of.Path]
	for off := range int64(len(b)) {
		if off > 800 && off < int64(len(b))-800 && rng.IntN(len(b)/200) > 0 {
			continue // all of header and footer, and some of the rest
		}
		flip(t, fs, of.Path, off, 1)
		if _, err := s.Guard(ctx, of.FileKey, erasure.Default, work(nil)); !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("with a byte flipped at %d: %v", off, err)
		}
		flip(t, fs, of.Path, off, 1)
	}
	if _, err := s.Guard(ctx, of.FileKey, erasure.Default, work(nil)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Mend(ctx, of.FileKey, work(nil)); err != nil { // it counted as damaged
		t.Fatal(err)
	}
	guardAll(t, s)
	st := s.Stream(testVolume)
	if freed, err := st.Expire(all[len(all)-1].Seq); err != nil || freed == 0 {
		t.Fatal(freed, err)
	}
	names, err := fs.List("history/0000000000000007")
	if err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
	must(t, s.Remove(testVolume))
	must(t, s.Close())
}
