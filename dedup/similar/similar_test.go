package similar

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

func randomBytes(rng *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	return p
}

// Chunks with a few changed places, or with an insertion, are found; chunks of other content are not.
func TestFind(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	const n = 300
	var table Table
	chunks := make([][]byte, n)
	for i := range chunks {
		chunks[i] = randomBytes(rng, 8<<10+rng.IntN(24<<10))
		s := Of(chunks[i])
		if k, ok := table.Find(&s, i-1); ok {
			t.Fatalf("chunk %d of random bytes is taken for like %d", i, k)
		}
		table.Add(&s)
	}
	changes := map[string]func(p []byte) []byte{
		"the same": func(p []byte) []byte { return p },
		"one byte": func(p []byte) []byte { p[rng.IntN(len(p))] ^= 1; return p },
		"a run of 200": func(p []byte) []byte {
			copy(p[rng.IntN(len(p)-200):], randomBytes(rng, 200))
			return p
		},
		"an insertion": func(p []byte) []byte {
			at := rng.IntN(len(p))
			return append(p[:at:at], append([]byte("some words"), p[at:]...)...)
		},
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			found, hinted := 0, 0
			for i := range chunks {
				s := Of(change(append([]byte(nil), chunks[i]...)))
				if k, ok := table.Find(&s, -1); ok && k == i {
					found++
				} else if ok {
					t.Errorf("a change of chunk %d is taken for like %d", i, k)
				}
				if k, ok := table.Find(&s, i); ok && k == i {
					hinted++
				}
			}
			if found < n*9/10 || hinted < n*95/100 {
				t.Errorf("found %d of %d, %d with a hint", found, n, hinted)
			}
		})
	}
}

// The share of common features estimates the share of common content.
func TestCommonEstimatesResemblance(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	for _, share := range []float64{0, 0.5, 0.9} {
		sum := 0
		const n = 200
		for range n {
			x := randomBytes(rng, 16<<10)
			y := append([]byte(nil), x[:int(share*float64(len(x)))]...)
			y = append(y, randomBytes(rng, len(x)-len(y))...)
			sx, sy := Of(x), Of(y)
			sum += sx.Common(&sy)
		}
		got := float64(sum) / n / features
		want := share / (2 - share) // Jaccard of two sets that have this share of each in common
		if share == 0 && got > 0.01 || share > 0 && (got < want-0.12 || got > want+0.12) {
			t.Errorf("share %.1f: %.2f of the features in common, want about %.2f", share, got, want)
		}
	}
}

func TestNothingSampledResemblesNothing(t *testing.T) {
	var table Table
	a, b := Of(nil), Of([]byte{1, 2, 3})
	table.Add(&a)
	if _, ok := table.Find(&b, 0); ok || a.Common(&b) != 0 || a.Common(&a) != 0 {
		t.Error("chunks without a sample are taken for alike")
	}
}

func BenchmarkOf(b *testing.B) {
	rng := rand.New(rand.NewPCG(3, 3))
	for _, n := range []int{4 << 10, 16 << 10, 64 << 10} {
		p := randomBytes(rng, n)
		b.Run(fmt.Sprintf("%dKiB", n>>10), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				Of(p)
			}
		})
	}
}
