package check

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// images are the bytes of a volume and of its snapshots.
type images struct {
	head  []byte
	snaps map[string][]byte
}

// Regions of so many chunks that the engine keeps them in parts are written here and there, between snapshots, clones and rollbacks that come and go in any order: everything reads as it
// was, and no part leaks, is missing or has two holders.
func TestPartsInAnyOrder(t *testing.T) {
	const size, steps = 24 << 20, 70
	l, ctx := newLab(t, 4), t.Context()
	l.create("v", size)
	all := map[string]*images{"v": {l.noise(size), map[string][]byte{}}}
	for off := 0; off < size; off += 1 << 20 {
		l.write("v", uint64(off), all["v"].head[off:off+1<<20])
	}
	l.settle()
	for step := range steps {
		name := l.pick(slices.Sorted(maps.Keys(all)))
		v := all[name]
		snap := ""
		if len(v.snaps) > 0 {
			snap = l.pick(slices.Sorted(maps.Keys(v.snaps)))
		}
		switch k := l.rng.IntN(19); {
		case k < 8:
			for range 1 + l.rng.IntN(12) {
				off, p := l.rng.IntN(size-4*block.Size), l.noise(1+l.rng.IntN(3*block.Size))
				copy(v.head[off:], p)
				l.write(name, uint64(off), p)
			}
		case k < 11:
			l.snapshot(name, fmt.Sprint("s", step))
			v.snaps[fmt.Sprint("s", step)] = bytes.Clone(v.head)
		case k < 13 && snap != "":
			l.must(l.s.DeleteSnapshot(ctx, name, snap))
			delete(v.snaps, snap)
		case k == 13 && snap != "" && len(all) < 4:
			l.clone(name, snap, fmt.Sprint("c", step))
			all[fmt.Sprint("c", step)] = &images{bytes.Clone(v.snaps[snap]), map[string][]byte{}}
		case k == 14 && snap != "":
			l.must(l.s.Rollback(ctx, name, snap))
			v.head = bytes.Clone(v.snaps[snap])
		case k == 15:
			off, n := l.rng.IntN(size/block.Size-8)*block.Size, (1+l.rng.IntN(8))*block.Size
			if l.rng.IntN(6) == 0 {
				off, n = 0, block.RegionSize
			}
			clear(v.head[off : off+n])
			l.trim(name, uint64(off), uint64(n))
		case k == 16 && len(all) > 2:
			l.must(l.s.DeleteVolume(ctx, name))
			delete(all, name)
		case k == 17:
			l.close()
			mustBeClean(t, l.dir, fmt.Sprint("after step ", step))
			l.open()
		default:
			l.settle()
		}
	}
	for name, v := range all {
		l.reads(ctx, name, "", v.head)
		for snap, want := range v.snaps {
			l.reads(ctx, name, snap, want)
		}
	}
	l.settle()
	l.close()
	mustBeClean(t, l.dir, "at the end")
}

func (l *lab) pick(of []string) string { return of[l.rng.IntN(len(of))] }

// noise is data that nothing else has, and that does not shrink.
func (l *lab) noise(n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(l.rng.Uint32())
	}
	return p
}

// reads fails the test unless a volume, or a snapshot of it, has the wanted bytes.
func (l *lab) reads(ctx context.Context, name, snap string, want []byte) {
	l.t.Helper()
	d, err := l.s.OpenDevice(name, snap)
	l.must(err)
	got := make([]byte, len(want))
	_, err = d.ReadAt(ctx, got, 0, nil)
	l.must(err)
	l.must(d.Close())
	for i := range got {
		if got[i] != want[i] {
			l.t.Fatalf("%s@%s reads as something else from byte %d on", name, snap, i)
		}
	}
}
