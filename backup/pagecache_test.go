package backup

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Whatever a page says, one that is taken covers its region, and each offset has one extent.
func FuzzPage(f *testing.F) {
	const length = 4096
	f.Add(encodePage([]extent{{length: 4000, id: block.Hash{1}}, {length: 96}}), 4000)
	f.Add(encodePage([]extent{{length: length}}), 1)
	f.Fuzz(func(t *testing.T, b []byte, at int) {
		extents, err := decodePage(b, length)
		if err != nil {
			return
		}
		g := newPage(extents)
		at = int(uint(at) % length)
		if e, begin := g.at(at); begin > at || at >= begin+int(e.length) {
			t.Errorf("the extent at %d begins at %d and has %d B", at, begin, e.length)
		}
	})
}
