package console

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// JSON prints one document.
func JSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// gap between columns, and the least width that a column is cut to.
const (
	columnGap    = 2
	leastColumn  = 8
	bold, normal = "\x1b[1m", "\x1b[0m"
)

// Table prints rows under a header. On a terminal the widest columns are cut until it fits; elsewhere nothing is. What would steer the terminal is escaped. getenv says whether colour is wanted.
func Table(w io.Writer, getenv func(string) string, header []string, rows [][]string) {
	shown := make([][]string, len(rows))
	for i, row := range rows {
		for _, text := range row {
			shown[i] = append(shown[i], cell(text))
		}
	}
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, shown...) {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	width, isTerminal := Terminal(w)
	if isTerminal {
		fit(widths, width)
	}
	line := tableLine(header, widths)
	if isTerminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" {
		line = bold + line + normal
	}
	fmt.Fprintln(w, line)
	for _, row := range shown {
		fmt.Fprintln(w, tableLine(row, widths))
	}
}

// fit narrows the widest column until all are within width.
func fit(widths []int, width int) {
	for {
		total, widest := columnGap*(len(widths)-1), 0
		for i, w := range widths {
			total += w
			if w > widths[widest] {
				widest = i
			}
		}
		if total <= width || widths[widest] <= leastColumn {
			return
		}
		widths[widest]--
	}
}

func tableLine(row []string, widths []int) string {
	var line strings.Builder
	for i, text := range row {
		n := utf8.RuneCountInString(text)
		if n > widths[i] {
			text, n = string([]rune(text)[:widths[i]-1])+"…", widths[i]
		}
		line.WriteString(text)
		line.WriteString(strings.Repeat(" ", widths[i]-n+columnGap))
	}
	return strings.TrimRight(line.String(), " ")
}

// Pairs prints names and values under each other, without those that have no value.
func Pairs(w io.Writer, list [][2]string) {
	width := 0
	for _, p := range list {
		width = max(width, utf8.RuneCountInString(cell(p[0])))
	}
	for _, p := range list {
		if p[1] != "" {
			fmt.Fprintf(w, "%-*s  %s\n", width, cell(p[0]), cell(p[1]))
		}
	}
}
