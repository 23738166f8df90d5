package units

import (
	"fmt"
	"math"
	"strconv"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Span is a time in whole seconds, which people write as 90s, 12h, 1h30m, 7d or 2w. It is a flag's value, too.
type Span uint64

// spanUnits are those that Go's durations lack.
var spanUnits = map[byte]time.Duration{'d': 24 * time.Hour, 'w': 7 * 24 * time.Hour}

// ParseSpan reads a span of a second or more. The error wraps block.ErrInvalid.
func ParseSpan(text string) (Span, error) {
	span, err := time.ParseDuration(text)
	if text != "" && spanUnits[text[len(text)-1]] != 0 {
		unit := spanUnits[text[len(text)-1]]
		var n uint64
		if n, err = strconv.ParseUint(text[:len(text)-1], 10, 32); err == nil {
			if n > uint64(math.MaxInt64/unit) {
				return 0, fmt.Errorf("%q is too long: %w", text, block.ErrInvalid)
			}
			span = time.Duration(n) * unit
		}
	}
	if err != nil || span < time.Second {
		return 0, fmt.Errorf("%q: want a time such as 90d or 12h: %w", text, block.ErrInvalid)
	}
	return Span(span / time.Second), nil
}

// String is the span in the largest unit that it is a multiple of; "" of none.
func (s Span) String() string {
	if s == 0 {
		return ""
	}
	for _, u := range []struct {
		seconds Span
		name    string
	}{{7 * 86400, "w"}, {86400, "d"}, {3600, "h"}, {60, "m"}} {
		if s%u.seconds == 0 {
			return fmt.Sprint(uint64(s/u.seconds), u.name)
		}
	}
	return fmt.Sprint(uint64(s), "s")
}

// Set implements pflag.Value.
func (s *Span) Set(text string) (err error) {
	*s, err = ParseSpan(text)
	return err
}

// Type implements pflag.Value.
func (*Span) Type() string { return "time" }
