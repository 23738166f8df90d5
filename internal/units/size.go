package units

import (
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Size is a number of bytes. Its text form is a number, alone (bytes) or with a unit, in capitals or not:
// K M G T P E and KiB … EiB count in 1024s, as qemu-img does (1G is 1GiB); kB MB GB TB PB EB count in 1000s.
type Size uint64

// ErrTooLarge is the error of a size that no number holds. It wraps block.ErrInvalid.
var ErrTooLarge = fmt.Errorf("too large, want less than 16 EiB: %w", block.ErrInvalid)

// suffixes in ascending order; each is 1024 times the one before.
var suffixes = [...]string{"", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}

// ParseSize reads a size. A decimal fraction is accepted where it makes a whole number of bytes, as in 1.5GiB. The error wraps
// block.ErrInvalid and names the text.
func ParseSize(text string) (Size, error) {
	digits := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
	unit, known := parseUnit(text[len(digits):])
	if !known {
		return 0, fmt.Errorf("size %q: unit %q is not known, use KiB, MiB, GiB or TiB (K, M, G and T for short), or the decimal kB, MB, GB or TB: %w",
			text, text[len(digits):], block.ErrInvalid)
	}
	whole, fraction, dotted := strings.Cut(digits, ".")
	n, err := strconv.ParseUint(whole, 10, 64)
	high, size := bits.Mul64(n, unit)
	switch {
	case errors.Is(err, strconv.ErrRange) || high > 0:
		return 0, fmt.Errorf("size %q: %w", text, ErrTooLarge)
	case err != nil:
		return 0, fmt.Errorf("size %q: want a number of bytes, such as 512 or 20GiB: %w", text, block.ErrInvalid)
	case !dotted:
		return Size(size), nil
	}
	part, err := parseFraction(fraction, unit)
	if err != nil || size+part < size {
		return 0, fmt.Errorf("size %q: not a whole number of bytes: %w", text, block.ErrInvalid)
	}
	return Size(size + part), nil
}

// parseUnit returns the bytes of a unit, in capitals or not.
func parseUnit(suffix string) (bytes uint64, known bool) {
	suffix = strings.ToUpper(suffix)
	if suffix == "" || suffix == "B" {
		return 1, true
	}
	power := strings.IndexByte("KMGTPE", suffix[0]) + 1
	base := uint64(1024)
	switch suffix[1:] {
	case "", "IB":
	case "B":
		base = 1000
	default:
		return 0, false
	}
	bytes = 1
	for range power {
		bytes *= base
	}
	return bytes, power > 0
}

// parseFraction returns 0.digits × unit if that is whole.
func parseFraction(digits string, unit uint64) (uint64, error) {
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
	high, low := bits.Mul64(n, unit)
	quotient, rest := bits.Div64(high, low, scale) // high < scale, as n < scale
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
