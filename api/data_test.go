package api

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control/transfer"
)

func TestPartsOf(t *testing.T) {
	many := strings.Repeat("0:1,", transfer.MaxRanges-1) + "0:1"
	for query, want := range map[string][]block.Range{
		"":                              nil,
		"snapshot=s":                    nil,
		"offset=5&length=16777216":      {{Off: 5, Len: 16 << 20}},
		"ranges=7:1":                    {{Off: 7, Len: 1}},
		"ranges=9:8388608,0:8388608":    {{Off: 9, Len: 8 << 20}, {Off: 0, Len: 8 << 20}},
		"ranges=18446744073709551615:1": {{Off: ^uint64(0), Len: 1}},
	} {
		got, err := partsOf(parsed(t, query))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", query, got, err)
		}
	}
	if got, err := partsOf(parsed(t, "ranges="+many)); err != nil || len(got) != transfer.MaxRanges {
		t.Errorf("%d ranges: %d, %v", transfer.MaxRanges, len(got), err)
	}
	for _, query := range []string{"offset=5", "length=5", "offset=-1&length=5", "offset=0&length=0", "offset=0&length=16777217", "ranges=", "ranges=5", "ranges=5:", "ranges=:5", "ranges=0:1,", "ranges=0:1,,1:1", "ranges=0:1:2", "ranges=0:-1",
		"ranges=0:0", "ranges=0:16777216,0:1", "ranges=0:1&offset=0", "ranges=0:1&length=5", "ranges=" + many + ",0:1", "ranges=0:18446744073709551615,0:2"} {
		if got, err := partsOf(parsed(t, query)); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%.60q: %v, %v", query, got, err)
		}
	}
}

func parsed(t *testing.T, query string) url.Values {
	t.Helper()
	v, err := url.ParseQuery(query)
	if err != nil {
		t.Fatal(err)
	}
	return v
}
