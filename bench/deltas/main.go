// Deltas measures what it would save to encode chunks that go cold as differences to chunks that went cold before (docs/rfc/0027-cold-deltas.md). It reads the disks of one guest as they stood on several days, oldest first,
// cuts and dedups them as a volume is cut, lets what each day brought go cold on that day, and prints what is stored:
//
//	frames   as the store does it: similar chunks of one day share frames of 1 MiB
//	deltas   each chunk whose place the day before had a like one is compressed with that as the dictionary, if this saves a quarter of what it takes otherwise
//	any      the same, with a like one from anywhere
//	joined   the same, and the deltas of 1 MiB are one frame, with all they refer to as its dictionary
//	at once  frames, but all days go cold together on the last one
//
// It writes nothing. A delta refers to a chunk that is none itself.
package main

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/similar"
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: deltas DISK-OF-DAY-1 DISK-OF-DAY-2 …\n\nexample: go run ./bench/deltas corpus/db-1.raw corpus/db-2.raw corpus/db-3.raw corpus/db-4.raw")
		os.Exit(2)
	}
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "deltas:", err)
		os.Exit(1)
	}
}

const mib = 1 << 20

func run(days []string) error {
	v, err := newVolume()
	if err != nil {
		return err
	}
	fmt.Println("| day | new chunks | raw MiB | frames MiB | like the one at their place | kept | deltas MiB | like any | kept | any MiB | joined MiB |")
	fmt.Println("|---|---|---|---|---|---|---|---|---|---|---|")
	var sum [4]int64
	var all []int
	var any similar.Table // of all that are no deltas
	anyID := []int{}
	for i, path := range days {
		fresh, err := v.day(path)
		if err != nil {
			return err
		}
		share := map[int]int{}
		plain, err := v.frames(v.arrange(fresh), share)
		if err != nil {
			return err
		}
		v.plain = plain
		place := v.pairs(fresh, func(id int) int { return v.atPlace(id) })
		everywhere := v.pairs(fresh, func(id int) int {
			if b := place[id]; b >= 0 {
				return b
			}
			if k, ok := any.Find(&v.chunks[id].sketch, -1); ok {
				return anyID[k]
			}
			return -1
		})
		byPlace, keptPlace, err := v.withDeltas(fresh, place, share)
		if err != nil {
			return err
		}
		byAny, keptAny, err := v.withDeltas(fresh, everywhere, share)
		if err != nil {
			return err
		}
		joined, err := v.joined(fresh, everywhere, keptAny)
		if err != nil {
			return err
		}
		raw := 0
		for _, id := range fresh {
			raw += v.chunks[id].n
			if keptAny[id] {
				v.chunks[id].base = everywhere[id]
			} else {
				any.Add(&v.chunks[id].sketch)
				anyID = append(anyID, id)
			}
		}
		fmt.Printf("| %d | %d | %.1f | %.1f | %d | %d | %.1f | %d | %d | %.1f | %.1f |\n", i+1, len(fresh), float64(raw)/mib, float64(plain)/mib, found(place), len(keptPlace), float64(byPlace)/mib, found(everywhere), len(keptAny), float64(byAny)/mib, float64(joined)/mib)
		for k, n := range []int64{plain, byPlace, byAny, joined} {
			sum[k] += n
		}
		all = append(fresh, all...) // the newest first
		v.turn()
	}
	once, err := v.frames(v.arrangeByPlace(all), map[int]int{})
	if err != nil {
		return err
	}
	percent := func(n int64) float64 { return 100 * float64(n) / float64(sum[0]) }
	fmt.Printf("\n%.1f MiB that are not zero: frames %.1f MiB, deltas %.1f (%.1f %%), any %.1f (%.1f %%), joined %.1f (%.1f %%), at once %.1f (%.1f %%)\n", float64(v.raw)/mib, float64(sum[0])/mib,
		float64(sum[1])/mib, percent(sum[1]), float64(sum[2])/mib, percent(sum[2]), float64(sum[3])/mib, percent(sum[3]), float64(once)/mib, percent(once))
	return nil
}

// atPlace returns the chunk that the day before had at one of a chunk's blocks and that it is like, or what that one refers to; -1: none.
func (v *volume) atPlace(id int) int {
	c := &v.chunks[id]
	best, most := -1, least-1
	for b := c.place; b*block.Size < uint64(c.off)+uint64(c.n) && b < uint64(len(v.at)); b++ {
		k := int(v.at[b]) - 1
		if k < 0 {
			continue
		}
		if v.chunks[k].base >= 0 {
			k = v.chunks[k].base
		}
		if n := v.chunks[k].sketch.Common(&c.sketch); n > most {
			best, most = k, n
		}
	}
	return best
}

func (v *volume) pairs(ids []int, of func(int) int) map[int]int {
	m := map[int]int{}
	for _, id := range ids {
		m[id] = of(id)
	}
	return m
}

func found(pairs map[int]int) (n int) {
	for _, b := range pairs {
		if b >= 0 {
			n++
		}
	}
	return n
}

// withDeltas returns what chunks take when those that have a base, and save enough by it, are deltas, and which these are.
func (v *volume) withDeltas(ids []int, base, share map[int]int) (stored int64, kept map[int]bool, err error) {
	kept = map[int]bool{}
	if found(base) == 0 {
		return v.plain, kept, nil
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	work := make(chan int)
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for id := range work {
				p, perr := v.read(id)
				dict, derr := v.read(base[id])
				n, zerr := 0, error(nil)
				if perr == nil && derr == nil {
					n, zerr = delta(p, dict)
				}
				mu.Lock()
				for _, e := range []error{perr, derr, zerr} {
					if e != nil {
						err = e
					}
				}
				n += entrySize + 8 // with the base's id
				if n*100 <= share[id]*keepPart {
					kept[id] = true
					stored += int64(n)
				}
				mu.Unlock()
			}
		})
	}
	for _, id := range ids {
		if base[id] >= 0 {
			work <- id
		}
	}
	close(work)
	wg.Wait()
	if err != nil {
		return 0, nil, err
	}
	var rest []int
	for _, id := range ids {
		if !kept[id] {
			rest = append(rest, id)
		}
	}
	n, err := v.frames(v.arrange(rest), map[int]int{})
	return stored + n, kept, err
}

// joined is what the same takes when deltas share frames, with all that these refer to as the dictionary.
func (v *volume) joined(ids []int, base map[int]int, kept map[int]bool) (stored int64, err error) {
	if len(kept) == 0 {
		return v.plain, nil
	}
	var rest []int
	var raw, dict []byte
	in := map[int]bool{}
	flush := func() error {
		if len(raw) == 0 {
			return nil
		}
		n, err := delta(raw, dict)
		stored += int64(n) + frameHead
		raw, dict, in = raw[:0], dict[:0], map[int]bool{}
		return err
	}
	for _, id := range ids {
		if !kept[id] {
			rest = append(rest, id)
			continue
		}
		p, err := v.read(id)
		if err != nil {
			return 0, err
		}
		if b := base[id]; !in[b] {
			q, err := v.read(b)
			if err != nil {
				return 0, err
			}
			dict, in[b] = append(dict, q...), true
		}
		raw = append(raw, p...)
		stored += entrySize + 8
		if len(raw)+len(dict) >= frameRaw {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	if err := flush(); err != nil {
		return 0, err
	}
	n, err := v.frames(v.arrange(rest), map[int]int{})
	return stored + n, err
}

// arrangeByPlace is the order of a pass over all days: place by place, of each the newest first.
func (v *volume) arrangeByPlace(ids []int) []int {
	const stretch = 2 << 20 / block.Size
	by := map[uint64][]int{}
	last := uint64(0)
	for _, id := range ids {
		s := v.chunks[id].place / stretch
		by[s] = append(by[s], id)
		last = max(last, s)
	}
	var all []int
	for s := uint64(0); s <= last; s++ {
		all = append(all, by[s]...)
	}
	return v.arrange(all)
}
