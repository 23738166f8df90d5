package blockstore

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// Damage that nobody could mend is forgotten when its file is thinned without what is damaged, so that what takes the file's place is mended when it is met damaged.
func TestHistoryDamageThinned(t *testing.T) {
	d, _, _ := guardedDay(t, 35, 3)
	k := d.s.keeper
	all := d.s.historian.set.Sealed()
	f := all[len(all)-1]
	gone := k.historyDamage(&history.Found{Sealed: f})
	gone.Lost = 3
	k.recordHistory(f.FileKey, gone)
	k.pruneHistory()
	if len(d.s.Damages()) != 1 {
		t.Fatalf("%+v", d.s.Damages())
	}
	was := d.bytesOf(f.Path)
	d.hours(3)
	now := d.bytesOf(f.Path)
	if string(now) == string(was) {
		t.Fatal("it was not thinned")
	}
	waitFor(t, "the damage to be forgotten", func() bool { k.kick(); return len(d.s.Damages()) == 0 })
	d.guarded()
	now = d.bytesOf(f.Path)
	d.flip(f.Path, int64(len(now))-200)
	d.must(d.s.historian.of(f.Volume).stream.Each(0, ^uint64(0), func(*history.Record) error { return nil })) // all indexes
	waitFor(t, "the file to be mended", func() bool { k.kick(); return string(d.bytesOf(f.Path)) == string(now) })
	d.must(d.s.Close())
}
