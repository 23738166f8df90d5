package backup

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Whatever a page says, one that is taken covers its region, and each offset has one extent.
func FuzzPage(f *testing.F) {
	const length = 4096
	f.Add(encodePage([]extent{wholeChunk(block.Hash{1}, 4000), {length: 96}}), 4000)
	f.Add(encodePage([]extent{{length: length}}), 1)
	f.Add(encodePage([]extent{{block.Hash{1}, 4000, 96, 4096}, {length: 96}}), 4000)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		extents, err := decodePage(b, length)
		if err != nil {
			return
		}
		g := newPage(extents)
		at = int(uint(at) % length)
		e, begin := g.at(at)
		if begin > at || at >= begin+int(e.length) {
			t.Errorf("the extent at %d begins at %d and has %d B", at, begin, e.length)
		}
		if x := e.slice(at-begin, 1); !e.isZero() {
			if b, err := x.bytes(make([]byte, e.of)); err != nil || len(b) != 1 {
				t.Errorf("the byte at %d: %d B, %v", at, len(b), err)
			}
		}
	})
}
