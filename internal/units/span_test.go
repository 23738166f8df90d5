package units

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestSpan(t *testing.T) {
	for text, want := range map[string]string{"90s": "90s", "60s": "1m", "1h30m": "90m", "24h": "1d", "7d": "1w", "10d": "10d", "2w": "2w", "1.5s": "1s"} {
		var s Span
		if err := s.Set(text); err != nil || s.String() != want {
			t.Errorf("%s: %v %v, want %s", text, s, err, want)
		}
	}
	for _, text := range []string{"", "d", "1", "0d", "-1h", "10ms", "4000000000w", "1x", "99999999999999999999d"} {
		if s, err := ParseSpan(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q is %v, %v", text, s, err)
		}
	}
}
