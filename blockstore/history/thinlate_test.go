package history

import (
	"maps"
	"testing"
	"time"

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
