package backup

import (
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

// Retention says which backups of a source to keep: the Last youngest, and the youngest of each of that many hours, days, weeks, months and years that have one. 0 asks for none.
type Retention struct {
	Last, Hourly, Daily, Weekly, Monthly, Yearly int

	// Tags keep the backups with one of them.
	Tags []string
}

// Zero reports whether nothing is asked for.
func (k Retention) Zero() bool { return k.noCounts() && len(k.Tags) == 0 }

// OnlyTags reports whether tags are all that keeps a backup.
func (k Retention) OnlyTags() bool { return k.noCounts() && len(k.Tags) > 0 }

func (k Retention) noCounts() bool {
	return k.Last == 0 && k.Hourly == 0 && k.Daily == 0 && k.Weekly == 0 && k.Monthly == 0 && k.Yearly == 0
}

// Kept is a backup and why it is kept; without a reason it is not.
type Kept struct {
	*repository.Manifest
	Reasons []string
}

// clockSlack is how far a backup's time may be ahead of this clock, as those of hosts differ.
const clockSlack = 10 * time.Minute

// Apply judges backups, each source of each host by itself. all are sorted, the oldest first, and so is the result. Days begin at midnight of zone. One of the future, which a wrong clock made or a writer claims, is kept and counts for nothing: it
// shall not take the place of another.
func (k Retention) Apply(all []*repository.Manifest, now time.Time, zone *time.Location) []Kept {
	out := make([]Kept, len(all))
	bySource := make(map[repository.Source][]*Kept)
	for i, m := range all {
		out[i].Manifest = m
		if m.Time.After(now.Add(clockSlack)) {
			out[i].Reasons = []string{"its time is in the future"}
			continue
		}
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
	moments := make([]time.Time, 0, len(backups))
	for _, b := range backups {
		moments = append(moments, b.Time)
	}
	rules := retention.Rules{Last: k.Last, Hourly: k.Hourly, Daily: k.Daily, Weekly: k.Weekly, Monthly: k.Monthly, Yearly: k.Yearly}
	for i, reasons := range rules.Reasons(moments, zone) {
		b := backups[i]
		b.Reasons = reasons
		for _, tag := range k.Tags {
			if slices.Contains(b.Tags, tag) {
				b.Reasons = append(b.Reasons, "tag "+tag)
			}
		}
	}
}
