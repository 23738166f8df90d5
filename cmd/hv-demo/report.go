package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// step is one thing that the demo does, under a name of at most stepWidth letters. It returns what is worth telling about it.
type step struct {
	name  string
	limit time.Duration // after which it has failed
	do    func(context.Context) (detail string, err error)
}

const stepWidth = 26

// follow does the steps in order and ticks each off, until one fails.
func follow(ctx context.Context, out io.Writer, steps []step) error {
	for _, s := range steps {
		fmt.Fprintf(out, "  %-*s", stepWidth, s.name)
		limited, cancel := context.WithTimeout(ctx, s.limit)
		start := time.Now()
		detail, err := s.do(limited)
		took := time.Since(start)
		cancel()
		if err != nil {
			fmt.Fprintf(out, " ✗ %6.2f s\n", took.Seconds())
			return fmt.Errorf("%s: %w", s.name, err)
		}
		fmt.Fprintf(out, " ✓ %6.2f s  %s\n", took.Seconds(), detail)
	}
	return nil
}

// sizes are the fields of `store stats -o json` that the demo shows.
type sizes struct {
	LogicalBytes     uint64  `json:"logicalBytes"`
	NonZeroBytes     uint64  `json:"nonZeroBytes"`
	UniqueBytes      uint64  `json:"uniqueBytes"`
	StoredBytes      uint64  `json:"storedBytes"`
	MetadataBytes    uint64  `json:"metadataBytes"`
	DedupRatio       float64 `json:"dedupRatio"`
	CompressionRatio float64 `json:"compressionRatio"`
}

// reduction prints what the store made of the first disk, and of both.
func reduction(out io.Writer, first, both sizes) {
	human := func(n uint64) string { return units.Size(n).Human() }
	ratio := func(r float64) string { return fmt.Sprintf("%.2f : 1", r) }
	fmt.Fprintf(out, "\n  %-*s %12s %12s\n", stepWidth, "after settling", "first disk", "both disks")
	for _, row := range []struct{ name, first, both string }{
		{"logical", human(first.LogicalBytes), human(both.LogicalBytes)},
		{"non-zero", human(first.NonZeroBytes), human(both.NonZeroBytes)},
		{"unique", human(first.UniqueBytes), human(both.UniqueBytes)},
		{"stored", human(first.StoredBytes), human(both.StoredBytes)},
		{"metadata", human(first.MetadataBytes), human(both.MetadataBytes)},
		{"dedup", ratio(first.DedupRatio), ratio(both.DedupRatio)},
		{"compression", ratio(first.CompressionRatio), ratio(both.CompressionRatio)},
		{"non-zero per stored", ratio(per(first.NonZeroBytes, first.StoredBytes)), ratio(per(both.NonZeroBytes, both.StoredBytes))},
	} {
		fmt.Fprintf(out, "  %-*s %12s %12s\n", stepWidth, row.name, row.first, row.both)
	}
	added, data := both.StoredBytes-min(both.StoredBytes, first.StoredBytes), both.NonZeroBytes-min(both.NonZeroBytes, first.NonZeroBytes)
	fmt.Fprintf(out, "\n  The second disk has %s that are not zero and added %s to what is stored: %.1f %%.\n", human(data), human(added), 100*per(added, data))
}

// per returns a/b, and 0 where b is 0.
func per(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
