package units

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Ages say how dense the history of a volume is: every write up to the first age, then flushes, one point a minute, one an hour. 0: there is no such stretch.
type Ages struct{ Every, Flushes, Minutes, Hours Span }

// Window is how far back the history goes: the greatest age. 0, without an error, where none is given. The error wraps block.ErrInvalid.
func (a Ages) Window() (window Span, err error) {
	for _, age := range []struct {
		name string
		span Span
	}{{"every", a.Every}, {"flushes", a.Flushes}, {"minutes", a.Minutes}, {"hours", a.Hours}} {
		switch {
		case age.span == 0:
		case a.Every == 0:
			return 0, fmt.Errorf("--%s %v without --every, the age up to which every write stays: %w", age.name, age.span, block.ErrInvalid)
		case age.span <= window:
			return 0, fmt.Errorf("--%s %v: want more than the %v before it: %w", age.name, age.span, window, block.ErrInvalid)
		default:
			window = age.span
		}
	}
	return window, nil
}

// String tells them as a user reads them.
func (a Ages) String() string {
	text := ""
	for _, age := range []struct {
		name string
		span Span
	}{{"every write of ", a.Every}, {"flushes of ", a.Flushes}, {"a point each minute of ", a.Minutes}, {"a point each hour of ", a.Hours}} {
		if age.span == 0 {
			continue
		}
		if text != "" {
			text += ", "
		}
		text += age.name + age.span.String()
	}
	return text
}
