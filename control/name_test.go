package control

import (
	"errors"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func TestCheckName(t *testing.T) {
	for _, name := range []string{"a", "web1", "_x", "a.b-c_D9", strings.Repeat("n", 128)} {
		if err := CheckName("volume", name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"", ".", "..", ".hidden", "-rf", "a/b", "../a", "a@b", "a b", "a\nb", "a\x00", "ä", strings.Repeat("n", 129), strings.Repeat("n", 300), "a\xff"} {
		if err := CheckName("volume", name); !errors.Is(err, block.ErrInvalid) || strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestCheckSize(t *testing.T) {
	for _, size := range []uint64{512, 1024, 20 << 30, block.MaxVolumeSize} {
		if err := checkSize(size); err != nil {
			t.Errorf("%d: %v", size, err)
		}
	}
	for _, size := range []uint64{0, 1, 511, 513, 1000, block.MaxVolumeSize + 512, 1 << 63, 1<<64 - 1, 1<<64 - 512} {
		if err := checkSize(size); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%d: %v", size, err)
		}
	}
}

func TestParseChunking(t *testing.T) {
	for text, want := range map[string]uint32{"": 0, "cdc": 0, "fixed:4KiB": 4 << 10, "fixed:64KiB": 64 << 10, "fixed:1MiB": 1 << 20, "fixed:65536": 64 << 10} {
		if got, err := ParseChunking(text); err != nil || got != (blockstore.Chunking{FixedBytes: want}) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]uint32{"cdc:4KiB": 4 << 10, "cdc:16KiB": 16 << 10, "cdc:64KiB": 64 << 10} {
		got, err := ParseChunking(text)
		if err != nil || got != (blockstore.Chunking{AverageBytes: want}) || got.String() != text {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"x", "fixed", "fixed:", "fixed:0", "fixed:2KiB", "fixed:2MiB", "fixed:5000", "fixed:48KiB", "CDC", "cdc:", "cdc:2KiB", "cdc:128KiB", "cdc:5000", "cdc:0", "cdc:x"} {
		if _, err := ParseChunking(text); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
