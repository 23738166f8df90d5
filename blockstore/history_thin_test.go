package blockstore

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// day is a store whose clock a test turns, with volumes under one policy and what each was after every change.
type day struct {
	t     testing.TB
	rng   *rand.Rand
	opts  Options
	clock atomic.Int64 // ns since the epoch
	s     *Store
	seed  maphash.Seed
	vols  []*dayVolume
}

type dayVolume struct {
	name    string
	data    []byte
	states  map[uint64]uint64 // record → hash of the volume after it
	flushes []barrier
	changes []barrier
	marks   map[string]uint64
	began   int64
}

// dayPolicy is what a day is thinned by.
var dayPolicy = HistoryPolicy{Window: 24 * time.Hour, Every: time.Hour, Flushes: 4 * time.Hour, Minutes: 10 * time.Hour, BudgetBytes: 10 << 30}

func newDay(t testing.TB, seed uint64, opts Options) *day {
	d := &day{t: t, rng: rand.New(rand.NewPCG(seed, 24)), opts: opts, seed: maphash.MakeSeed()}
	d.clock.Store(time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC).UnixNano())
	d.opts.Now = func() time.Time { return time.Unix(0, d.clock.Load()) }
	d.opts.HoldHistory = true // the test says when something goes
	d.opts.Events.HistoryGap = func(volume string, cause error) { t.Errorf("a gap in the history of %s: %v", volume, cause) }
	d.s = openTest(t, d.opts)
	return d
}

func (d *day) must(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

func (d *day) add(name string, size int) {
	createTest(d.t, d.s, name, uint64(size))
	d.must(d.s.SetHistory(context.Background(), name, dayPolicy))
	d.vols = append(d.vols, &dayVolume{name: name, data: make([]byte, size), states: map[uint64]uint64{}, marks: map[string]uint64{}})
	d.note(d.vols[len(d.vols)-1])
	d.vols[len(d.vols)-1].began = d.clock.Load() + 1
}

// note remembers what a volume is after its last record.
func (d *day) note(v *dayVolume) uint64 {
	seq, _ := d.s.log.Last()
	v.states[seq] = maphash.Bytes(d.seed, v.data)
	return seq
}

// guest does what a guest does in a moment, and lets some time go by.
func (d *day) guest(v *dayVolume) {
	ctx := context.Background()
	dev, err := d.s.OpenDevice(v.name, "")
	d.must(err)
	defer dev.Close()
	n := (1 + d.rng.IntN(4)) * block.Size
	off := d.rng.IntN(len(v.data)/block.Size/4) * block.Size // a part is written again and again
	if d.rng.IntN(8) == 0 {
		off = d.rng.IntN(len(v.data)/block.Size) * block.Size
	}
	n = min(n, len(v.data)-off)
	if d.rng.IntN(10) == 0 {
		d.must(dev.Zero(ctx, block.Range{Off: uint64(off), Len: uint64(n)}, false, false))
		clear(v.data[off : off+n])
	} else {
		data := guestData(d.rng, n)
		d.must(dev.Write(ctx, []block.Write{{Off: uint64(off), Data: data}}, false))
		copy(v.data[off:], data)
	}
	seq := d.note(v)
	v.changes = append(v.changes, barrier{seq, d.clock.Load()})
	d.clock.Add(d.rng.Int64N(int64(time.Second)))
	if d.rng.IntN(3) == 0 {
		d.must(dev.Flush(ctx))
		v.flushes = append(v.flushes, barrier{seq, d.clock.Load()})
	}
	if d.rng.IntN(300) == 0 {
		label := fmt.Sprintf("mark %d", len(v.marks))
		p, err := d.s.MarkHistory(ctx, v.name, label)
		d.must(err)
		v.states[p.Seq] = maphash.Bytes(d.seed, v.data)
		v.marks[label] = p.Seq
	}
}

// turn does what is due in the background: copies, roots, expiry and thinning.
func (d *day) turn() {
	ctx := context.Background()
	d.must(d.s.historian.step(ctx))
	d.s.historian.held.Store(false)
	defer d.s.historian.held.Store(true)
	for _, vh := range d.s.historian.all() {
		d.s.historian.work.Lock()
		err := d.s.historian.expire(vh)
		d.s.historian.work.Unlock()
		d.must(err)
	}
	for range 1000 {
		more, err := d.s.thinner.pass(ctx)
		d.must(err)
		if !more {
			break
		}
	}
}

// attach opens a moment of a volume by time, compares it, and tells how long the open took. It reports whether the moment lay in what is thinned.
func (d *day) attach(v *dayVolume, at int64) (took time.Duration, thinned bool) {
	d.t.Helper()
	info, err := d.s.History(v.name)
	d.must(err)
	began := time.Now()
	p, err := d.s.OpenPoint(context.Background(), v.name, Moment{At: time.Unix(0, at)})
	took = time.Since(began)
	if at < info.First.UnixNano() {
		if time.Duration(d.clock.Load()-at) < dayPolicy.Window-time.Minute && at > v.began {
			d.t.Fatalf("%s of %s cannot be had, its history begins at %s", v.name, time.Unix(0, at).UTC(), info.First)
		}
		if !errors.Is(err, block.ErrNotFound) {
			d.t.Fatalf("%s before its history begins: %v", v.name, err)
		}
		return took, false
	}
	d.must(err)
	defer p.Close()
	seq, when, _ := p.Moment()
	age := time.Duration(d.clock.Load() - at)
	if when.UnixNano() > at {
		d.t.Fatalf("%s of %v ago is of %s, later than %s", v.name, age, when, time.Unix(0, at))
	}
	d.same(p, v, seq, fmt.Sprintf("%s of %v ago", v.name, age))
	thinned = info.WholeSeq > info.FirstSeq && v.changeAt(at) <= info.WholeSeq // until the next write, the last that was thinned is what is asked for
	if p.Thinned() && !thinned {
		d.t.Fatalf("%s of %v ago is whole, and says that it is not", v.name, age)
	}
	if least := d.least(v, at, age, thinned); seq < least {
		d.t.Fatalf("%s of %v ago is record %d, want %d or later", v.name, age, seq, least)
	}
	return took, thinned
}

// changeAt is the last change at or before a time; 0: there is none.
func (v *dayVolume) changeAt(at int64) (seq uint64) {
	for _, c := range v.changes {
		if c.at <= at {
			seq = c.seq
		}
	}
	return seq
}

// least is the last point at or before a time that the policy keeps, whatever has been thinned so far.
func (d *day) least(v *dayVolume, at int64, age time.Duration, thinned bool) (seq uint64) {
	if !thinned {
		return v.changeAt(at)
	}
	width := int64(1)
	switch slack := 40 * time.Minute; { // a file is thinned as a whole: with the youngest that is in it
	case age+slack > dayPolicy.Minutes:
		width = int64(time.Hour)
	case age+slack > dayPolicy.Flushes:
		width = int64(time.Minute)
	}
	for i, f := range v.flushes {
		last := i+1 == len(v.flushes) || v.flushes[i+1].at/width != f.at/width
		if f.at <= at && (width == 1 || last) {
			seq = f.seq
		}
	}
	return seq
}

// same compares a moment with what the volume was after a record.
func (d *day) same(p *Device, v *dayVolume, seq uint64, what string) {
	d.t.Helper()
	got := make([]byte, p.Size())
	_, err := p.ReadAt(context.Background(), got, 0, nil)
	d.must(err)
	want, ok := v.states[seq]
	for at := seq; !ok && at > 0; at-- { // a root has a number of its own, and other volumes have theirs
		want, ok = v.states[at]
	}
	if maphash.Bytes(d.seed, got) != want {
		d.t.Fatalf("%s is record %d, and not what the volume was then", what, seq)
	}
}

// Over a simulated day, three volumes in one log: whatever moment is asked for, what comes is exactly what the volume was at the point that is named, and that is the newest that the policy keeps; history takes less than what was written, and so do its roots.
func TestHistoryThinDay(t *testing.T) {
	t.Parallel() // it waits for the disk
	seed := *modelSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat: go test ./blockstore -run TestHistoryThinDay -model.seed %d", seed)
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogFileBytes = 256 << 10
	d := newDay(t, seed, opts)
	for _, name := range []string{"a", "b", "c"} {
		d.add(name, 256<<10)
	}
	begin := d.clock.Load()
	attaches, thinned := 0, 0
	for hour := range 26 {
		for end := begin + int64(hour+1)*int64(time.Hour); d.clock.Load() < end; {
			for range 20 {
				d.guest(d.vols[d.rng.IntN(3)])
				d.clock.Add(d.rng.Int64N(int64(40 * time.Second)))
			}
			d.turn()
		}
		if hour%4 == 3 {
			settleTest(t, d.s)
		}
		if hour == 9 || hour == 21 {
			d.must(d.s.Close())
			d.s = openTest(t, d.opts)
		}
		for range 8 {
			now := d.clock.Load()
			_, was := d.attach(d.vols[d.rng.IntN(3)], max(begin, now-int64(25*time.Hour))+d.rng.Int64N(now-max(begin, now-int64(25*time.Hour))))
			if attaches++; was {
				thinned++
			}
		}
	}
	for _, v := range d.vols {
		info, err := d.s.History(v.name)
		d.must(err)
		for label, seq := range v.marks {
			if seq < info.FirstSeq {
				continue
			}
			p, err := d.s.OpenPoint(context.Background(), v.name, Moment{Label: label})
			d.must(err)
			if got, _, _ := p.Moment(); got != seq || p.Thinned() {
				t.Fatalf("%s of %s is record %d, want %d", label, v.name, got, seq)
			}
			d.same(p, v, seq, label)
			d.must(p.Close())
		}
		if info.Roots > 60 { // 4 an hour would be 96
			t.Errorf("%s has %d roots", v.name, info.Roots)
		}
		if info.WholeSeq <= info.FirstSeq || d.clock.Load()-info.Whole.UnixNano() > int64(100*time.Minute) {
			t.Errorf("%s is whole from %s on", v.name, info.Whole)
		}
	}
	if attaches < 200 || thinned < 50 || d.s.thinner.files.Load() == 0 || d.s.thinner.freed.Load() <= 0 {
		t.Errorf("%d attaches, %d of them where history is thinned, %d files made, %d B freed", attaches, thinned, d.s.thinner.files.Load(), d.s.thinner.freed.Load())
	}
	d.clock.Add(int64(20 * time.Minute)) // nobody writes any more
	d.turn()
	d.clock.Add(int64(2 * time.Hour))
	d.turn()
	for _, v := range d.vols {
		if info, err := d.s.History(v.name); err != nil || info.WholeSeq < v.changes[len(v.changes)-1].seq {
			t.Errorf("%s is idle, and whole from record %d on of %d: %v", v.name, info.WholeSeq, v.changes[len(v.changes)-1].seq, err)
		}
		d.attach(v, d.clock.Load()-int64(time.Minute))
	}
	settleTest(t, d.s)
	(&historyModel{t: t, s: d.s}).audit()
}

// What a crash at any step of thinning leaves has no moment that never was, and thinning goes on.
func TestHistoryThinCrash(t *testing.T) {
	mem := historyMem()
	opts := testOptions(t, mem, "store")
	opts.LogFileBytes = 256 << 10
	d := newDay(t, 7, opts)
	d.add("a", 128<<10)
	v := d.vols[0]
	hit := map[history.ThinStep]int{}
	crashed := 0
	d.s.thinner.step = func(step history.ThinStep) {
		if hit[step]++; hit[step]%9 != 3 {
			return
		}
		crashed++
		left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: []int{0, 50, 100}[crashed%3], RNG: d.rng})
		setUsage(left)
		after := &day{t: t, rng: d.rng, opts: d.opts, seed: d.seed, vols: d.vols}
		after.opts.FS = left
		s, err := Open(context.Background(), after.opts)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		after.clock.Store(d.clock.Load())
		after.s = s
		for i := range 12 {
			now := d.clock.Load()
			after.attachAny(v, now-d.rng.Int64N(int64(12*time.Hour)))
			if i == 6 {
				after.turn()
			}
		}
		d.must(s.Close())
	}
	for begin := d.clock.Load(); d.clock.Load() < begin+int64(14*time.Hour); {
		for range 20 {
			d.guest(v)
			d.clock.Add(d.rng.Int64N(int64(80 * time.Second)))
		}
		d.turn()
	}
	if crashed < 20 || len(hit) != 5 {
		t.Errorf("%d crashes, steps %v", crashed, hit)
	}
}

// attachAny compares a moment with what the volume was then, if it can be had.
func (d *day) attachAny(v *dayVolume, at int64) {
	d.t.Helper()
	p, err := d.s.OpenPoint(context.Background(), v.name, Moment{At: time.Unix(0, at)})
	if errors.Is(err, block.ErrNotFound) {
		return
	}
	d.must(err)
	defer p.Close()
	seq, _, _ := p.Moment()
	d.same(p, v, seq, fmt.Sprint("after a crash, ", time.Duration(d.clock.Load()-at), " ago"))
}

// While garbage collection is paused, or a moment is open, nothing of it is thinned; the moment stays what it is.
func TestHistoryThinHeld(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogFileBytes = 256 << 10
	d := newDay(t, 8, opts)
	d.add("a", 128<<10)
	v := d.vols[0]
	grow := func() {
		for range 150 {
			d.guest(v)
			d.clock.Add(d.rng.Int64N(int64(time.Minute)))
			d.must(d.s.historian.step(context.Background()))
		}
	}
	grow()
	at := d.clock.Load() - int64(30*time.Minute)
	p, err := d.s.OpenPoint(context.Background(), "a", Moment{At: time.Unix(0, at)})
	d.must(err)
	seq, _, _ := p.Moment()
	grow()
	_, err = d.s.PauseGC()
	d.must(err)
	grow()
	d.turn()
	if n := d.s.thinner.files.Load(); n > 0 {
		t.Fatalf("%d files were thinned while garbage collection was paused", n)
	}
	_, err = d.s.ResumeGC()
	d.must(err)
	d.turn()
	d.same(p, v, seq, "a moment that is open")
	if d.s.thinner.files.Load() == 0 {
		t.Error("nothing was thinned")
	}
	again, err := d.s.OpenPoint(context.Background(), "a", Moment{Seq: seq})
	d.must(err)
	if got, _, _ := again.Moment(); got != seq || again.Thinned() {
		t.Errorf("a moment that is open is record %d, want %d", got, seq)
	}
	d.must(errors.Join(p.Close(), again.Close()))
	d.turn()
	again, err = d.s.OpenPoint(context.Background(), "a", Moment{Seq: seq})
	d.must(err)
	if got, _, _ := again.Moment(); got > seq || got == seq == again.Thinned() {
		t.Errorf("the moment of record %d is %d, thinned %v", seq, got, again.Thinned())
	}
	d.must(again.Close())
}

func TestHistoryPolicyBounds(t *testing.T) {
	const h = time.Hour
	for _, bad := range []HistoryPolicy{
		{Window: h, Every: time.Second}, {Window: h, Every: 2 * h}, {Window: 9 * h, Flushes: 2 * h}, {Window: 9 * h, Every: h, Flushes: h}, {Window: 9 * h, Every: h, Flushes: 10 * h},
		{Window: 9 * h, Every: h, Flushes: 3 * h, Minutes: 2 * h}, {Window: 9 * h, Every: h, Minutes: 10 * h}, {Window: 9 * h, Minutes: 2 * h}, {Every: h},
	} {
		if err := bad.Validate(); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	p := HistoryPolicy{Window: 100 * h, Every: h, Flushes: 10 * h, Minutes: 50 * h}
	for age, want := range map[time.Duration]history.Level{0: history.Whole, h: history.Whole, h + 1: history.Flushes, 11 * h: history.Minutes, 51 * h: history.Hours, 200 * h: history.Hours} {
		if got := p.level(age); got != want || p.Validate() != nil {
			t.Errorf("%v is %v, want %v", age, got, want)
		}
	}
	p.Minutes = 100 * h
	if p.Hours() != 0 || p.level(200*h) != history.Minutes || !p.Thins() || (HistoryPolicy{Window: h}).Thins() || (HistoryPolicy{Window: h, Every: h}).Thins() {
		t.Errorf("%+v", p)
	}
	st := historyState{StoreID: block.UUID{1}, Volumes: []historyPolicyRow{{ID: 3, Policy: p, LastSeq: 9}}}
	if got, err := decodeHistoryState(st.encode(), "state"); err != nil || got.Volumes[0] != st.Volumes[0] || st.version() != historyThins {
		t.Errorf("%+v, %v", got, err)
	}
	st.Volumes[0].Policy = HistoryPolicy{Window: h}
	if got, err := decodeHistoryState(st.encode(), "state"); err != nil || got.Volumes[0] != st.Volumes[0] || st.version() != historyVersion {
		t.Errorf("%+v, %v", got, err)
	}
}
