package units

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestParseRate(t *testing.T) {
	good := map[string]Rate{
		"0": 0, "5000": 5000, "5000/s": 5000, "100MB/s": 100e6, "100MB": 100e6, "1kB/s": 1000, "2GB/s": 2e9, "1TB/s": 1e12, "64MiB/s": 64 << 20, "64MiB": 64 << 20,
		"1.5GiB/s": 3 << 29, "512B/s": 512, "1M": 1 << 20, "1.5MB/s": 15e5,
	}
	for text, want := range good {
		got, err := ParseRate(text)
		if err != nil || got != want {
			t.Errorf("ParseRate(%q) = %d, %v; want %d", text, got, err, want)
		}
		if again, err := ParseRate(got.String()); err != nil || again != got {
			t.Errorf("%d → %q → %d, %v", uint64(got), got, again, err)
		}
	}
	for _, text := range []string{"", "x", "-1", "/s", "MB/s", "1 MB/s", "1mb/s", "1MB/min", "1.0000005MB/s", "1KiBMB", "512BMB", "99999999999GB/s", "1MB/s/s"} {
		if got, err := ParseRate(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("ParseRate(%q) = %d, %v; want an error", text, got, err)
		}
	}
}
