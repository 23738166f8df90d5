package control

import (
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// A lost index is a problem that the status tells; a few chunks that are on their way into it are none.
func TestIndexBehind(t *testing.T) {
	for _, c := range []struct {
		info blockstore.IndexInfo
		tell bool
	}{
		{blockstore.IndexInfo{}, false},
		{blockstore.IndexInfo{Indexed: 10, Chunks: 200}, false},
		{blockstore.IndexInfo{Indexed: 10, Chunks: 1 << 20}, true},
		{blockstore.IndexInfo{Indexed: 1 << 20, Chunks: 1 << 20, Doubles: 5}, false},
	} {
		i := Index{c.info, c.info.Whole()}
		if got := i.behind(); strings.Contains(got, "store settle") != c.tell {
			t.Errorf("%+v: %q", c.info, got)
		}
	}
}
