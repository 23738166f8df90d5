package main

import (
	"math"
	"slices"
	"testing"
)

func TestSpread(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   spread
	}{
		{nil, spread{}},
		{[]float64{3}, spread{3, 3, 3}},
		{[]float64{9, 1}, spread{5, 1, 9}},
		{[]float64{5, 1, 3}, spread{3, 1, 5}},
		{[]float64{4, 8, 1, 2}, spread{3, 1, 8}},
	} {
		before := slices.Clone(c.values)
		if got := spreadOf(c.values); got != c.want {
			t.Errorf("spread of %v: %v, want %v", c.values, got, c.want)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("spread changed %v to %v", before, c.values)
		}
	}
}

// runsOf makes two servers' runs, of which pair 0 is the warm-up.
func runsOf(ours, theirs []float64) (all []runResult) {
	for pair := range ours {
		all = append(all,
			runResult{Server: "qemu-nbd", Pair: pair, fioResult: fioResult{IOPS: theirs[pair], P50: theirs[pair]}},
			runResult{Server: "hvd", Pair: pair, fioResult: fioResult{IOPS: ours[pair], P50: ours[pair]}})
	}
	return all
}

func TestFiguresAreOfPairs(t *testing.T) {
	good := dataCheck{UniqueShare: 1}
	for name, c := range map[string]struct {
		ours, theirs []float64
		aim          aim
		change       func(*section, *dataCheck)
		median       float64
		verdict      string
	}{
		// The ratio of the medians would be 1.5.
		"median of ratios, not ratio of medians": {[]float64{900, 10, 30, 40}, []float64{1, 10, 10, 20}, aim{"qemu-nbd", iops, 1.9, false}, nil, 2, "reached"},
		"missed":                                 {[]float64{9, 10}, []float64{1, 10}, aim{"qemu-nbd", iops, 1.01, false}, nil, 1, "MISSED"},
		"latency is better when low":             {[]float64{9, 6}, []float64{1, 10}, aim{"qemu-nbd", median, 0.7, true}, nil, 0.6, "reached"},
		"latency missed":                         {[]float64{9, 8}, []float64{1, 10}, aim{"qemu-nbd", median, 0.7, true}, nil, 0.8, "MISSED"},
		"no aim":                                 {[]float64{9, 20}, []float64{1, 10}, aim{"qemu-nbd", iops, 0, false}, nil, 2, "no aim"},
		"only a warm-up":                         {[]float64{9}, []float64{1}, aim{"qemu-nbd", iops, 1, false}, nil, 0, "VOID"},
		"a run that is void": {[]float64{9, 20}, []float64{1, 10}, aim{"qemu-nbd", iops, 1, false}, func(s *section, _ *dataCheck) {
			s.Runs[3].Void = []string{"not destaged"}
		}, 2, "VOID"},
		"a void warm-up does not matter": {[]float64{9, 20}, []float64{1, 10}, aim{"qemu-nbd", iops, 1, false}, func(s *section, _ *dataCheck) {
			s.Runs[1].Void = []string{"not destaged"}
		}, 2, "reached"},
		"copies in the data": {[]float64{9, 20}, []float64{1, 10}, aim{"qemu-nbd", iops, 1, false}, func(_ *section, d *dataCheck) { d.UniqueShare = 0.94 }, 2, "VOID"},
	} {
		s, data := section{Runs: runsOf(c.ours, c.theirs)}, good
		if c.change != nil {
			c.change(&s, &data)
		}
		s.judge([]aim{c.aim}, data)
		if len(s.Figures) != 1 {
			t.Fatalf("%s: %d figures", name, len(s.Figures))
		}
		if f := s.Figures[0]; math.Abs(f.Median-c.median) > 1e-9 || f.Verdict != c.verdict {
			t.Errorf("%s: median %v, %s; want %v, %s", name, f.Median, f.Verdict, c.median, c.verdict)
		}
	}
}

// TestOneJobWithTwoAimsForAPeer is the sequential write: acknowledged, and with destage.
func TestOneJobWithTwoAimsForAPeer(t *testing.T) {
	s := section{Runs: []runResult{
		{Server: "qemu-nbd", Pair: 1, fioResult: fioResult{BytesPerSecond: 100e6}},
		{Server: "hvd", Pair: 1, fioResult: fioResult{BytesPerSecond: 200e6}, SettledBytesPerSecond: 50e6},
		{Server: "nbdkit", Pair: 1, fioResult: fioResult{BytesPerSecond: 400e6}},
	}, metric: rate}
	s.judge([]aim{{"qemu-nbd", rate, 1.5, false}, {"qemu-nbd", settledRate, 0.6, false}}, dataCheck{UniqueShare: 1})
	var got []float64
	for _, f := range s.Figures {
		got = append(got, f.Median)
	}
	if want := []float64{2, 0.5, 0.5}; !slices.Equal(got, want) {
		t.Errorf("figures %v, want %v", got, want)
	}
	if s.Figures[0].Verdict != "reached" || s.Figures[1].Verdict != "MISSED" || s.Figures[2].Verdict != "no aim" {
		t.Errorf("verdicts of %+v", s.Figures)
	}
}
