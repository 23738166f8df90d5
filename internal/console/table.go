package console

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
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

// gap between columns, the least width that a column is cut to, and that from which the text of the last one is broken instead.
const (
	columnGap    = 2
	leastColumn  = 8
	leastBroken  = 20
	bold, normal = "\x1b[1m", "\x1b[0m"
)

// Table prints rows under a header. Where it goes to no terminal, it is as wide as it is. On a terminal that is narrower, columns without any text are left out, then those that are named in spare, in that order; of those
// that stay the last is narrowed first, whose text goes on below, unbroken where it has no spaces; then the widest are cut, but never the first, which is what one types next. What would steer the terminal is escaped. getenv says whether colour is wanted.
func Table(w io.Writer, getenv func(string) string, header []string, rows [][]string, spare ...string) {
	shown := make([][]string, len(rows))
	for i, row := range rows {
		for _, text := range row {
			shown[i] = append(shown[i], cell(text))
		}
	}
	width, isTerminal := Terminal(w)
	if isTerminal {
		header, shown = leaveOut(header, shown, width, spare)
	}
	widths := widthsOf(header, shown)
	if isTerminal {
		fit(widths, width)
	}
	line := tableLine(header, widths)
	if isTerminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb" {
		line = bold + line + normal
	}
	fmt.Fprintln(w, line)
	for _, row := range shown {
		for _, part := range broken(row, widths) {
			fmt.Fprintln(w, tableLine(part, widths))
		}
	}
}

// widthsOf returns how wide each column is, in characters.
func widthsOf(header []string, rows [][]string) []int {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, text := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(text))
		}
	}
	return widths
}

// total is the width of a table, with the gaps.
func total(widths []int) int {
	sum := columnGap * (len(widths) - 1)
	for _, w := range widths {
		sum += w
	}
	return sum
}

// leaveOut returns a table without the columns that it can do without, as far as it is wider than width. The first one stays.
func leaveOut(header []string, rows [][]string, width int, spare []string) ([]string, [][]string) {
	drop := func(column int) {
		header = slices.Delete(slices.Clone(header), column, column+1)
		for i, row := range rows {
			if column < len(row) {
				rows[i] = slices.Delete(row, column, column+1)
			}
		}
	}
	tooWide := func() bool { return total(widthsOf(header, rows)) > width }
	for column := len(header) - 1; column > 0 && len(rows) > 0 && tooWide(); column-- {
		if !slices.ContainsFunc(rows, func(row []string) bool { return column < len(row) && row[column] != "" }) {
			drop(column)
		}
	}
	for _, name := range spare {
		if column := slices.Index(header, name); column > 0 && tooWide() {
			drop(column)
		}
	}
	return header, rows
}

// fit narrows the last column as far as texts in it can be broken, then the widest ones but the first, until all are within width.
func fit(widths []int, width int) {
	last := len(widths) - 1
	if last < 1 {
		return
	}
	if over := total(widths) - width; over > 0 && widths[last] > leastBroken {
		widths[last] = max(leastBroken, widths[last]-over)
	}
	for {
		widest := 1
		for i := 2; i < len(widths); i++ {
			if widths[i] > widths[widest] {
				widest = i
			}
		}
		if total(widths) <= width || widths[widest] <= leastColumn {
			return
		}
		widths[widest]--
	}
}

// broken returns a row as the rows that it takes to show all of its last text, if that has a column of some width.
func broken(row []string, widths []int) [][]string {
	last := len(widths) - 1
	if len(row) != len(widths) || last < 1 || widths[last] < leastBroken || utf8.RuneCountInString(row[last]) <= widths[last] {
		return [][]string{row}
	}
	var lines [][]string
	var text string
	put := func() {
		next := make([]string, len(row))
		if len(lines) == 0 {
			copy(next, row)
		}
		next[last], text = text, ""
		lines = append(lines, next)
	}
	for _, word := range strings.Fields(row[last]) {
		joined := strings.TrimPrefix(text+" "+word, " ")
		if text != "" && utf8.RuneCountInString(joined) > widths[last] {
			put()
			joined = word
		}
		text = joined
	}
	if text != "" {
		put()
	}
	return lines
}

func tableLine(row []string, widths []int) string {
	var line strings.Builder
	for i, text := range row {
		n := utf8.RuneCountInString(text)
		if broken := i > 0 && i == len(widths)-1 && widths[i] >= leastBroken; n > widths[i] && !broken { // what of that is too long is one word, which can be copied if it is whole
			text, n = string([]rune(text)[:widths[i]-1])+"…", widths[i]
		}
		line.WriteString(text)
		line.WriteString(strings.Repeat(" ", max(0, widths[i]-n)+columnGap))
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
