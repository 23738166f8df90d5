package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

const (
	drawEvery = 200 * time.Millisecond // on a terminal
	lineEvery = 5 * time.Second        // elsewhere, with --progress
)

// meter tells on the error stream how far something is. It is used by one goroutine.
type meter struct {
	w        io.Writer
	what     string
	total    uint64 // bytes; 0: not known
	start    time.Time
	last     time.Time
	terminal bool
	silent   bool
	drawn    int // runes of the line on the terminal
}

// newMeter is silent when the error stream is no terminal, unless forced.
func (a *app) newMeter(what string, total uint64, forced bool) *meter {
	_, isTerminal := terminal(a.err)
	now := time.Now()
	return &meter{w: a.err, what: what, total: total, start: now, last: now, terminal: isTerminal, silent: !isTerminal && !forced}
}

// at notes that done bytes are through.
func (m *meter) at(done uint64) {
	every := lineEvery
	if m.terminal {
		every = drawEvery
	}
	now := time.Now()
	if m.silent || now.Sub(m.last) < every {
		return
	}
	m.last = now
	line := m.line(done, now.Sub(m.start))
	if !m.terminal {
		fmt.Fprintln(m.w, line)
		return
	}
	blank := max(0, m.drawn-len([]rune(line)))
	m.drawn = len([]rune(line))
	fmt.Fprintf(m.w, "\r%s%s", line, strings.Repeat(" ", blank))
}

// line is "importing 1.20 GiB of 3.00 GiB (40 %), 512 MiB/s, 4s left".
func (m *meter) line(done uint64, elapsed time.Duration) string {
	rate := float64(done) / max(elapsed.Seconds(), 1e-3)
	line := fmt.Sprintf("%s %s", m.what, units.Size(done).Human())
	if m.total > 0 {
		line += fmt.Sprintf(" of %s (%d %%)", units.Size(m.total).Human(), uint64(100*float64(done)/float64(m.total)))
	}
	line += fmt.Sprintf(", %s/s", units.Size(rate).Human())
	if m.total > done && rate > 0 {
		left := time.Duration(float64(m.total-done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %s left", left.Round(time.Second))
	}
	return line
}

// end leaves the terminal with an empty line.
func (m *meter) end() {
	if m.drawn > 0 {
		fmt.Fprintf(m.w, "\r%s\r", strings.Repeat(" ", m.drawn))
	}
}
