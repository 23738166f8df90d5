package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	hvfs "github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// lossyFS is a file system on a device that loses sectors of files of history.
type lossyFS struct {
	vfs.FS
	mu  sync.Mutex
	bad map[string]int64 // by path: the offset of the sector that cannot be read
}

type lossyFile struct {
	vfs.File
	fs   *lossyFS
	path string // that it was opened by
}

func (l *lossyFS) wrap(f vfs.File, path string, err error) (vfs.File, error) {
	if err != nil || !strings.Contains(path, historyDir+"/") {
		return f, err
	}
	return &lossyFile{f, l, path}, nil
}

func (l *lossyFS) lose(path string, off int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bad[path] = off / block.Size * block.Size
}

func (l *lossyFS) forget(path string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.bad, path)
}

func (l *lossyFS) Create(name string, category vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := l.FS.Create(name, category)
	return l.wrap(f, name, err)
}

func (l *lossyFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.Open(name, opts...)
	return l.wrap(f, name, err)
}

func (l *lossyFS) OpenReadWrite(name string, category vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := l.FS.OpenReadWrite(name, category, opts...)
	return l.wrap(f, name, err)
}

func (l *lossyFS) Rename(from, to string) error {
	l.forget(to)
	return l.FS.Rename(from, to)
}

func (l *lossyFS) Remove(name string) error {
	l.forget(name)
	return l.FS.Remove(name)
}

func (f *lossyFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	at, bad := f.fs.bad[f.path]
	f.fs.mu.Unlock()
	if !bad || at >= off+int64(len(p)) || off >= at+block.Size {
		return f.File.ReadAt(p, off)
	}
	n, err := f.File.ReadAt(p[:max(0, at-off)], off)
	return n, errors.Join(err, syscall.EIO)
}

// guardedDay is a day of some hours, thinned, whose sealed files have sidecars.
func guardedDay(t *testing.T, seed uint64, hours int) (*day, *lossyFS, *damages) {
	fs := &lossyFS{FS: vfs.Default, bad: map[string]int64{}}
	opts, found := keptOptions(t, fs, t.TempDir())
	opts.LogFileBytes = 256 << 10
	d := newDay(t, seed, opts)
	d.add("a", 256<<10)
	d.add("b", 256<<10)
	d.hours(hours)
	d.must(d.s.Close()) // what is open is sealed
	d.s = openTest(t, d.opts)
	d.guarded()
	return d, fs, found
}

// hours lets guests write for some hours, and thins.
func (d *day) hours(n int) {
	for end := d.clock.Load() + int64(n)*int64(time.Hour); d.clock.Load() < end; {
		for range 20 {
			d.guest(d.vols[d.rng.IntN(len(d.vols))])
			d.clock.Add(d.rng.Int64N(int64(80 * time.Second)))
		}
		d.turn()
	}
}

// guarded waits until every sealed file has a sidecar.
func (d *day) guarded() {
	d.t.Helper()
	waitFor(d.t, "sidecars of all files of history", func() bool {
		d.s.keeper.kick()
		_, found := d.s.historian.set.Lacks(d.opts.Parity)
		return !found
	})
}

// sealed are all sealed files, with their bytes.
func (d *day) sealed() map[string][]byte {
	d.t.Helper()
	all := map[string][]byte{}
	for _, f := range d.s.historian.set.Sealed() {
		all[f.Path] = d.bytesOf(f.Path)
	}
	return all
}

func (d *day) bytesOf(path string) []byte {
	d.t.Helper()
	b, err := readSmallFile(vfs.Default, path, 1<<30)
	d.must(err)
	return b
}

// flip changes a byte of a file where it lies.
func (d *day) flip(path string, off int64) {
	d.t.Helper()
	f, err := hvfs.OpenUpdate(vfs.Default, path)
	d.must(err)
	defer f.Close()
	b := make([]byte, 1)
	d.must(hvfs.ReadFull(f, b, off))
	b[0] ^= 0x20
	_, err = f.WriteAt(b, off)
	d.must(err)
}

// spoil flips a byte of each file, and loses a sector of every third.
func (d *day) spoil(fs *lossyFS, files map[string][]byte) {
	i := 0
	for path, b := range files {
		d.flip(path, d.rng.Int64N(int64(len(b))))
		if i++; i%3 == 0 {
			fs.lose(path, d.rng.Int64N(int64(len(b))))
		}
	}
}

// scrub runs a scrub to its end.
func (d *day) scrub(findOnly bool) ScrubStatus {
	d.t.Helper()
	_, err := d.s.StartScrub(findOnly)
	d.must(err)
	waitFor(d.t, "the scrub", func() bool { return d.s.Scrub().State == ScrubDone })
	return d.s.Scrub()
}

// follow reads an open moment again and again until it is stopped, and compares it.
func (d *day) follow(p *Device, v *dayVolume) (stop func() int) {
	seq, _, _ := p.Moment()
	want := d.stateOf(v, seq)
	var ended atomic.Bool
	var running sync.WaitGroup
	n := 0
	running.Go(func() {
		got := make([]byte, p.Size())
		for ; !ended.Load() || n == 0; n++ {
			if _, err := p.ReadAt(context.Background(), got, 0, nil); err != nil || maphash.Bytes(d.seed, got) != want {
				d.t.Errorf("read %d of %s after record %d: %v, or other bytes", n, v.name, seq, err)
				return
			}
		}
	})
	return func() int {
		ended.Store(true)
		running.Wait()
		return n
	}
}

// stateOf is what a volume was after a record. A root has a number of its own, and other volumes have theirs.
func (d *day) stateOf(v *dayVolume, seq uint64) uint64 {
	want, ok := v.states[seq]
	for ; !ok && seq > 0; seq-- {
		want, ok = v.states[seq]
	}
	return want
}

// attachSome attaches moments at random.
func (d *day) attachSome(n int) {
	d.t.Helper()
	for range n {
		v := d.vols[d.rng.IntN(len(d.vols))]
		d.attachAny(v, v.began+d.rng.Int64N(d.clock.Load()-v.began))
	}
}

// Flips and lost sectors in every sealed file under an attached moment: the scrub finds each and mends it to the bytes that were sealed, what reads the moment never sees any, and another scrub finds nothing.
func TestHistoryScrub(t *testing.T) {
	d, fs, found := guardedDay(t, 31, 8)
	v := d.vols[0]
	p, err := d.s.OpenPoint(context.Background(), v.name, Moment{At: time.Unix(0, v.began+int64(3*time.Hour))})
	d.must(err)
	d.guarded()
	files := d.sealed()
	if len(files) < 20 {
		t.Fatalf("%d files", len(files))
	}
	d.spoil(fs, files)
	stop := d.follow(p, v)
	st := d.scrub(false)
	if n := stop(); n == 0 {
		t.Error("nothing was read meanwhile")
	}
	if st.HistoryDone < uint64(len(files)) || st.HistoryLeft != 0 || st.Mended != st.Damaged {
		t.Errorf("%+v of %d files", st, len(files))
	}
	told := map[string]bool{}
	for _, x := range d.s.Damages() {
		if x.History == nil || !x.Mended || x.Columns == 0 || x.Lost != 0 || x.History.Volume != "a" && x.History.Volume != "b" {
			t.Errorf("%+v", x)
			continue
		}
		told[filepath.Join(d.opts.Dir, x.File)] = true
	}
	found.mu.Lock()
	if len(told) != len(files) || len(found.all) < len(files) {
		t.Errorf("%d of %d damaged files are known, %d were told of", len(told), len(files), len(found.all))
	}
	found.mu.Unlock()
	for path, b := range files {
		if !bytes.Equal(d.bytesOf(path), b) {
			t.Errorf("%s is not what was sealed", path)
		}
	}
	d.same(p, v, p.point.seq, "the attached moment")
	d.must(p.Close())
	d.attachSome(20)
	if s := d.s.Stats(); s.DamageMended < uint64(len(files)) || s.DamageLost != 0 || s.HistoryParityBytes != uint64(d.s.historian.set.ParityBytes()) || s.HistoryParityBytes == 0 {
		t.Errorf("%+v", s)
	}
	if st := d.scrub(false); st.Damaged != 0 || st.HistoryDone < uint64(len(files)) {
		t.Errorf("again: %+v", st)
	}
	e, err := d.s.Explain(context.Background(), "", nil, nil) // nothing is made meanwhile
	d.must(err)
	sum := uint64(0)
	for _, v := range d.vols {
		one, err := d.s.Explain(context.Background(), v.name, nil, nil)
		d.must(err)
		sum += one.HistoryParityBytes
	}
	if e.HistoryParityBytes == 0 || sum != e.HistoryParityBytes {
		t.Errorf("%d B of parity beside history, %d B by volumes", e.HistoryParityBytes, sum)
	}
	d.must(d.s.Close())
}

// Headers and footers that are damaged while the store is closed cost no history: an open reads them through parity, there is no gap, every moment is what it was, and they are mended without anybody asking.
func TestHistoryParityOpen(t *testing.T) {
	d, fs, _ := guardedDay(t, 32, 6)
	files := d.sealed()
	d.must(d.s.Close())
	i := 0
	for path, b := range files {
		switch i++; i % 4 {
		case 0:
			d.flip(path, 20)
		case 1:
			d.flip(path, int64(len(b))-30)
		case 2:
			fs.lose(path, 0)
		case 3:
			fs.lose(path, int64(len(b))-1)
		}
	}
	d.s = openTest(t, d.opts)
	d.attachSome(10)
	waitFor(t, "all to be mended", func() bool {
		d.s.keeper.kick()
		fs.mu.Lock()
		defer fs.mu.Unlock()
		return len(fs.bad) == 0 && len(d.s.Damages()) == len(files)
	})
	d.attachSome(10)
	for path, b := range files {
		if !bytes.Equal(d.bytesOf(path), b) {
			t.Errorf("%s is not what was sealed", path)
		}
	}
	d.must(d.s.Close())
}

// Damage beyond parity is told with its file, its volume, its places and its times; a reader gets an error there and the right bytes elsewhere; a scrub that only looks mends nothing.
func TestHistoryBeyondParity(t *testing.T) {
	d, _, _ := guardedDay(t, 33, 3)
	var corrupt atomic.Int64
	d.must(d.s.Close())
	d.opts.Events.Corruption = func(err error) {
		if strings.Contains(err.Error(), "of the history of b") {
			corrupt.Add(1)
		}
	}
	d.s = openTest(t, d.opts)
	d.guarded()
	var file history.Sealed
	for _, f := range d.s.historian.set.Sealed() {
		if f.Volume == 2 && f.Bytes > file.Bytes {
			file = f
		}
	}
	b := d.bytesOf(file.Path)
	stripes := (len(b) + 16*block.Size - 1) / (16 * block.Size)
	for i := range 3 {
		d.flip(file.Path, int64((1+2*i)*stripes)*block.Size+77)
	}
	if st := d.scrub(true); st.Damaged != 1 || st.Mended != 0 {
		t.Errorf("%+v", st)
	}
	if bytes.Equal(d.bytesOf(file.Path), b) {
		t.Error("a scrub that only looks has mended")
	}
	if st := d.scrub(false); st.Damaged != 1 || st.Mended != 0 {
		t.Errorf("%+v", st)
	}
	all := d.s.Damages()
	if len(all) != 1 || all[0].Mended || all[0].Lost != 3 || all[0].History == nil || len(all[0].History.Ranges) == 0 || all[0].Segment != 0 || corrupt.Load() == 0 {
		t.Fatalf("%+v, %d times told", all, corrupt.Load())
	}
	h, text := all[0].History, all[0].String()
	for _, r := range h.Ranges {
		if r.Length == 0 || r.From.After(r.To) || r.From.UnixNano() < d.vols[1].began || r.To.UnixNano() > d.clock.Load() || r.FromSeq > r.ToSeq || r.Offset+r.Length > uint64(len(b)) {
			t.Errorf("%+v", r)
		}
	}
	for _, part := range []string{all[0].File, "history of b", fmt.Sprintf("at %d+%d", h.Ranges[0].Offset, h.Ranges[0].Length), h.Ranges[0].From.Format(time.RFC3339)} {
		if !strings.Contains(text, part) {
			t.Errorf("%q does not say %q", text, part)
		}
	}
	v, failed, right := d.vols[1], 0, 0
	for _, c := range v.changes {
		p, err := d.s.OpenPoint(context.Background(), v.name, Moment{Seq: c.seq})
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		d.must(err)
		got := make([]byte, p.Size())
		_, err = p.ReadAt(context.Background(), got, 0, nil)
		if seq, _, _ := p.Moment(); err == nil && maphash.Bytes(d.seed, got) != d.stateOf(v, seq) {
			t.Fatalf("record %d is not what the volume was", seq)
		}
		if err == nil {
			right++
		} else {
			failed++
		}
		d.must(p.Close())
	}
	if failed == 0 || right == 0 {
		t.Errorf("%d moments cannot be read, %d can", failed, right)
	}
	d.must(d.s.Repair(context.Background()))
	if all := d.s.Damages(); len(all) != 1 || all[0].Mended {
		t.Errorf("%+v", all)
	}
	d.must(d.s.SetHistory(context.Background(), v.name, HistoryPolicy{}))
	waitFor(t, "the damage of a file that is gone to be forgotten", func() bool { d.s.keeper.kick(); return len(d.s.Damages()) == 0 })
	d.must(d.s.Close())
}

// A scrub goes on with files of history where a restart found it, whatever was thinned meanwhile.
func TestHistoryScrubGoesOn(t *testing.T) {
	d, fs, _ := guardedDay(t, 34, 5)
	files := d.sealed()
	at := make(chan struct{})
	var once sync.Once
	d.must(d.s.Close())
	d.opts.KeepBytesPerSecond = 256 << 10
	d.s = openTest(t, d.opts)
	_, err := d.s.StartScrub(false)
	d.must(err)
	go func() {
		for d.s.Scrub().HistoryDone < 3 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		once.Do(func() { close(at) })
	}()
	<-at
	_, err = d.s.PauseScrub()
	d.must(err)
	d.must(d.s.Close())
	d.opts.KeepBytesPerSecond = 1 << 40
	d.s = openTest(t, d.opts)
	waitFor(t, "the scrub to be known", func() bool { return d.s.Scrub().State != ScrubNever })
	paused := d.s.Scrub()
	if paused.State != ScrubPaused || paused.HistoryDone < 3 || paused.HistoryDone >= uint64(len(files)) {
		t.Fatalf("%+v of %d files", paused, len(files))
	}
	d.spoil(fs, files)
	_, err = d.s.ResumeScrub()
	d.must(err)
	waitFor(t, "the scrub", func() bool { return d.s.Scrub().State == ScrubDone })
	first := d.s.Scrub()
	if first.HistoryDone < uint64(len(files)) || first.Damaged < uint64(len(files))-paused.HistoryDone || first.Mended != first.Damaged {
		t.Errorf("%+v after %+v, %d files", first, paused, len(files))
	}
	if st := d.scrub(false); st.Damaged+first.Damaged != uint64(len(files)) {
		t.Errorf("%+v after %+v", st, first)
	}
	d.attachSome(10)
	d.must(d.s.Close())
}

// Beside scrubs, parity that is made, damage and repair, thinning replaces files as ever: every moment stays what it was, and no sidecar lies beside bytes that it was not made of.
func TestHistoryThinBesideScrub(t *testing.T) {
	d, fs, _ := guardedDay(t, 35, 3)
	fs.bad = map[string]int64{}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var scrubs atomic.Int64
	running.Go(func() {
		for ctx.Err() == nil {
			if _, err := d.s.StartScrub(false); err == nil {
				scrubs.Add(1)
			}
			sleep(ctx, 20*time.Millisecond)
		}
	})
	rng, before := rand.New(rand.NewPCG(35, 35)), d.s.thinner.files.Load()
	for range 12 {
		d.hours(1)
		for _, f := range d.s.historian.set.Sealed() { // of one that is replaced just now, damage goes with it
			if f.Sidecar > 0 && rng.IntN(8) == 0 {
				if h, err := hvfs.OpenUpdate(vfs.Default, f.Path); err == nil {
					_, err = h.WriteAt([]byte{0xa5}, rng.Int64N(f.Bytes))
					d.must(errors.Join(err, h.Close()))
				}
			}
		}
		d.attachSome(4)
	}
	cancel()
	running.Wait()
	if n := d.s.thinner.files.Load() - before; n < 10 || scrubs.Load() < 5 {
		t.Errorf("%d files were thinned beside %d scrubs", n, scrubs.Load())
	}
	waitFor(t, "the last scrub", func() bool { return d.s.Scrub().State == ScrubDone })
	d.scrub(false)
	d.guarded()
	if st := d.scrub(true); st.Damaged != 0 {
		t.Errorf("%+v, %+v", st, d.s.Damages())
	}
	d.attachSome(40)
	d.must(d.s.Close())
	d.opts.Parity = erasure.Shape{}
	d.s = openTest(t, d.opts)
	waitFor(t, "sidecars to go that are not wanted", func() bool { d.s.keeper.kick(); return d.s.Stats().HistoryParityBytes == 0 })
	d.must(d.s.Close())
}
