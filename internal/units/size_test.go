package units

import (
	"errors"
	"math"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestParseSize(t *testing.T) {
	good := map[string]Size{
		"0": 0, "512": 512, "512B": 512, "4KiB": 4096, "64MiB": 64 << 20, "20GiB": 20 << 30, "2TiB": 2 << 40, "15EiB": 15 << 60,
		"1.5GiB": 3 << 29, "0.5KiB": 512, "18446744073709551615": math.MaxUint64,
		"1G": 1 << 30, "1g": 1 << 30, "1gib": 1 << 30, "1tib": 1 << 40, "4k": 4096, "3M": 3 << 20, "2P": 2 << 50, "1E": 1 << 60, "1.5T": 3 << 39,
		"1GB": 1e9, "1gb": 1e9, "500kB": 5e5, "500KB": 5e5, "1.5MB": 15e5, "2TB": 2e12, "3PB": 3e15, "18EB": 18e18, "7b": 7,
	}
	for text, want := range good {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "+1", "1 GiB", "1.GiB", ".5GiB", "0.3KiB", "1.5", "16EiB", "16E", "19EB", "1Gi", "1GBB", "1X", "1XiB", "1i", "1ib", "G", "18446744073709551616", "1KiBKiB", "1.0000000001GiB", "GiB", "1e3"} {
		if got, err := ParseSize(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want an error", text, got, err)
		}
	}
}

func TestSizeTextIsExact(t *testing.T) {
	for _, s := range []Size{0, 1, 512, 1023, 1024, 1536, 64 << 20, 20 << 30, 1<<63 - 16<<20, math.MaxUint64} {
		got, err := ParseSize(s.String())
		if err != nil || got != s {
			t.Errorf("%d → %q → %d, %v", uint64(s), s, got, err)
		}
	}
}

func TestHuman(t *testing.T) {
	for s, want := range map[Size]string{0: "0 B", 1023: "1023 B", 1024: "1.00 KiB", 1<<20 - 1: "1.00 MiB", 20 << 30: "20.0 GiB", 1500 << 20: "1.46 GiB", 999 << 20: "999 MiB"} {
		if got := s.Human(); got != want {
			t.Errorf("Human(%d) = %q, want %q", uint64(s), got, want)
		}
	}
}
