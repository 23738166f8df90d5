package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"
)

// show prints one result: as JSON, or as text by calling table.
func (a *app) show(value any, table func()) error {
	if a.output != "json" {
		table()
		return nil
	}
	encoder := json.NewEncoder(a.out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// say prints a line for people; with -o json the document says it all.
func (a *app) say(format string, args ...any) { fmt.Fprintf(a.out, format+"\n", args...) }

// gap between columns, and the least width that a column is cut to.
const (
	columnGap    = 2
	leastColumn  = 8
	bold, normal = "\x1b[1m", "\x1b[0m"
)

// table prints rows under a header. On a terminal the widest columns are cut until it fits; elsewhere nothing is.
func (a *app) table(header []string, rows [][]string) {
	widths := make([]int, len(header))
	for _, row := range append([][]string{header}, rows...) {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	width, isTerminal := terminal(a.out)
	if isTerminal {
		fit(widths, width)
	}
	line := a.tableLine(header, widths)
	if isTerminal && a.getenv("NO_COLOR") == "" && a.getenv("TERM") != "dumb" {
		line = bold + line + normal
	}
	fmt.Fprintln(a.out, line)
	for _, row := range rows {
		fmt.Fprintln(a.out, a.tableLine(row, widths))
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

func (a *app) tableLine(row []string, widths []int) string {
	var line strings.Builder
	for i, cell := range row {
		n := utf8.RuneCountInString(cell)
		if n > widths[i] {
			cell, n = string([]rune(cell)[:widths[i]-1])+"…", widths[i]
		}
		line.WriteString(cell)
		line.WriteString(strings.Repeat(" ", widths[i]-n+columnGap))
	}
	return strings.TrimRight(line.String(), " ")
}

// pairs prints names and values under each other.
func (a *app) pairs(list [][2]string) {
	width := 0
	for _, p := range list {
		width = max(width, utf8.RuneCountInString(p[0]))
	}
	for _, p := range list {
		if p[1] != "" {
			fmt.Fprintf(a.out, "%-*s  %s\n", width, p[0], p[1])
		}
	}
}
