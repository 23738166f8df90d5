package retention

import (
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Rules keep the Last youngest, and the youngest of each of that many hours, days, weeks, months and years that have one. 0 asks for none.
type Rules struct {
	Last    int `json:"last,omitempty"`
	Hourly  int `json:"hourly,omitempty"`
	Daily   int `json:"daily,omitempty"`
	Weekly  int `json:"weekly,omitempty"`
	Monthly int `json:"monthly,omitempty"`
	Yearly  int `json:"yearly,omitempty"`
}

// Zero reports whether nothing is asked for.
func (r Rules) Zero() bool { return r == Rules{} }

// String is what the rules keep, for people.
func (r Rules) String() string {
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{r.Last, "last"}, {r.Hourly, "hourly"}, {r.Daily, "daily"}, {r.Weekly, "weekly"}, {r.Monthly, "monthly"}, {r.Yearly, "yearly"}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprint(p.n, " ", p.what))
		}
	}
	if len(parts) == 0 {
		return "all"
	}
	return strings.Join(parts, ", ")
}

// maxCount bounds what one rule keeps.
const maxCount = 1_000_000

// Validate reports the first count that is out of bounds.
func (r Rules) Validate() error {
	for _, n := range []int{r.Last, r.Hourly, r.Daily, r.Weekly, r.Monthly, r.Yearly} {
		if n < 0 || n > maxCount {
			return fmt.Errorf("keep %d: want 0 to %d: %w", n, maxCount, block.ErrInvalid)
		}
	}
	return nil
}

// period keeps the youngest of each of count periods, which name tells apart.
type period struct {
	reason string
	count  int
	name   func(time.Time) string
}

func (r Rules) periods() []period {
	format := func(layout string) func(time.Time) string {
		return func(t time.Time) string { return t.Format(layout) }
	}
	return []period{
		{"hourly", r.Hourly, format("2006-01-02T15Z0700")},
		{"daily", r.Daily, format(time.DateOnly)},
		{"weekly", r.Weekly, func(t time.Time) string { year, week := t.ISOWeek(); return fmt.Sprintf("%d-%d", year, week) }},
		{"monthly", r.Monthly, format("2006-01")},
		{"yearly", r.Yearly, format("2006")},
	}
}

// Reasons says of each moment, which are sorted, the youngest first, why it is kept: "last", "hourly" and so on. One without a reason is not. Days begin at midnight of zone, weeks on Monday (ISO 8601).
func (r Rules) Reasons(moments []time.Time, zone *time.Location) [][]string {
	reasons := make([][]string, len(moments))
	for i := range moments {
		if i < r.Last {
			reasons[i] = append(reasons[i], "last")
		}
	}
	for _, p := range r.periods() {
		last := ""
		for i, at := range moments {
			if p.count == 0 {
				break
			}
			if name := p.name(at.In(zone)); name != last {
				last = name
				p.count--
				reasons[i] = append(reasons[i], p.reason)
			}
		}
	}
	return reasons
}
