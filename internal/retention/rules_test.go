package retention

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestReasons(t *testing.T) {
	var moments []time.Time // one an hour for 400 days, the youngest first
	newest := time.Date(2026, 11, 29, 6, 15, 0, 0, time.UTC)
	for h := range 400 * 24 {
		moments = append(moments, newest.Add(-time.Duration(h)*time.Hour))
	}
	for _, c := range []struct {
		rules Rules
		want  string // of the first moments that are kept, with their reasons
	}{
		{Rules{}, "[]"},
		{Rules{Last: 2}, "[0 [last] 1 [last]]"},
		{Rules{Hourly: 2, Daily: 2}, "[0 [hourly daily] 1 [hourly] 7 [daily]]"}, // 23:15 of the day before
		{Rules{Weekly: 2}, "[0 [weekly] 151 [weekly]]"},                         // Sunday the 22nd
		{Rules{Monthly: 2}, "[0 [monthly] 679 [monthly]]"},                      // October the 31st
		{Rules{Yearly: 3}, "[0 [yearly] 7975 [yearly]]"},                        // there is none of a third year
	} {
		var got []any
		for i, why := range c.rules.Reasons(moments, time.UTC) {
			if len(why) > 0 {
				got = append(got, i, why)
			}
		}
		if fmt.Sprint(got) != c.want {
			t.Errorf("%+v: %v, want %s", c.rules, got, c.want)
		}
	}
	if got := (Rules{Daily: 2}).Reasons(moments, time.FixedZone("", 2*3600)); !slices.Equal(got[9], []string{"daily"}) {
		t.Errorf("days begin elsewhere: %v", got[:12])
	}
	if err := (Rules{Weekly: -1}).Validate(); !errors.Is(err, block.ErrInvalid) || (Rules{Last: maxCount}).Validate() != nil {
		t.Error(err)
	}
}
