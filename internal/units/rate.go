package units

import (
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Rate is a number of bytes a second. Its text form is that of a size, with or without /s behind it: 100MB/s, 64MiB, 5000. The B of a
// unit is a capital, as a small b stands for bits where rates are meant.
type Rate uint64

// decimals are the suffixes that count in thousands, as data sheets of disks and networks do.
var decimals = [...]struct {
	suffix string
	bytes  uint64
}{{"kB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}}

// ParseRate reads a rate. The error wraps block.ErrInvalid and names the text.
func ParseRate(text string) (Rate, error) {
	number := strings.TrimSuffix(text, "/s")
	size, err := ParseSize(number)
	if err != nil || strings.Contains(number, "b") {
		return 0, fmt.Errorf("rate %q: want bytes a second, such as 100MB/s or 64MiB/s: %w", text, block.ErrInvalid)
	}
	return Rate(size), nil
}

// String is exact, as that of a size, with /s behind it.
func (r Rate) String() string {
	for i := len(decimals) - 1; i >= 0; i-- {
		if d := decimals[i]; r > 0 && uint64(r)%d.bytes == 0 {
			return fmt.Sprintf("%d%s/s", uint64(r)/d.bytes, d.suffix)
		}
	}
	s := Size(r).String()
	if strings.HasSuffix(s, "B") {
		return s + "/s"
	}
	return s + "B/s"
}

// Set reads the text, for command-line flags.
func (r *Rate) Set(text string) error {
	n, err := ParseRate(text)
	if err != nil {
		return err
	}
	*r = n
	return nil
}

// Type names the kind of value in the help of a flag.
func (Rate) Type() string { return "rate" }
