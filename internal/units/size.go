package units

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Size is a number of bytes. Its text form is a whole number, alone (bytes) or with one of the suffixes KiB, MiB, GiB, TiB, PiB, EiB.
type Size uint64

// suffixes in ascending order; each is 1024 times the one before.
var suffixes = [...]string{"", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// ParseSize reads a size. A decimal fraction is accepted where it makes a whole number of bytes, as in 1.5GiB. The error wraps
// block.ErrInvalid and names the text.
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "KMGTPEiB")
	suffix := text[len(digits):]
	shift := -1
	for i, s := range suffixes {
		if suffix == s || suffix == "B" && i == 0 {
			shift = 10 * i
		}
	}
	if shift < 0 {
		return 0, fmt.Errorf("size %q: unit %q is not known, use KiB, MiB, GiB or TiB: %w", text, suffix, block.ErrInvalid)
	}
	whole, fraction, dotted := strings.Cut(digits, ".")
	n, err := strconv.ParseUint(whole, 10, 64)
	if err != nil || bits.Len64(n)+shift > 64 {
		return 0, fmt.Errorf("size %q: want a number of bytes below 16 EiB, such as 512 or 20GiB: %w", text, block.ErrInvalid)
	}
	size := n << shift
	if !dotted {
		return Size(size), nil
	}
	part, err := parseFraction(fraction, shift)
	if err != nil || size+part < size {
		return 0, fmt.Errorf("size %q: not a whole number of bytes: %w", text, block.ErrInvalid)
	}
	return Size(size + part), nil
}

// parseFraction returns 0.digits × 2^shift if that is whole.
func parseFraction(digits string, shift int) (uint64, error) {
	if digits == "" || len(digits) > 9 {
		return 0, strconv.ErrSyntax
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return 0, err
	}
	scale := uint64(1)
	for range digits {
		scale *= 10
	}
	high, low := bits.Mul64(n, 1<<shift)
	quotient, rest := bits.Div64(high, low, scale) // high < scale, as n < scale and the shift is at most 60
	if rest != 0 {
		return 0, strconv.ErrSyntax
	}
	return quotient, nil
}

// String is exact: the largest suffix that leaves a whole number.
func (s Size) String() string {
	n, i := uint64(s), 0
	for n != 0 && n%1024 == 0 && i < len(suffixes)-1 {
		n, i = n/1024, i+1
	}
	return strconv.FormatUint(n, 10) + suffixes[i]
}

// Human rounds to three or four digits, for tables: 1.46 GiB.
func (s Size) Human() string {
	n, i := float64(s), 0
	for n >= 1023.5 && i < len(suffixes)-1 {
		n, i = n/1024, i+1
	}
	switch {
	case i == 0:
		return fmt.Sprintf("%d B", uint64(s))
	case n < 9.995:
		return fmt.Sprintf("%.2f %s", n, suffixes[i])
	case n < 99.95:
		return fmt.Sprintf("%.1f %s", n, suffixes[i])
	}
	return fmt.Sprintf("%.0f %s", n, suffixes[i])
}

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error { return s.Set(string(text)) }

// Set reads the text, for command-line flags.
func (s *Size) Set(text string) error {
	n, err := ParseSize(text)
	if err != nil {
		return err
	}
	*s = n
	return nil
}

// Type names the kind of value in the help of a flag.
func (Size) Type() string { return "size" }
