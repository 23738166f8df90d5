package history

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// past is a volume's history as a test made it: what each block was after each record.
type past struct {
	t      *testing.T
	rng    *rand.Rand
	seq    uint64
	now    int64
	blocks map[uint64][]byte // a block that is not there is zero
	states map[uint64]map[uint64][]byte
	roots  []Root
	points []Record // without payload
	all    []Record
}

func newPast(t *testing.T, seed uint64) *past {
	return &past{t: t, rng: rand.New(rand.NewPCG(seed, 25)), now: int64(1000 * time.Hour), blocks: map[uint64][]byte{}, states: map[uint64]map[uint64][]byte{}}
}

// grow appends records for a span of time, with a root every quarter of an hour.
func (p *past) grow(st *Stream, span time.Duration, gap time.Duration) {
	p.t.Helper()
	if len(p.roots) == 0 {
		p.root(st)
	}
	for end := p.now + int64(span); p.now < end; p.now += p.rng.Int64N(int64(2 * gap)) {
		p.seq += 1 + p.rng.Uint64N(3)
		r := Record{Kind: Write, Seq: p.seq, Time: p.now, Off: p.rng.Uint64N(60) * sectorSize, Len: uint64(1+p.rng.IntN(8)) * sectorSize}
		switch p.rng.IntN(12) {
		case 0:
			r.Kind = Trim
		case 1:
			r.Kind = Zero
		case 2: // several parts
			if p.rng.IntN(10) > 0 {
				break
			}
			r.Len = FrameRaw
			p.append(st, r, true)
			r.Off += FrameRaw
		}
		p.append(st, r, false)
		p.states[p.seq] = maps.Clone(p.blocks)
		switch k := p.rng.IntN(20); {
		case k < 6:
			p.point(st, Record{Kind: Barrier, Seq: p.seq, Time: p.now + p.rng.Int64N(int64(gap))})
		case k == 6 && p.rng.IntN(4) == 0:
			p.point(st, Record{Kind: Mark, Seq: p.seq, Time: p.now, Label: fmt.Sprint("mark ", p.seq)})
		case k == 7 && p.rng.IntN(4) == 0:
			p.point(st, Record{Kind: Snapshot, Seq: p.seq, Time: p.now, Label: fmt.Sprint("snapshot ", p.seq)})
		case k == 8:
			must(p.t, st.Sync())
		case k == 9 && p.rng.IntN(3) == 0:
			must(p.t, st.Roll())
		}
		if p.now-p.roots[len(p.roots)-1].Time > int64(15*time.Minute) {
			p.root(st)
		}
	}
	must(p.t, st.Sync())
}

func (p *past) root(st *Stream) {
	if p.rng.IntN(8) > 0 { // a file may go on over a root: a mark with the number of the root does that
		must(p.t, st.Roll())
	}
	p.seq++
	p.roots = append(p.roots, Root{Seq: p.seq, Time: p.now})
	p.states[p.seq] = maps.Clone(p.blocks)
}

func (p *past) append(st *Stream, r Record, part bool) {
	p.t.Helper()
	if r.Kind == Write {
		r.Payload, r.Part = make([]byte, r.Len), part
		for i := range r.Payload {
			r.Payload[i] = byte(r.Seq) + byte(i/1000)
		}
		for at := uint64(0); at < r.Len; at += sectorSize {
			sector, chance := r.Payload[at:][:sectorSize], p.rng.Uint64()
			switch chance % 4 {
			case 0: // another version of what was there
				copy(sector, p.blocks[(r.Off+at)/sectorSize])
			case 1: // what another block has
				copy(sector, p.blocks[chance/4%60])
				continue
			}
			le.PutUint64(sector[chance/256%100*8:], chance)
		}
	}
	must(p.t, st.Append(&r))
	for at := uint64(0); at < r.Len; at += sectorSize {
		if n := (r.Off + at) / sectorSize; r.Kind == Write {
			p.blocks[n] = r.Payload[at : at+sectorSize]
		} else {
			delete(p.blocks, n)
		}
	}
	r.Payload = nil
	p.all = append(p.all, r)
}

func (p *past) point(st *Stream, r Record) {
	must(p.t, st.Append(&r))
	p.points = append(p.points, r)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// check replays a stream from each root on, and compares every moment that it says it has. It returns the points of stretches that were thinned, and how many moments there were.
func (p *past) check(s *Set, st *Stream, what string) (points []Record, moments int) {
	p.t.Helper()
	for i, root := range p.roots {
		end := ^uint64(0)
		if i+1 < len(p.roots) {
			end = p.roots[i+1].Seq - 1
		}
		now, seq, whole := maps.Clone(p.states[root.Seq]), root.Seq, true
		compare := func() {
			p.t.Helper()
			if whole {
				moments++
				p.same(now, seq, what)
			}
		}
		release := st.Pin(root.Seq, end)
		err := st.Each(root.Seq, end, func(r *Record) error {
			if r.Seq != seq {
				compare()
				seq = r.Seq
			}
			if whole = !r.Thinned || r.Kind.Point(); whole && r.Thinned {
				x := *r
				x.Sums = nil
				points = append(points, x)
				defer compare()
			}
			return p.replay(s, now, r)
		})
		release()
		must(p.t, err)
		compare()
	}
	return points, moments
}

func (p *past) replay(s *Set, now map[uint64][]byte, r *Record) error {
	var payload []byte
	if r.Kind == Write {
		payload = make([]byte, r.Len)
		if err := s.ReadAt(payload, r.Pos, r.Sums); err != nil {
			return err
		}
	}
	if r.Kind.Point() {
		return nil
	}
	for at := uint64(0); at < r.Len; at += sectorSize {
		if n := (r.Off + at) / sectorSize; r.Kind == Write {
			now[n] = payload[at : at+sectorSize]
		} else {
			delete(now, n)
		}
	}
	return nil
}

func (p *past) same(got map[uint64][]byte, seq uint64, what string) {
	p.t.Helper()
	want := p.states[seq]
	if want == nil {
		p.t.Fatalf("%s: record %d was never written", what, seq)
	}
	if !maps.EqualFunc(got, want, bytes.Equal) {
		p.t.Fatalf("%s: after record %d the volume is another than it was (%d blocks, want %d)", what, seq, len(got), len(want))
	}
}

// policy is every write of an hour, flushes for four, minutes for eight, then hours.
func (p *past) policy(step func(ThinStep)) *Thinning {
	level := func(newest int64) Level {
		switch age := time.Duration(p.now - newest); {
		case age <= time.Hour:
			return Whole
		case age <= 4*time.Hour:
			return Flushes
		case age <= 8*time.Hour:
			return Minutes
		}
		return Hours
	}
	return &Thinning{Roots: p.roots, Level: level, Pace: func(int) error { return nil }, Step: step}
}

func thinAll(t *testing.T, st *Stream, th *Thinning) (done Thinned) {
	t.Helper()
	for range 10000 {
		one, more, err := st.Thin(th)
		must(t, err)
		done.add(one)
		if !more {
			return done
		}
	}
	t.Fatal("thinning does not end")
	return done
}

// dropIdle gives up the roots that nothing stands on, as the owner of a stream does.
func (p *past) dropIdle(st *Stream) {
	left := p.roots[:1:1]
	for i := 1; i+1 < len(p.roots); i++ {
		if !st.Idle(p.roots[i].Seq, p.roots[i+1].Seq) {
			left = append(left, p.roots[i])
		}
	}
	p.roots = append(left, p.roots[len(p.roots)-1])
}

// joined counts the files that stand for what lies between several roots.
func (p *past) joined(st *Stream) (n int) {
	for _, f := range st.files {
		roots := 0
		for _, r := range p.roots {
			if f.header.After < r.Seq && r.Seq <= f.lastSeq {
				roots++
			}
		}
		if roots > 1 && f.header.Level == Hours {
			n++
		}
	}
	return n
}

// After any thinning each point that is left is what the volume was then, and the policy's points are left.
func TestThin(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var keys *keyring.Ring
			if seed%2 == 1 {
				keys = testKeys(t, block.UUID{1})
			}
			fs := vfs.NewCrashableMem()
			s := openSet(t, fs, keys)
			st, err := s.Create(testVolume)
			must(t, err)
			p := newPast(t, seed)
			if s.gather = 50; seed < 2 { // else a file is gathered at once
				s.gather = 1 << 20
			}
			s.joinSpan = 3 * time.Hour
			for round := range 8 {
				p.grow(st, 2*time.Hour, time.Minute)
				before := st.Bytes()
				done := thinAll(t, st, p.policy(nil))
				if round > 0 && (done.Files == 0 || st.Bytes() >= before || before-st.Bytes() != done.Before-done.After) {
					t.Fatalf("round %d: %+v, %d B before and %d after", round, done, before, st.Bytes())
				}
				p.dropIdle(st)
				points, _ := p.check(s, st, fmt.Sprint("round ", round))
				p.complete(st, points)
				if seed%3 == 0 { // nobody else finds anything to do, and an open finds the same
					if done := thinAll(t, st, p.policy(nil)); done.Files > 0 {
						t.Errorf("thinned twice: %+v", done)
					}
					must(t, s.Close())
					gather := s.gather
					s = openSet(t, fs, keys)
					s.gather, s.joinSpan, st = gather, 3*time.Hour, s.Stream(testVolume)
					again, _ := p.check(s, st, "reopened")
					if !slices.EqualFunc(points, again, func(a, b Record) bool { return a.Kind == b.Kind && a.Seq == b.Seq && a.Label == b.Label }) {
						t.Fatal("an open finds other points")
					}
				}
			}
			if p.joined(st) == 0 {
				t.Error("no files were joined")
			}
			must(t, s.Close())
		})
	}
}

// complete checks that no point is missing that the policy keeps, and that none is left that it does not.
func (p *past) complete(st *Stream, left []Record) {
	p.t.Helper()
	whole, _ := st.WholeFrom()
	th := p.policy(nil)
	has := map[uint64]bool{}
	for _, r := range left {
		has[r.Seq] = true
	}
	levelAt := func(seq uint64) Level {
		for _, f := range st.files {
			if f.header.After < seq && seq <= f.lastSeq {
				return f.header.Level
			}
		}
		return Whole
	}
	for _, f := range st.files {
		if f.sealed && f.header.Level < th.want(f) {
			p.t.Fatalf("file %08x is at %v, want %v", f.header.ID, f.header.Level, th.want(f))
		}
	}
	last := map[string]uint64{} // the last flush of each minute and hour
	for _, r := range p.points {
		if r.Kind.labelled() && r.Seq <= whole && !has[r.Seq] {
			p.t.Fatalf("%s of record %d is gone", r.Label, r.Seq)
		}
		if r.Kind != Barrier {
			continue
		}
		if levelAt(r.Seq) == Flushes && !has[r.Seq] {
			p.t.Fatalf("the flush of record %d is gone", r.Seq)
		}
		for _, l := range []Level{Minutes, Hours} {
			last[fmt.Sprint(l, r.Time/l.width())] = r.Seq
		}
	}
	minutes, hours := map[int64]int{}, map[int64]int{}
	for _, r := range left {
		if r.Kind.labelled() {
			continue
		}
		switch levelAt(r.Seq) {
		case Minutes:
			minutes[r.Time/Minutes.width()]++
		case Hours:
			hours[r.Time/Hours.width()]++
		}
	}
	for _, r := range p.points {
		if l := levelAt(r.Seq); r.Kind == Barrier && l >= Minutes && last[fmt.Sprint(l, r.Time/l.width())] == r.Seq && !has[r.Seq] {
			p.t.Fatalf("the last flush of a stretch of %v, record %d, is gone", time.Duration(l.width()), r.Seq)
		}
	}
	for hour, n := range hours {
		if n > 8 { // each quarter without a flush may have one
			p.t.Fatalf("%d points are left of hour %d", n, hour)
		}
	}
	for minute, n := range minutes {
		if n > 3 {
			p.t.Fatalf("%d points are left of minute %d", n, minute)
		}
	}
}

// Whatever a death or a power loss leaves at any step, each moment that an open finds is what the volume was, nothing is missing from what was synced, and thinning goes on.
func TestThinCrash(t *testing.T) {
	for seed := range uint64(2) {
		fs := vfs.NewCrashableMem()
		s := openSet(t, fs, nil)
		s.joinSpan = 3 * time.Hour
		st, err := s.Create(testVolume)
		must(t, err)
		p := newPast(t, seed)
		p.grow(st, 14*time.Hour, 2*time.Minute)
		steps, hit := 0, map[ThinStep]int{}
		for range 3 {
			thinAll(t, st, p.policy(func(step ThinStep) {
				if steps++; hit[step] > 1 && p.rng.IntN(60) > 0 {
					return
				}
				hit[step]++
				for _, percent := range []int{0, 50, 100}[p.rng.IntN(3):][:1] {
					left := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: percent, RNG: p.rng})
					what := fmt.Sprintf("seed %d, step %d, %d %% of what was not synced", seed, step, percent)
					again := openSet(t, left, nil)
					again.joinSpan = 3 * time.Hour
					found := again.Stream(testVolume)
					if found.LastSeq() != p.all[len(p.all)-1].Seq {
						t.Fatalf("%s: the last record is %d, want %d", what, found.LastSeq(), p.all[len(p.all)-1].Seq)
					}
					p.check(again, found, what)
					thinAll(t, found, p.policy(nil))
					points, _ := p.check(again, found, what+", thinned again")
					p.complete(found, points)
					must(t, again.Close())
					names, err := left.List("history/0000000000000007")
					must(t, err)
					for _, name := range names {
						if isThinning(name) {
							t.Fatalf("%s: %s is left", what, name)
						}
					}
				}
			}))
			p.dropIdle(st)
			p.grow(st, 5*time.Hour, time.Minute)
		}
		if p.joined(st) == 0 {
			t.Error("no files were joined")
		}
		if steps < 100 || len(hit) != 5 {
			t.Fatalf("only %d steps: %v", steps, hit)
		}
		must(t, s.Close())
	}
}

// What somebody reads stays; thinning goes on when it is released. A stream that is removed meanwhile stops it.
func TestThinBusy(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 9)
	p.grow(st, 4*time.Hour, 20*time.Second)
	before := st.Bytes()
	release := st.Pin(0, ^uint64(0))
	if done := thinAll(t, st, p.policy(nil)); done.Files != 0 {
		t.Fatalf("what is read was replaced: %+v", done)
	}
	release()
	var unpin func()
	pinned := p.policy(func(step ThinStep) {
		if step == BeforeRename && unpin == nil {
			unpin = st.Pin(0, ^uint64(0))
		}
	})
	if done := thinAll(t, st, pinned); done.Files != 0 || st.Bytes() != before {
		t.Fatalf("what is read since was replaced: %+v", done)
	}
	unpin()
	if done := thinAll(t, st, p.policy(nil)); done.Files == 0 || st.Bytes() >= before {
		t.Fatalf("nothing was thinned: %+v", done)
	}
	p.check(s, st, "after readers")
	p.grow(st, 4*time.Hour, 20*time.Second)
	gone := make(chan error, 1)
	began := false
	_, _, err = st.Thin(p.policy(func(step ThinStep) {
		if !began {
			began = true
			go func() { gone <- s.Remove(testVolume) }()
			for !st.gone.Load() {
				time.Sleep(time.Millisecond)
			}
		}
	}))
	if !errors.Is(err, block.ErrClosed) && err != nil {
		t.Fatal(err)
	}
	must(t, <-gone)
	if _, err := fs.Stat("history/0000000000000007"); !vfs.IsNotExist(err) {
		t.Fatalf("something is left: %v", err)
	}
	must(t, s.Close())
}

// A disk that is full leaves what there was; a damaged file is told of once, and what surrounds it is thinned.
func TestThinDamaged(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 10)
	p.grow(st, 4*time.Hour, 20*time.Second)
	f := st.files[1]
	h, err := vfs.OpenUpdate(fs, f.path)
	must(t, err)
	if _, err := h.WriteAt([]byte("damage"), headerSize+frameSize+2000); err != nil {
		t.Fatal(err)
	}
	must(t, h.Close())
	failed := 0
	for range 200 {
		_, more, err := st.Thin(p.policy(nil))
		if err != nil {
			failed++
			if !errors.Is(err, block.ErrCorrupt) {
				t.Fatal(err)
			}
			continue
		}
		if !more {
			break
		}
	}
	if failed != 1 || f.header.Level != Whole || st.files[1] != f {
		t.Fatalf("%d failures", failed)
	}
	thinned := 0
	for _, f := range st.files {
		if f.header.Level != Whole {
			thinned++
		}
	}
	if thinned < 4 {
		t.Fatalf("%d files were thinned of %d", thinned, len(st.files))
	}
}

// A root of a stretch of which nothing is left is idle, and no other.
func TestIdleRoots(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 11)
	p.grow(st, 24*time.Hour, time.Minute)
	thinAll(t, st, p.policy(nil))
	points, _ := p.check(s, st, "thinned")
	idle, sure := 0, 0
	for i := range len(p.roots) - 1 {
		root, next := p.roots[i].Seq, p.roots[i+1].Seq
		n := 0
		for _, r := range points {
			if root <= r.Seq && r.Seq < next {
				n++
			}
		}
		if st.Idle(root, next) {
			idle++
			if n > 0 || !st.ThinnedAt(root+1) {
				t.Fatalf("root %d has %d points, and is idle", root, n)
			}
		} else if n > 0 {
			sure++
		}
	}
	if idle < 20 || sure < 20 {
		t.Fatalf("%d idle roots, %d others, of %d", idle, sure, len(p.roots))
	}
	must(t, s.Close())
}
