package backup

import (
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

func TestRetention(t *testing.T) {
	at := func(text, source string, tags ...string) *repository.Manifest {
		when, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return &repository.Manifest{Name: text + " " + source, Time: when, Source: repository.Source{Kind: "volume", Name: source}, Tags: tags}
	}
	all := []*repository.Manifest{
		at("2024-12-29 10:00", "a"), at("2024-12-30 10:00", "a"), // the week of the 30th is the first of 2025
		at("2025-01-02 10:00", "a", "release"), at("2025-01-02 23:30", "b"), at("2025-02-01 00:10", "a"), at("2025-02-01 00:50", "a"), at("2025-02-01 01:10", "a"), at("2025-02-01 23:30", "a"),
	}
	berlin := time.FixedZone("CET", 3600)
	for what, c := range map[string]struct {
		keep Retention
		zone *time.Location
		want []int
	}{
		"nothing":                        {Retention{}, time.UTC, nil},
		"the last two of each source":    {Retention{Last: 2}, time.UTC, []int{3, 6, 7}},
		"more than there are":            {Retention{Last: 1 << 30}, time.UTC, []int{0, 1, 2, 3, 4, 5, 6, 7}},
		"hours":                          {Retention{Hourly: 3}, time.UTC, []int{3, 5, 6, 7}},
		"days":                           {Retention{Daily: 2}, time.UTC, []int{2, 3, 7}},
		"days elsewhere":                 {Retention{Daily: 2}, berlin, []int{3, 6, 7}},
		"weeks over the turn of a year":  {Retention{Weekly: 3}, time.UTC, []int{0, 2, 3, 7}},
		"months":                         {Retention{Monthly: 2}, time.UTC, []int{2, 3, 7}},
		"years":                          {Retention{Yearly: 2}, time.UTC, []int{1, 3, 7}},
		"tags":                           {Retention{Tags: []string{"release", "x"}}, time.UTC, []int{2}},
		"the last and those with a tag":  {Retention{Last: 1, Tags: []string{"release"}}, time.UTC, []int{2, 3, 7}},
		"days and months share a backup": {Retention{Daily: 1, Monthly: 1}, time.UTC, []int{3, 7}},
	} {
		var got []int
		for i, k := range c.keep.Apply(all, all[7].Time.Add(-clockSlack), c.zone) {
			if k.Manifest != all[i] {
				t.Fatalf("%s: the order has changed", what)
			}
			if len(k.Reasons) > 0 {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", what, got, c.want)
		}
	}
	early := all[6].Time // by a clock that shows this, the last one is of the future: it stays, and is not the youngest
	for i, k := range (Retention{Last: 1}).Apply(all, early, time.UTC) {
		if kept := len(k.Reasons) > 0; kept != (i == 3 || i == 6 || i == 7) {
			t.Errorf("with a backup of the future, %s is kept: %v", k.Name, k.Reasons)
		}
	}
}
