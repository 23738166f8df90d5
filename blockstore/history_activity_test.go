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

// TestHistoryActivityWeighsSamples: the first writes of a stretch are all looked at and of the others few, and what begins in the midst of a stretch counts for what it is all the same.
func TestHistoryActivityWeighsSamples(t *testing.T) {
	ctx, rng := context.Background(), rand.New(rand.NewPCG(9, 9))
	opts := testOptions(t, historyMem(), "store")
	opts.Now = func() time.Time { return time.Unix(1_800_000_000, 0) }
	s := openTest(t, opts)
	d := createTest(t, s, "a", 8<<20)
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour}); err != nil {
		t.Fatal(err)
	}
	const text, random = 2 * sampleAll, 16 * sampleAll
	for k := range text + random {
		p := bytes.Repeat([]byte("all work and no play "), block.Size/21+1)[:block.Size]
		for i := 0; k >= text && i < len(p); i++ {
			p[i] = byte(rng.Uint32())
		}
		if err := d.Write(ctx, []block.Write{{Off: uint64(k%1024) * block.Size, Data: p}}, false); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.HistoryActivity(ctx, "a", time.Hour)
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	a := all[0]
	want := float64(random) / (text + random)
	if a.RandomShare < want-0.06 || a.RandomShare > want+0.06 || a.Samples > 2*sampleAll+4 {
		t.Errorf("%+v: want a share of %.2f", a, want)
	}
	if a.Entropy < 7.2 {
		t.Errorf("entropy %.2f, mostly of random bytes", a.Entropy)
	}
}
