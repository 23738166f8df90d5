package units

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestAges(t *testing.T) {
	const h, d = 3600, 86400
	for _, c := range []struct {
		ages   Ages
		window Span
		text   string
	}{
		{Ages{}, 0, ""},
		{Ages{Every: h}, h, "every write of 1h"},
		{Ages{Every: h, Flushes: d, Minutes: 7 * d, Hours: 30 * d}, 30 * d, "every write of 1h, flushes of 1d, a point each minute of 1w, a point each hour of 30d"},
		{Ages{Every: h, Hours: 7 * d}, 7 * d, "every write of 1h, a point each hour of 1w"},
	} {
		if got, err := c.ages.Window(); err != nil || got != c.window || c.ages.String() != c.text {
			t.Errorf("%+v: %v, %q, %v", c.ages, got, c.ages.String(), err)
		}
	}
	for _, bad := range []Ages{{Flushes: h}, {Hours: h}, {Every: h, Flushes: h}, {Every: d, Hours: h}, {Every: h, Flushes: 7 * d, Minutes: d}} {
		if _, err := bad.Window(); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
