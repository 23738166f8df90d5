package onset

import (
	"slices"
	"time"
)

// Stretch is what was written in one stretch of time. Stretches are of one length, in order; where nothing was written there need be none.
type Stretch struct {
	Start      time.Time
	Before     uint64  // number of the last record before it
	Bytes      uint64  // written
	Overwrites uint64  // of these, over what held data
	Entropy    float64 // of samples, bits a byte
	Random     float64 // share of the samples that look encrypted, 0 to 1
}

// hostile is how much data was replaced by what looks encrypted, bytes.
func (s *Stretch) hostile() float64 { return float64(s.Overwrites) * s.Random }

// Onset is a moment at which that began.
type Onset struct {
	At     time.Time `json:"at"`     // of the stretch; what was written before it is as it was
	Before uint64    `json:"before"` // number of the last record before it
	Usual  float64   `json:"usualBytesPerSecond"`
	Rate   float64   `json:"bytesPerSecond"` // of data replaced by what looks encrypted, from then on
	Random float64   `json:"randomShare"`    // of the samples, from then on
	Was    float64   `json:"randomShareBefore"`
	Bytes  uint64    `json:"bytes"` // so replaced until it ended, or until now
	Score  float64   `json:"score"` // how many times the usual, at most 1,000
}

const (
	ratio       = 8       // times what was usual is a rise
	leastRandom = 0.5     // share of what is written in a rise
	leastMiB    = 1       // a second; below that nothing is told
	sustain     = 4       // stretches that are looked at together
	leastPast   = 12      // stretches, before which nothing is usual yet
	usualAt     = 0.95    // quantile of the past that counts as usual
	bestOf      = 1000    // highest score
	mebibyte    = 1 << 20 // bytes
)

// Find returns the onsets among stretches of a length, the most striking first, at most ten. A rise is told when, over four stretches, data is replaced by what looks encrypted eight times faster than in 95 of 100 stretches before, and at a MiB a second
// or more. Within one rise only its beginning counts; the first twelve stretches are not judged.
func Find(stretches []Stretch, length time.Duration) (found []Onset) {
	dense := fill(stretches, length)
	var past []float64 // hostile rates of stretches before, sorted
	seconds := length.Seconds()
	for i := 0; i < len(dense); {
		usual, end, rate := quantile(past), i, 0.0
		if len(past) >= leastPast {
			rate, end = rise(dense, i, seconds, max(usual*ratio, leastMiB*mebibyte))
		}
		if end == i {
			past = insert(past, dense[i].hostile()/seconds)
			i++
			continue
		}
		if o := describe(dense, i, end, usual, rate); o.Random >= leastRandom {
			found = append(found, o)
		} else {
			for ; i < end; i++ { // something else
				past = insert(past, dense[i].hostile()/seconds)
			}
		}
		i = end
	}
	slices.SortStableFunc(found, func(a, b Onset) int {
		switch {
		case a.Score != b.Score && (a.Score > b.Score):
			return -1
		case a.Score != b.Score:
			return 1
		}
		return a.At.Compare(b.At)
	})
	return found[:min(len(found), 10)]
}

// fill adds the stretches in which nothing was written, for at most a hundred thousand in all.
func fill(stretches []Stretch, length time.Duration) []Stretch {
	var dense []Stretch
	for _, s := range stretches {
		if last := len(dense) - 1; last >= 0 {
			for at := dense[last].Start.Add(length); at.Before(s.Start) && len(dense) < 100_000; at = at.Add(length) {
				dense = append(dense, Stretch{Start: at, Before: s.Before})
			}
		}
		dense = append(dense, s)
	}
	return dense
}

// rise returns where a rise above a rate that begins at i ends, i if none does, and its rate, bytes a second.
func rise(all []Stretch, i int, seconds, above float64) (rate float64, end int) {
	if all[i].hostile()/seconds < above {
		return 0, i
	}
	window := func(at int) float64 {
		sum, n := 0.0, 0
		for ; n < sustain && at+n < len(all); n++ {
			sum += all[at+n].hostile()
		}
		return sum / (float64(n) * seconds)
	}
	if window(i) < above {
		return 0, i
	}
	for end = i; end < len(all) && window(end) >= above; end++ {
	}
	sum := 0.0
	for _, s := range all[i:end] {
		sum += s.hostile()
	}
	return sum / (float64(end-i) * seconds), end
}

func describe(all []Stretch, i, end int, usual, rate float64) Onset {
	o := Onset{At: all[i].Start, Before: all[i].Before, Usual: usual, Rate: rate, Was: share(all[:i]), Random: share(all[i:end])}
	for _, s := range all[i:end] {
		o.Bytes += uint64(s.hostile())
	}
	o.Score = min(bestOf, rate/max(usual, mebibyte/16))
	return o
}

// share is how much of what was written looks encrypted.
func share(all []Stretch) float64 {
	bytes, random := 0.0, 0.0
	for _, s := range all {
		bytes += float64(s.Bytes)
		random += float64(s.Bytes) * s.Random
	}
	if bytes == 0 {
		return 0
	}
	return random / bytes
}

func quantile(sorted []float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[int(usualAt*float64(len(sorted)-1))]
}

func insert(sorted []float64, x float64) []float64 {
	i, _ := slices.BinarySearch(sorted, x)
	return slices.Insert(sorted, i, x)
}
