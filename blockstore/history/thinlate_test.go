package history

import (
	"errors"
	"maps"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// What lies before a root in a file that is being filled needs what comes before it, so that stays whole until the file is sealed.
func TestThinUnsealed(t *testing.T) {
	s := openSet(t, vfs.NewCrashableMem(), nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 12)
	p.root(st)
	write := func(block uint64) {
		p.seq++
		p.append(st, Record{Kind: Write, Seq: p.seq, Time: p.now, Off: block * sectorSize, Len: sectorSize}, false)
		p.states[p.seq] = maps.Clone(p.blocks)
		p.now += int64(time.Second)
	}
	write(1)
	p.point(st, Record{Kind: Barrier, Seq: p.seq, Time: p.now})
	write(2)
	must(t, st.Roll())
	write(3)
	must(t, st.Sync())
	p.seq++ // a root that ends no file, as nothing was written since
	p.roots = append(p.roots, Root{Seq: p.seq, Time: p.now})
	p.states[p.seq] = maps.Clone(p.blocks)
	p.now += int64(2 * time.Hour)
	if done := thinAll(t, st, p.policy(nil)); done.Files != 0 {
		t.Errorf("%d files were thinned before one that is not sealed", done.Files)
	}
	p.check(s, st, "not sealed")
	must(t, st.Roll())
	if done := thinAll(t, st, p.policy(nil)); done.Files != 2 {
		t.Errorf("%d files were thinned", done.Files)
	}
	p.check(s, st, "sealed")
	must(t, s.Close())
}

// Files in which nothing is left are one, also as the last: what is appended after an open is not taken for one that it stands for.
func TestThinJoinedLast(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 13)
	p.root(st)
	p.seq++
	p.append(st, Record{Kind: Write, Seq: p.seq, Time: p.now, Len: sectorSize}, false)
	p.states[p.seq] = maps.Clone(p.blocks)
	must(t, st.Roll())
	for range 3 { // what is left behind of a write that failed
		must(t, st.Append(&Record{Kind: Write, Seq: p.seq + 1, Time: p.now, Len: sectorSize, Payload: make([]byte, sectorSize), Part: true}))
		must(t, st.Sync())
		st.Abandon()
	}
	p.root(st)
	p.now += int64(2 * time.Hour)
	thinAll(t, st, p.policy(nil))
	if last := st.files[len(st.files)-1]; len(st.files) != 2 || last.header.Through != 4 {
		t.Fatalf("%d files, the last one stands for those up to %d", len(st.files), last.header.Through)
	}
	for range 3 {
		must(t, s.Close())
		s = openSet(t, fs, nil)
		if st = s.Stream(testVolume); st.LastSeq() != p.seq && len(p.all) > 1 {
			t.Fatalf("the last record is %d, want %d", st.LastSeq(), p.seq)
		}
		p.seq++
		p.append(st, Record{Kind: Write, Seq: p.seq, Time: p.now, Off: sectorSize, Len: sectorSize}, false)
		p.states[p.seq] = maps.Clone(p.blocks)
		must(t, st.Sync())
		p.check(s, st, "after an open")
	}
	must(t, s.Close())
}

// A file whose index is damaged is told of once and stays; others are thinned, and no moment of them is another than it was. Without room nothing is thinned.
func TestThinDamagedIndex(t *testing.T) {
	fs := vfs.NewCrashableMem()
	s := openSet(t, fs, nil)
	st, err := s.Create(testVolume)
	must(t, err)
	p := newPast(t, 14)
	p.grow(st, 4*time.Hour, 20*time.Second)
	full := p.policy(nil)
	full.Room = func(int64) bool { return false }
	if done := thinAll(t, st, full); done.Files != 0 {
		t.Fatalf("%d files were thinned without room", done.Files)
	}
	for _, i := range []int{1, 2, 6} {
		f := st.files[i]
		h, err := vfs.OpenUpdate(fs, f.path)
		must(t, err)
		_, err = h.WriteAt([]byte("damage of an index"), f.end-footerSize-200)
		must(t, errors.Join(err, h.Close()))
	}
	failed := 0
	for range 400 {
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
	stuck, thinned, due := 0, 0, 0
	for _, f := range st.files {
		switch th := p.policy(nil); {
		case f.stuck:
			stuck++
		case f.header.Level != Whole:
			thinned++
		case f.sealed && th.want(f) > Whole:
			due++
		}
	}
	if failed == 0 || failed > 3 || stuck != 3 || thinned < 4 || due > 0 {
		t.Fatalf("%d failures, %d files are stuck, %d were thinned, %d are due", failed, stuck, thinned, due)
	}
	must(t, s.Close())
}
