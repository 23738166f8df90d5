package forecast

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// words are data that compresses, with a part that comes again.
func words(rng *rand.Rand, n int) []byte {
	p := make([]byte, 0, n+64)
	for len(p) < n {
		p = fmt.Appendf(p, "the answer to question %d is %x; ", rng.Uint32N(5000), rng.Uint64()>>40)
	}
	return p[:n]
}

// Of data whose parts are known, what is unique and how many chunks there are is exact while every chunk is kept.
func TestExactWhileAllIsKept(t *testing.T) {
	f, err := New([]cdc.Params{cdc.FixedSize(64 << 10), cdc.FixedSize(4 << 10)})
	if err != nil {
		t.Fatal(err)
	}
	data := words(rand.New(rand.NewPCG(1, 1)), 4<<20)
	for i := range 3 {
		if err := f.Add(data, uint64(i)*block.RegionSize); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Add(make([]byte, 1<<20), 5*block.RegionSize); err != nil { // zeroes do not count
		t.Fatal(err)
	}
	for i, p := range f.Predict() {
		size := []uint64{64 << 10, 4 << 10}[i]
		if p.NonZeroBytes != 12<<20 || p.UniqueBytes != 4<<20 || p.Chunks != 4<<20/size || p.Mentions != 12<<20/size || p.KeptOneIn != 1 || p.UniqueError != 0 {
			t.Errorf("%+v", p)
		}
		if p.StoredBytes >= p.UniqueBytes*9/10 || p.StoredBytes < p.UniqueBytes/10 || p.StoredError > 0.2 {
			t.Errorf("compression: %+v", p)
		}
	}
}

// With a small sample the truth lies within three times the error that is told, nearly always.
func TestErrorsThatAreToldHold(t *testing.T) {
	missed := 0
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 2))
		f, err := New([]cdc.Params{{Kind: cdc.CDC, Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10, TableVersion: cdc.TableVersion1}})
		if err != nil {
			t.Fatal(err)
		}
		exact, err := New([]cdc.Params{f.settings[0].cutter.Params()})
		if err != nil {
			t.Fatal(err)
		}
		f.settings[0].limit = 256
		var old [][]byte
		for i := range 24 {
			p := words(rng, 128<<10+int(rng.Uint32N(64<<10)))
			if len(old) > 0 && rng.IntN(3) == 0 {
				p = old[rng.IntN(len(old))]
			}
			old = append(old, p)
			for _, x := range []*Forecast{f, exact} {
				if err := x.Add(p, uint64(i)*block.RegionSize); err != nil {
					t.Fatal(err)
				}
			}
		}
		got, want := f.Predict()[0], exact.Predict()[0]
		if len(f.settings[0].kept) > 256 || got.KeptOneIn == 1 {
			t.Fatalf("%d chunks are kept, one in %d", len(f.settings[0].kept), got.KeptOneIn)
		}
		off := math.Abs(float64(got.UniqueBytes)-float64(want.UniqueBytes)) / float64(want.UniqueBytes)
		if off > got.UniqueError {
			missed++
		}
		if off > 3*got.UniqueError || got.UniqueError > 0.5 {
			t.Errorf("seed %d: %d B of %d B, off by %.3f, told %.3f", seed, got.UniqueBytes, want.UniqueBytes, off, got.UniqueError)
		}
	}
	if missed > 6 { // one in 20 is expected; seeds are fixed
		t.Errorf("%d of 20 are beyond the error that was told", missed)
	}
}

// Settings that cannot be are refused.
func TestRefuses(t *testing.T) {
	for _, cuts := range [][]cdc.Params{nil, make([]cdc.Params, MaxSettings+1), {cdc.FixedSize(5000)}} {
		if _, err := New(cuts); err == nil {
			t.Errorf("%v is accepted", cuts)
		}
	}
	if _, err := New(nil); !errors.Is(err, block.ErrInvalid) {
		t.Error(err)
	}
}
