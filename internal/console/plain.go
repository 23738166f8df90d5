package console

import (
	"fmt"
	"strings"
	"unicode"
)

// Plain returns text that others made, such as the error of a server or the name of a disk, as it may be shown: characters that would steer the terminal, or turn the direction of
// writing, become escapes that are seen, as in \x1b. Line breaks and tabs stay.
func Plain(text string) string {
	if !strings.ContainsFunc(text, steers) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !steers(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// steers reports whether a terminal may do something else with a character than show it.
func steers(r rune) bool {
	return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == unicode.ReplacementChar || r == '\u2028' || r == '\u2029')
}

// cell is text for one cell of a table.
func cell(text string) string {
	return strings.NewReplacer("\n", `\n`, "\t", `\t`).Replace(Plain(text))
}
