package history

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	hvfs "github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// guardedHours is a stream of hours as files of version 3 that were not joined yet, each with a sidecar.
func guardedHours(t *testing.T, fs hvfs.FS, keys *keyring.Ring, hours int) (s *Set, st *Stream, want map[uint64][]byte, roots []Root) {
	t.Helper()
	s = openSet(t, fs, keys)
	st, err := s.Create(testVolume)
	must(t, err)
	want, roots = hourly(t, s, st, hours)
	s.joinSpan = 0
	thinAll(t, st, hoursAll(roots))
	s.joinSpan = joinSpan
	if n := guardAll(t, s); n != hours {
		t.Fatalf("%d of %d files got a sidecar", n, hours)
	}
	return s, st, want, roots
}

// sameWrites reads all writes of a stream and compares them with what was written.
func sameWrites(t *testing.T, s *Set, want map[uint64][]byte, what string) {
	t.Helper()
	left := maps.Clone(want)
	must(t, s.Stream(testVolume).Each(0, ^uint64(0), func(r *Record) error {
		if r.Kind != Write {
			return nil
		}
		p := make([]byte, r.Len)
		if err := s.ReadAt(p, r.Pos, r.Sums); err != nil {
			return err
		}
		if !bytes.Equal(p, left[r.Seq]) {
			return fmt.Errorf("%s: record %d is another", what, r.Seq)
		}
		delete(left, r.Seq)
		return nil
	}))
	if len(left) > 0 {
		t.Fatalf("%s: %d records are missing", what, len(left))
	}
}

// places are one byte of each part of a file of version 3.
func places(t *testing.T, fs hvfs.FS, f *file) map[string]int64 {
	t.Helper()
	x, err := f.index()
	must(t, err)
	if len(x.frames) == 0 || !x.placed {
		t.Fatalf("%s has no payload by blocks", f.source())
	}
	b := readAll(t, fs, f.path)
	index := int64(le.Uint64(b[len(b)-footerSize+40:]))
	tables := int64(len(x.frames)) * tableEntry
	return map[string]int64{
		"header": 40, "head": x.frames[0].off + 8, "payload": x.frames[0].payloadAt() + 10, "table": index + 3, "sheets": index + tables,
		"order": index + tables + int64(len(x.sheets))*sheetEntry, "records": int64(len(b)) - footerSize - 1, "footer": int64(len(b)) - 20,
	}
}

// Files of version 3 that are damaged within the reach of parity are joined as if they were not; the one that comes of it gets a sidecar, and whatever part of it is damaged or lost, after an open or before, all is read, and it is mended to what it was.
func TestParityOfJoined(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		t.Run(fmt.Sprint("encrypted=", encrypted), func(t *testing.T) {
			var keys *keyring.Ring
			if encrypted {
				keys = testKeys(t, block.UUID{1})
			}
			fs := newSectorFS(hvfs.NewCrashableMem())
			s, st, want, roots := guardedHours(t, fs, keys, 30)
			for i, name := range []string{"header", "head", "payload", "table", "sheets", "order", "records", "footer"} {
				f := st.files[2*i]
				flip(t, fs, f.path, places(t, fs, f)[name], 1)
			}
			fs.lose(st.files[1].path, 0)
			done, err := st.join(hoursAll(roots))
			if err != nil || done.Files != 1 || len(st.files) != 7 {
				t.Fatalf("%+v, %d files, %v", done, len(st.files), err)
			}
			if s.InlineRepairs() == 0 {
				t.Error("parity did not answer")
			}
			sameWrites(t, s, want, "joined")
			names, err := fs.List("history/0000000000000007")
			must(t, err)
			if len(names) != 1+2*6 {
				t.Errorf("%v", names)
			}
			if n := guardAll(t, s); n != 1 {
				t.Errorf("%d files got a sidecar", n)
			}
			if n := mendAll(t, s); n != 0 {
				t.Errorf("%d files are damaged", n)
			}
			was := readAll(t, fs, st.files[0].path)
			for name, at := range places(t, fs, st.files[0]) {
				for _, lost := range []bool{false, true} {
					for _, reopen := range []bool{false, true} {
						if lost && !reopen { // the handle of a mended copy has its sectors by another name
							continue
						}
						what := fmt.Sprintf("%s, lost %v, reopened %v", name, lost, reopen)
						if path := st.files[0].path; lost {
							fs.lose(path, at)
						} else {
							flip(t, fs, path, at, 1)
						}
						if reopen {
							must(t, s.Close())
							s = openSet(t, fs, keys)
							st = s.Stream(testVolume)
						}
						sameWrites(t, s, want, what)
						if n := mendAll(t, s); n != 1 {
							t.Errorf("%s: %d files were mended", what, n)
						}
						if !bytes.Equal(readAll(t, fs, st.files[0].path), was) {
							t.Fatalf("%s: it is not what it was", what)
						}
						sameWrites(t, s, want, what+", mended")
					}
				}
			}
			must(t, s.Close())
		})
	}
}

// stepFS calls back before each change of a directory, and each time one is made durable.
type stepFS struct {
	hvfs.FS
	step func(what string)
}

func (s *stepFS) call(what, name string) {
	if s.step != nil {
		s.step(what + " " + name)
	}
}

func (s *stepFS) Remove(name string) error {
	s.call("remove", name)
	return s.FS.Remove(name)
}

func (s *stepFS) Rename(from, to string) error {
	s.call("rename", to)
	return s.FS.Rename(from, to)
}

func (s *stepFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	s.call("open", name)
	return s.FS.Open(name, opts...)
}

func (s *stepFS) OpenDir(name string) (vfs.File, error) {
	s.call("sync", name)
	return s.FS.OpenDir(name)
}

// A death or a power loss at any step of a join of files that have sidecars leaves all that was written, no sidecar of other bytes, and nothing behind.
func TestJoinCrash(t *testing.T) {
	mem := hvfs.NewCrashableMem()
	fs := &stepFS{FS: mem}
	s, st, want, roots := guardedHours(t, fs, nil, 30)
	steps := 0
	crash := func(what string) {
		steps++
		for _, percent := range []int{0, 50, 100} {
			what := fmt.Sprintf("before %s, %d %%", what, percent)
			left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: newPast(t, uint64(steps)).rng})
			again := openSet(t, left, nil)
			names, err := left.List("history/0000000000000007")
			must(t, err)
			for _, name := range names {
				if id, ok := parseSidecarName(name); ok && !slices.Contains(names, fileName(id)) || isLeftOver(name) {
					t.Errorf("%s: %s is left", what, name)
				}
			}
			if n := len(again.Sealed()); n != 30 && n != 7 {
				t.Errorf("%s: %d files", what, n)
			}
			for _, of := range again.Sealed() {
				f, err := again.sealedFile(of.FileKey)
				must(t, err)
				if of.Sidecar == 0 {
					continue
				}
				sc, err := f.sidecar()
				if err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				sc.release()
			}
			sameWrites(t, again, want, what)
			guardAll(t, again)
			if n := mendAll(t, again); n != 0 {
				t.Errorf("%s: %d files are damaged", what, n)
			}
			must(t, again.Close())
		}
	}
	fs.step = func(what string) {
		if !strings.HasPrefix(what, "open") {
			crash(what)
		}
	}
	th := hoursAll(roots)
	th.Step = func(s ThinStep) { crash(fmt.Sprint("step ", s)) }
	done, err := st.join(th)
	fs.step = nil
	if err != nil || done.Files != 1 {
		t.Fatalf("%+v, %v", done, err)
	}
	if steps < 2*23+6 {
		t.Errorf("%d steps", steps)
	}
	sameWrites(t, s, want, "joined")
	must(t, s.Close())
}

// beyond damages a file out of the reach of its parity: three columns of a stripe, of which one has a byte of the file.
func beyond(t *testing.T, fs hvfs.FS, path string, at int64) {
	t.Helper()
	b := readAll(t, fs, path)
	columns := int64((len(b) + sectorSize - 1) / sectorSize)
	stripes := (columns + 15) / 16
	c := at / sectorSize
	n := 0
	for _, c := range []int64{c, c + stripes, c + 2*stripes, c - stripes, c - 2*stripes} {
		if c < 0 || c >= columns || n == 3 {
			continue
		}
		flip(t, fs, path, min(c*sectorSize+at%sectorSize, int64(len(b))-footerSize-1), 1)
		n++
	}
	if n < 3 {
		t.Fatalf("only %d columns of a stripe", n)
	}
}

// What is beyond parity of a file of version 3 is told with the first and last of the very writes that need it, and readers get an error for these and no other.
func TestLostOfPlaced(t *testing.T) {
	fs := newSectorFS(hvfs.NewCrashableMem())
	s, st := placedStream(t, fs)
	guardAll(t, s)
	f := st.files[0]
	x, err := f.index()
	must(t, err)
	beyond(t, fs, f.path, x.frames[len(x.frames)/2].payloadAt()+5000)
	ctx, of := context.Background(), s.Sealed()[0]
	d, err := s.Mend(ctx, of.FileKey, work(nil))
	if err != nil || d.Mended || !errors.Is(d.Unsound, block.ErrCorrupt) || len(d.Lost) != 3 {
		t.Fatalf("%+v, %v", d, err)
	}
	lost, more, err := s.Lost(ctx, of.FileKey, 100, nil)
	if err != nil || more > 0 || len(lost) == 0 {
		t.Fatalf("%+v, %d more, %v", lost, more, err)
	}
	want := make([]LostRange, len(lost))
	sector, failed := 0, 0
	must(t, st.Each(0, ^uint64(0), func(r *Record) error {
		if r.Kind != Write {
			return nil
		}
		frame := x.frames[x.order[sector]/(FrameRaw/sectorSize)]
		sector++
		i := slices.IndexFunc(lost, func(l LostRange) bool { return l.Off <= frame.off+frameSize && frame.payloadAt() < l.Off+l.Len })
		got := make([]byte, sectorSize)
		err := s.ReadAt(got, r.Pos, r.Sums)
		if errors.Is(err, block.ErrCorrupt) != (i >= 0) || err != nil && i < 0 {
			t.Errorf("record %d, told %v: %v", r.Seq, i >= 0, err)
		}
		if i >= 0 {
			failed++
			want[i].take(r)
		}
		return nil
	}))
	if failed == 0 || failed == sector {
		t.Errorf("%d of %d writes are lost", failed, sector)
	}
	for i, l := range lost {
		if w := want[i]; l.FromSeq != w.FromSeq || l.ToSeq != w.ToSeq || l.From != w.From || l.To != w.To {
			t.Errorf("told %+v, want %+v", l, w)
		}
	}
	must(t, s.Close())
	// Its order beyond parity is all of it.
	s, st = placedStream(t, newSectorFS(hvfs.NewCrashableMem()))
	guardAll(t, s)
	f = st.files[0]
	beyond(t, s.opts.FS, f.path, places(t, s.opts.FS, f)["order"])
	lost, _, err = s.Lost(ctx, FileKey{testVolume, f.header.ID}, 100, nil)
	if err != nil || len(lost) != 1 || lost[0].Len != f.end || lost[0].FromSeq != 1 || lost[0].ToSeq != f.lastSeq {
		t.Errorf("%+v, %v", lost, err)
	}
	must(t, s.Close())
}

// A file that kept others from being joined, as it was damaged, and was mended, does so no more.
func TestJoinMended(t *testing.T) {
	fs := newSectorFS(hvfs.NewCrashableMem())
	s, st, want, roots := guardedHours(t, fs, nil, 30)
	f := st.files[7]
	side := beside(f.path, sidecarSuffix)
	parity := readAll(t, fs, side)
	flip(t, fs, f.path, places(t, fs, f)["payload"], 1)
	for off := 0; off < len(parity); off += sectorSize { // as a device that does not answer for a while
		fs.lose(side, int64(off))
	}
	if done, err := st.join(hoursAll(roots)); !errors.Is(err, block.ErrCorrupt) || done.Files != 0 {
		t.Fatalf("%+v, %v", done, err)
	}
	fs.forget(side)
	d, err := s.Mend(context.Background(), FileKey{testVolume, f.header.ID}, work(nil))
	if err != nil || !d.Mended || d.Unsound != nil {
		t.Fatalf("%+v, %v", d, err)
	}
	more, newer := hoursAll(roots), st.lastLocked()+1
	must(t, st.Append(&Record{Kind: Write, Seq: newer, Time: roots[len(roots)-1].Time + 1, Off: 0, Len: sectorSize, Payload: make([]byte, sectorSize)}))
	must(t, st.Append(&Record{Kind: Barrier, Seq: newer, Time: roots[len(roots)-1].Time + 2}))
	must(t, st.Roll())
	want[newer] = make([]byte, sectorSize)
	more.Roots = append(more.Roots, Root{Seq: newer + 1, Time: roots[len(roots)-1].Time + 3})
	thinAll(t, st, more)
	if len(st.files) != 8 {
		t.Errorf("%d files", len(st.files))
	}
	sameWrites(t, s, want, "mended and joined")
	must(t, s.Close())
}

// A file that goes while somebody looks what of it is lost, or damaged, is gone, and nothing of it is lost.
func TestLostMeanwhile(t *testing.T) {
	ctx := context.Background()
	fs := &stepFS{FS: hvfs.NewCrashableMem()}
	s, st, _, roots := guardedHours(t, fs, nil, 30)
	key := FileKey{testVolume, st.files[3].header.ID}
	n := 0
	lost, _, err := s.Lost(ctx, key, 10, func(context.Context, int) error {
		if n++; n == 1 {
			_, err := st.Expire(st.files[3].lastSeq)
			must(t, err)
		}
		return nil
	})
	if !errors.Is(err, block.ErrNotFound) || len(lost) > 0 {
		t.Errorf("lost %+v, %v", lost, err)
	}
	fs.step = func(what string) {
		if f := st.files[0]; what == "open "+beside(f.path, sidecarSuffix) {
			fs.step = nil
			if done, err := st.join(hoursAll(roots)); err != nil || done.Files != 1 {
				t.Errorf("%+v, %v", done, err)
			}
		}
	}
	if d, err := s.Check(ctx, FileKey{testVolume, st.files[0].header.ID}, work(nil)); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("check: %+v, %v", d, err)
	}
	if fs.step != nil {
		t.Error("nothing was joined")
	}
	must(t, s.Close())
}

// A sector that is lost and not within parity keeps a file as it is, which is told of once, and no other.
func TestThinLostSector(t *testing.T) {
	fs := newSectorFS(hvfs.NewCrashableMem())
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	want, roots := hourly(t, s, st, 30)
	x, err := st.files[7].index()
	must(t, err)
	fs.lose(st.files[7].path, x.frames[0].payloadAt()+sectorSize)
	told := 0
	for more := true; more; {
		var err error
		if _, more, err = st.Thin(hoursAll(roots)); errors.Is(err, block.ErrCorrupt) {
			told, more = told+1, told == 0
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
	whole := 0
	for _, f := range st.files {
		if f.header.Level != Hours {
			whole++
		}
	}
	if whole != 1 {
		t.Errorf("%d files were not thinned", whole)
	}
	for _, key := range s.Asked() {
		fs.forget(fs.PathJoin("history/0000000000000007", fileName(key.ID)))
		if d, err := s.Mend(context.Background(), key, work(nil)); err != nil || d.Unsound != nil {
			t.Errorf("%+v, %v", d, err)
		}
	}
	thinAll(t, st, hoursAll(roots))
	if len(st.files) != 7 {
		t.Errorf("%d files", len(st.files))
	}
	sameWrites(t, s, want, "thinned when it was there again")
	must(t, s.Close())
}

// spoilGuarded changes a byte of a file, if it is there and has a sidecar.
func spoilGuarded(st *Stream, fs hvfs.FS, rng *rand.Rand, id uint32) {
	st.mu.Lock() // while it is not replaced
	defer st.mu.Unlock()
	for _, f := range st.files {
		if _, bytes, _ := f.guard.get(); f.header.ID != id || bytes == 0 {
			continue
		}
		if h, err := hvfs.OpenUpdate(fs, f.path); err == nil {
			_, _ = h.WriteAt([]byte{byte(rng.Uint32())}, rng.Int64N(f.end))
			_ = h.Close()
		}
	}
}

// Thinning and joins beside scrubs, repairs, sidecars that are made, and readers: all is read all the while, whatever is damaged within the reach of parity, and nothing is left damaged, without a sidecar, or open.
func TestJoinBesideScrub(t *testing.T) {
	counted := &countingFS{FS: hvfs.NewCrashableMem()}
	fs := newSectorFS(counted)
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	want, roots := hourly(t, s, st, 80)
	guardAll(t, s)
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	reads := 0
	running.Go(func() {
		for ctx.Err() == nil {
			from := 1 + rand.Uint64N(roots[len(roots)-10].Seq)
			release := st.Pin(from, from+100)
			err := st.Each(from, from+100, func(r *Record) error {
				if r.Kind != Write {
					return nil
				}
				p := make([]byte, r.Len)
				if err := s.ReadAt(p, r.Pos, r.Sums); err != nil || bytes.Equal(p, want[r.Seq]) {
					return err
				}
				return fmt.Errorf("record %d is another", r.Seq)
			})
			release()
			if reads++; err != nil {
				t.Error(err)
			}
			time.Sleep(time.Millisecond)
		}
	})
	rng := rand.New(rand.NewPCG(1, 31))
	mended := 0
	running.Go(func() {
		for ctx.Err() == nil {
			for _, of := range s.Sealed() {
				if rng.IntN(3) == 0 {
					spoilGuarded(st, fs, rng, of.ID)
				}
				d, err := s.Check(ctx, of.FileKey, work(nil))
				if err == nil && !d.Whole() {
					d, err = s.Mend(ctx, of.FileKey, work(nil))
					mended++
				}
				if err == nil && d.Unsound != nil || err != nil && !errors.Is(err, block.ErrNotFound) && ctx.Err() == nil {
					t.Errorf("%+v, %v", d, err)
				}
				if of, found := s.Lacks(erasure.Default); found {
					_, err := s.Guard(ctx, of.FileKey, erasure.Default, work(nil))
					if errors.Is(err, block.ErrCorrupt) {
						t.Errorf("without a sidecar, and damaged: %v", err)
					}
				}
			}
		}
	})
	files := len(st.files)
	for end := time.Now().Add(30 * time.Second); files > 80-2*23 && time.Now().Before(end); {
		_, _, err := st.Thin(hoursAll(roots))
		must(t, err)
		st.mu.Lock()
		files = len(st.files)
		st.mu.Unlock()
	}
	cancel()
	running.Wait()
	if mended == 0 || reads == 0 || files > 80-2*23 {
		t.Errorf("%d files are left after %d repairs and %d reads", files, mended, reads)
	}
	t.Logf("%d files are left, %d repairs, %d reads", files, mended, reads)
	thinAll(t, st, hoursAll(roots))
	sameWrites(t, s, want, "at the end")
	mendAll(t, s)
	if n := mendAll(t, s); n != 0 {
		t.Errorf("%d files are damaged", n)
	}
	must(t, s.Close())
	if n := counted.open.Load(); n != 0 {
		t.Errorf("%d files are open after Close", n)
	}
}
