package control

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Index is what the index of chunks by their hash is able to find, and what is left to do for it.
type Index struct {
	blockstore.IndexInfo
	Whole bool // nothing is left to do
}

// Index returns how far the index is.
func (c *Control) Index() Index {
	i := c.engine.Index()
	return Index{i, i.Whole()}
}

// RebuildIndex throws the index away and begins a new one. It goes on in the background; until it is whole, some of what is written is stored a second time, and joined later.
func (c *Control) RebuildIndex() (Index, error) {
	if err := c.engine.RebuildIndex(); err != nil {
		return Index{}, fmt.Errorf("rebuild the index: %w", err)
	}
	return c.Index(), nil
}

// manyMissing is how many chunks the index must lack for that to be told as a problem: those of about 1 GiB. Fewer are put in within seconds.
const manyMissing = 1 << 16

// behind says what the index lacks, or nothing.
func (i Index) behind() string {
	if missing := i.Chunks - min(i.Chunks, i.Indexed); missing >= manyMissing {
		return fmt.Sprintf("the index has %d of %d chunks: until it is whole, some of what is written is stored a second time, and joined later; hv-storage-fabric store settle --wait waits for it", i.Indexed, i.Chunks)
	}
	return ""
}
