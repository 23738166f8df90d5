package helptext

import (
	"strings"
	"unicode/utf8"
)

// wrap breaks text at width columns. Lines that follow each other are one paragraph, unless the next begins with a blank; those are kept.
func wrap(text string, width int) string {
	var out []string
	var words []string
	flush := func() {
		out = append(out, fill(words, width)...)
		words = nil
	}
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch {
		case line == "" || strings.ContainsRune(" \t#", rune(line[0])):
			flush()
			out = append(out, line)
		default:
			words = append(words, strings.Fields(line)...)
		}
	}
	flush()
	return strings.Join(out, "\n")
}

// fill puts words into lines. A word that is too long has a line of its own.
func fill(words []string, width int) (lines []string) {
	used := 0
	for _, word := range words {
		n := utf8.RuneCountInString(word)
		if len(lines) == 0 || used+1+n > width {
			lines, used = append(lines, word), n
			continue
		}
		lines[len(lines)-1] += " " + word
		used += 1 + n
	}
	return lines
}
