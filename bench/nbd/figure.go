package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// section is what one job came to.
type section struct {
	Name        string      `json:"name"`
	Title       string      `json:"title"`
	Metric      string      `json:"metric,omitempty"`
	State       string      `json:"state,omitempty"`
	Placed      string      `json:"placed,omitempty"`
	Accounting  string      `json:"accounting,omitempty"`
	TookSeconds float64     `json:"tookSeconds"`
	Runs        []runResult `json:"runs,omitempty"`
	Figures     []figure    `json:"figures,omitempty"`
	Table       [][]string  `json:"table,omitempty"` // of a job apart, its first row the heads
	Notes       []string    `json:"notes,omitempty"`

	metric metric
}

// figure is one comparison and its verdict.
type figure struct {
	What    string    `json:"what"`
	Ratios  []float64 `json:"ratios"` // one for each pair
	Median  float64   `json:"median"`
	Least   float64   `json:"least"`
	Most    float64   `json:"most"`
	Aim     string    `json:"aim,omitempty"`
	Verdict string    `json:"verdict"` // reached, MISSED, VOID, or no aim
	Void    []string  `json:"void,omitempty"`
}

// spread is the middle and the ends of some values.
type spread struct{ median, least, most float64 }

// spreadOf returns the median (of an even number, the mean of the middle two), the least and the most.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return spread{median: (sorted[(n-1)/2] + sorted[n/2]) / 2, least: sorted[0], most: sorted[n-1]}
}

// judge compares hvd with each peer, pair by pair, and holds it to the aims. A peer without an aim is compared all the same.
func (s *section) judge(aims []aim, data dataCheck) {
	for _, peer := range s.peers() {
		own := slices.DeleteFunc(slices.Clone(aims), func(a aim) bool { return a.peer != peer })
		if len(own) == 0 {
			s.Figures = append(s.Figures, s.figure(aim{peer: peer, metric: s.metric}, data))
		}
		for _, a := range own {
			s.Figures = append(s.Figures, s.figure(a, data))
		}
	}
}

func (s *section) figure(a aim, data dataCheck) figure {
	f := figure{What: fmt.Sprintf("hvd / %s, %s", a.peer, a.metric.unit())}
	for _, ours := range s.Runs {
		if ours.Server != "hvd" || ours.Pair == 0 {
			continue
		}
		for _, theirs := range s.Runs {
			if theirs.Server == a.peer && theirs.Pair == ours.Pair {
				f.Ratios = append(f.Ratios, a.metric.of(ours)/a.metric.of(theirs))
				f.Void = append(f.Void, theirs.Void...)
			}
		}
		f.Void = append(f.Void, ours.Void...)
	}
	if data.UniqueShare < leastUnique {
		f.Void = append(f.Void, fmt.Sprintf("only %.1f %% of fio's blocks have no copy", 100*data.UniqueShare))
	}
	f.judge(a)
	return f
}

// judge sets the verdict of a figure that has its ratios.
func (f *figure) judge(a aim) {
	sp := spreadOf(f.Ratios)
	f.Median, f.Least, f.Most = sp.median, sp.least, sp.most
	f.Verdict = "no aim"
	if a.ratio != 0 {
		f.Aim = a.String()
		f.Verdict = "MISSED"
		if a.met(f.Median) {
			f.Verdict = "reached"
		}
	}
	if len(f.Void) > 0 || len(f.Ratios) == 0 {
		f.Verdict = "VOID"
	}
}

// peers in the order in which they ran.
func (s *section) peers() []string {
	var all []string
	for _, r := range s.Runs {
		if r.Server != "hvd" && !slices.Contains(all, r.Server) {
			all = append(all, r.Server)
		}
	}
	return all
}

// progress prints the figures of a section.
func (s section) progress(out io.Writer) {
	for _, f := range s.Figures {
		fmt.Fprintf(out, "  %s: %.2f (%.2f to %.2f), aim %s: %s %s\n", f.What, f.Median, f.Least, f.Most, f.Aim, f.Verdict, strings.Join(f.Void, "; "))
	}
}
