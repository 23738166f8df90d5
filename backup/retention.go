package backup

import (
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

// Retention says which backups of a source to keep: the Last youngest, and the youngest of each of that many hours, days, weeks, months and years that have one. 0 asks for none.
type Retention struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int

	// Tags keep the backups with one of them.
	Tags []string
}

// Zero reports whether nothing is asked for.
func (k Retention) Zero() bool {
	return k.Last == 0 && k.Hourly == 0 && k.Daily == 0 && k.Weekly == 0 && k.Monthly == 0 && k.Yearly == 0 && len(k.Tags) == 0
}

// Kept is a backup and why it is kept; without a reason it is not.
type Kept struct {
	*repository.Manifest
	Reasons []string
}

// rule keeps the youngest of each of count periods, which name tells apart.
type rule struct {
	reason string
	count  int
	name   func(time.Time) string
}

func (k Retention) rules() []rule {
	format := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	return []rule{
		{"hourly", k.Hourly, format("2006-01-02T15Z0700")},
		{"daily", k.Daily, format(time.DateOnly)},
		{"weekly", k.Weekly, func(t time.Time) string { year, week := t.ISOWeek(); return fmt.Sprintf("%d-%d", year, week) }},
		{"monthly", k.Monthly, format("2006-01")},
		{"yearly", k.Yearly, format("2006")},
	}
}

// Apply judges backups, each source of each host by itself. all are sorted, the oldest first, and so is the result. Days begin at midnight of zone.
func (k Retention) Apply(all []*repository.Manifest, zone *time.Location) []Kept {
	out := make([]Kept, len(all))
	bySource := make(map[repository.Source][]*Kept)
	for i, m := range all {
		out[i].Manifest = m
		bySource[m.Source] = append(bySource[m.Source], &out[i])
	}
	for _, backups := range bySource {
		slices.Reverse(backups)
		k.judge(backups, zone)
	}
	return out
}

// judge gives reasons to the backups of one source, the youngest first.
func (k Retention) judge(backups []*Kept, zone *time.Location) {
	for i, b := range backups {
		if i < k.Last {
			b.Reasons = append(b.Reasons, "last")
		}
		for _, tag := range k.Tags {
			if slices.Contains(b.Tags, tag) {
				b.Reasons = append(b.Reasons, "tag "+tag)
			}
		}
	}
	for _, r := range k.rules() {
		last := ""
		for _, b := range backups {
			if r.count == 0 {
				break
			}
			if name := r.name(b.Time.In(zone)); name != last {
				last = name
				r.count--
				b.Reasons = append(b.Reasons, r.reason)
			}
		}
	}
}
