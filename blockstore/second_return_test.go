package blockstore

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/secondcopy"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// returnLab is a store on four disks of which the last one, with the second copies, goes and comes back.
type returnLab struct {
	t    *testing.T
	root string
	opts Options
	s    *Store
}

const returnPiece = 64 << 10 // written 80 times, in places apart

func (l *returnLab) open() *Device {
	l.s = openTest(l.t, l.opts)
	d, err := l.s.OpenDevice("a", "")
	if errors.Is(err, block.ErrNotFound) {
		return createTest(l.t, l.s, "a", 64<<20)
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return d
}

func (l *returnLab) close() {
	l.t.Helper()
	if err := l.s.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// hot writes a piece so often at off that its frames get second copies, and returns all that have one, and those of them that are new.
func (l *returnLab) hot(off uint64, piece []byte, before []secondcopy.Place) (all, added []secondcopy.Place) {
	l.t.Helper()
	d := l.open()
	for i := range uint64(80) {
		writeTest(l.t, d, off+i*2*returnPiece, piece)
	}
	settleTest(l.t, l.s)
	l.close()
	l.open() // what was open is sealed
	waitFor(l.t, "second copies", func() bool {
		l.s.keeper.kick()
		if l.s.Redundancy().SegmentsWaiting > 0 {
			return false
		}
		all = l.s.keeper.seconds.places()
		added = slices.DeleteFunc(slices.Clone(all), func(p secondcopy.Place) bool { return slices.Contains(before, p) })
		return len(added) > 0
	})
	return all, added
}

func (l *returnLab) copiesIn(disk string) []secondcopy.Place {
	l.t.Helper()
	f, err := secondcopy.Open(vfs.Default, filepath.Join(l.root, disk), l.s.super.StoreID)
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	return f.Places()
}

// TestSecondCopiesOfAReturnedDisk: the disk with the second copies goes, others are made elsewhere, it comes back with what it had, while the store is closed or while it runs. What only the younger file has is still there
// when the segments are lost; so is what only the elder has; and soon there is one file again, on the disk that is the place for it, with all of it.
func TestSecondCopiesOfAReturnedDisk(t *testing.T) {
	for _, c := range []struct {
		name  string
		while bool
	}{{"closed", false}, {"running", true}} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			l := &returnLab{t: t, root: root, opts: diskOptions(t, root, erasure.Shape{Data: 2, Parity: 1})}
			l.opts.secondEvery, l.opts.Events.Corruption = 10*time.Millisecond, func(error) {}
			rng := rand.New(rand.NewPCG(7, 8))
			pieces := [][]byte{guestData(rng, returnPiece), guestData(rng, returnPiece)}
			last := filepath.Join(root, "d")
			elder, _ := l.hot(0, pieces[0], nil)
			if got := l.copiesIn("d"); !slices.Equal(got, elder) {
				t.Fatalf("the last disk has %d copies, want %d", len(got), len(elder))
			}
			awaitHealthy(t, l.s)
			l.close()
			if err := os.Rename(last, last+"-away"); err != nil {
				t.Fatal(err)
			}
			all, younger := l.hot(20<<20, pieces[1], elder)
			if got := l.copiesIn("c"); len(all) != len(elder)+len(younger) || !slices.Equal(got, all) {
				t.Fatalf("without the last disk, %d copies are made, want %d", len(got), len(all))
			}
			back := func() {
				if err := errors.Join(os.RemoveAll(last), os.Rename(last+"-away", last)); err != nil {
					t.Fatal(err)
				}
			}
			if c.while {
				back()
			} else {
				l.close()
				back()
				// Both segments are lost in all their shards: what is left of them is copies.
				for _, p := range []secondcopy.Place{elder[0], younger[0]} {
					row, _ := l.s.segments.get(p.Segment)
					key := row.Placement[0].Key
					found, err := filepath.Glob(filepath.Join(root, "*", "segments", "*", key[:len(key)-len(".seg")]+"*"))
					if err != nil || len(found) == 0 {
						t.Fatal(key, found, err)
					}
					for _, f := range found {
						if err := os.Remove(f); err != nil {
							t.Fatal(err)
						}
					}
				}
				l.open()
			}
			defer func() {
				if t.Failed() {
					t.Logf("wanted %v, in c %v, in d %v; next in %s; %+v", all, l.copiesIn("c"), l.copiesIn("d"), l.s.secondDir(), l.s.Redundancy())
				}
			}()
			waitFor(t, "one file with all copies", func() bool {
				l.s.keeper.kick()
				return slices.Equal(l.copiesIn("d"), all) && l.copiesIn("c") == nil && !l.s.keeper.seconds.elsewhere(last)
			})
			d := deviceTest(t, l.s, "a", "")
			for i, p := range pieces {
				data := make([]byte, i*20<<20+returnPiece)
				copy(data[i*20<<20:], p)
				if n := readable(t, d, data, i*20<<20); n < returnPiece/2 {
					t.Errorf("%d of %d B can be read of piece %d", n, returnPiece, i)
				}
			}
		})
	}
}
