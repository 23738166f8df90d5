package backup

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// overwrite writes stretches of 4 KiB to so many bytes, each twice as long as rarely, until they are total bytes, and says where.
func overwrite(rng *rand.Rand, c content, total, most int) (content, []block.Range) {
	c = bytes.Clone(c)
	var changed []block.Range
	for done := 0; done < total; {
		n := 4096
		for n < most && rng.IntN(2) == 0 {
			n *= 2
		}
		off := rng.IntN((len(c)-n)/4096) * 4096
		for i := range n {
			c[off+i] = byte(rng.Uint32())
		}
		changed = append(changed, block.Range{Off: uint64(off), Len: uint64(n)})
		done += n
	}
	return c, changed
}

// heldBytes returns the bytes of all chunks that a backup has parts of, and how many of these it needs.
func heldBytes(t *testing.T, r *repository.Repository, m *repository.Manifest) (held, needed uint64) {
	t.Helper()
	seen := make(map[block.Hash]bool)
	err := walk(t.Context(), r.NewReader(0), m, func(n uint64, extents []extent) error {
		for _, e := range extents {
			if e.isZero() {
				continue
			}
			needed += uint64(e.length)
			if !seen[e.id] {
				seen[e.id] = true
				held += uint64(e.of)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return held, needed
}

func (p *place) packBytes() (n uint64) {
	p.t.Helper()
	for _, k := range p.open().Packs() {
		n += uint64(k.SizeBytes)
	}
	return n
}

// Whatever is overwritten day after day, and however few bytes of a chunk that leaves: what a repository keeps of chunks beside what the newest backup needs of them stays a part of it, with little read for that, and a copy has none of it.
func TestRemnants(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	for _, c := range []struct {
		days, permille, most int     // of the disk that is written a day, in stretches of up to most bytes
		dead, read           float64 // of what is needed, and for each byte that changed, at most
	}{
		{20, 10, 256 << 10, 0.12, 1.2},
		{20, 100, 256 << 10, 0.42, 1.2},
		{40, 50, 4096, 0.46, 1.2},
	} {
		t.Run(fmt.Sprintf("%d days of %d ‰ by %d", c.days, c.permille, c.most), func(t *testing.T) {
			t.Parallel()
			p, _ := newMemoryPlace(t)
			rng := rand.New(rand.NewPCG(7, uint64(c.permille)))
			now := content(noise(9, 3*RegionSize))
			m := now.whole(t, p.open())
			read, wrote := uint64(0), uint64(0)
			for range c.days {
				next, changed := overwrite(rng, now, len(now)/1000*c.permille, c.most)
				newer, err := next.since(t.Context(), p.open(), m, changed)
				if err != nil {
					t.Fatal(err)
				}
				all := NewChanges()
				for _, x := range changed {
					all.Add(x.Off, x.Len)
				}
				read, wrote = read+newer.ReadBytes, wrote+all.Bytes()
				p.forget(m)
				now, m = next, newer
			}
			held, needed := heldBytes(t, p.open(), m)
			dead, perByte := float64(held-needed)/float64(needed), float64(read)/float64(wrote)
			t.Logf("of %d B that are needed, %.1f %% are held besides; %.2f B read for each that changed", needed, 100*dead, perByte)
			if dead > c.dead || perByte > c.read {
				t.Errorf("want at most %.0f %%, and %.2f B", 100*c.dead, c.read)
			}
			p.prune(repository.PruneOptions{Alone: true, RepackBytes: 1 << 30})
			p.prune(repository.PruneOptions{Alone: true, RepackBytes: 1 << 30})
			sameContent(t, p.open(), m, now)
			sound(t, p.open(), 1)
			fresh, _ := newMemoryPlace(t)
			now.whole(t, fresh.open())
			copied, _ := newMemoryPlace(t)
			copyAll(t, p, copied)
			sameContent(t, copied.open(), manifests(t, copied.open())[0], now)
			t.Logf("packs of %d B, of a copy %d, of a first backup %d", p.packBytes(), copied.packBytes(), fresh.packBytes())
			if got, want := copied.packBytes(), fresh.packBytes(); got > want+want/50 {
				t.Errorf("a copy takes %d B, and a first backup %d", got, want)
			}
		})
	}
}
