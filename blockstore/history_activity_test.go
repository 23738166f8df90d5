package blockstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// TestHistoryActivitySamplesSmallWrites: what writes of a single block hold is looked at, too. Text is not taken for random bytes, and random bytes are.
func TestHistoryActivitySamplesSmallWrites(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	ctx, rng := context.Background(), rand.New(rand.NewPCG(8, 8))
	for _, size := range []int{block.Size, 2 * block.Size, 16 * block.Size} {
		for _, random := range []bool{false, true} {
			s := openTest(t, testOptions(t, historyMem(), "store"))
			d := createTest(t, s, "a", 8<<20)
			must(s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}))
			const writes = 20
			for k := range writes {
				p := bytes.Repeat([]byte("all work and no play "), size/21+1)[:size]
				if random {
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
				}
				must(d.Write(ctx, []block.Write{{Off: uint64(k * size), Data: p}}, false))
			}
			all, err := s.HistoryActivity(ctx, "a", time.Hour)
			must(err)
			var sum Activity
			for _, a := range all {
				sum.Writes, sum.Samples, sum.Random = sum.Writes+a.Writes, sum.Samples+a.Samples, sum.Random+a.Random
			}
			want := uint64(0)
			if random {
				want = writes
			}
			if sum.Writes != writes || sum.Samples != writes || sum.Random != want {
				t.Errorf("%d writes of %d B, random %v: %+v", writes, size, random, sum)
			}
		}
	}
}
