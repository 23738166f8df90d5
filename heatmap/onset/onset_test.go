package onset

import (
	"math/rand/v2"
	"testing"
	"time"
)

const length = 10 * time.Second

// quiet makes an hour of a guest that writes some, a tenth of it compressed, and now and then much.
func quiet(rng *rand.Rand) (all []Stretch) {
	start := time.Unix(1_800_000_000, 0)
	for i := range 360 {
		s := Stretch{Start: start.Add(time.Duration(i) * length), Before: uint64(1000 * i)}
		if rng.IntN(3) > 0 {
			s.Bytes = uint64(rng.IntN(20 << 20))
			s.Overwrites, s.Random, s.Entropy = s.Bytes/2, 0.1*rng.Float64(), 5
		}
		if i%60 == 30 { // an update: new files, compressed, over nothing
			s.Bytes, s.Overwrites, s.Random, s.Entropy = 400<<20, 10<<20, 0.9, 7.9
		}
		if s.Bytes > 0 {
			all = append(all, s)
		}
	}
	return all
}

func TestFind(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 3))
		all := quiet(rng)
		if got := Find(all, length); len(got) != 0 {
			t.Fatalf("seed %d: an hour of ordinary work is an onset: %+v", seed, got)
		}
		at := 100 + rng.IntN(150)
		begin := all[at].Start
		for i := at; i < len(all) && i < at+30; i++ {
			all[i].Bytes += 300 << 20
			all[i].Overwrites += 300 << 20
			all[i].Random, all[i].Entropy = 0.95, 7.95
		}
		got := Find(all, length)
		replaced := uint64(0) // a stretch of nothing may come between
		for _, o := range got {
			replaced += o.Bytes
		}
		if len(got) == 0 || got[0].Before != all[at].Before || !got[0].At.Equal(begin) || replaced < 1<<30 {
			t.Fatalf("seed %d: it began %v, behind record %d; found %+v", seed, begin, all[at].Before, got)
		}
	}
}

// What always writes so is no alarm.
func TestUsualIsNoAlarm(t *testing.T) {
	var all []Stretch
	for i := range 360 {
		all = append(all, Stretch{Start: time.Unix(int64(10*i), 0), Before: uint64(i), Bytes: 100 << 20, Overwrites: 100 << 20, Random: 1})
	}
	if got := Find(all, length); len(got) != 0 {
		t.Errorf("found %+v", got)
	}
	if got := Find(nil, length); len(got) != 0 {
		t.Errorf("found %+v in nothing", got)
	}
}
